"""One call of the tensor-core kernels: its sizes, and those of the device that it is planned for."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """Few multiprocessors ask for large tiles. `forward_kernels` and `backward_kernels` add what only theirs have."""

    name: str
    N: int
    C: int
    T: int
    V: int
    K: int
    O: int  # noqa: E741
    window: tuple[int, int, int] = (1, 1, 1)
    shared_kb: int = 163
    multiprocessors: int = 1
    tf32: bool = False  # float32 tensors; else of 16 bits

    @property
    def sizes(self) -> tuple[int, ...]:
        """As the launchers take them, in their order."""
        return (self.N, self.C, self.T, self.V, self.K, self.O, *self.window, self.shared_kb, self.multiprocessors)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.tf32 else torch.bfloat16

    @property
    def nodes(self) -> int:
        return self.window[0] * self.V

    @property
    def windows(self) -> int:
        size, stride, dilation = self.window
        return (self.T + 2 * ((size - 1) * dilation // 2) - dilation * (size - 1) - 1) // stride + 1
