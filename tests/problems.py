"""Named problems for ms_g3d, and the rule by which every backend's answer to them is judged."""

from dataclasses import dataclass, replace

import torch
from tolerance import FLOOR, error
from torch import Tensor

from msg3d_fast import reference


@dataclass(frozen=True)
class Problem:
    """Sizes of one call; `A` is random and thus asymmetric, unless a test makes its own."""

    name: str
    N: int = 2
    C: int = 4
    T: int = 6
    V: int = 5
    K: int = 2
    O: int = 8  # noqa: E741
    window_size: int = 1
    window_stride: int = 1
    window_dilation: int = 1

    @property
    def window(self) -> tuple[int, int, int]:
        return self.window_size, self.window_stride, self.window_dilation

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
        """Return x, A, weight, bias that require gradients; x is channels_last. The same numbers for every dtype."""
        generator = torch.Generator().manual_seed(seed)
        nodes = self.window_size * self.V
        shapes = {
            "x": (self.N, self.C, self.T, self.V),
            "A": (self.K, nodes, nodes),
            "weight": (self.O, self.K, self.C),
            "bias": (self.O,),
        }
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        tensors["A"] /= nodes**0.5
        tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
        return {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}


PROBLEMS = [
    Problem("tiny"),
    Problem("one_frame", T=1, window_size=3),
    Problem("odd_T", T=7, window_size=3, window_stride=2),
    Problem("one_joint", V=1, T=9, window_size=5),
    Problem("even_window", T=9, window_size=2),
    Problem("stride2_dilated", T=13, window_size=3, window_stride=2, window_dilation=3),
    Problem("windows_that_pair", T=13, window_size=5, window_stride=2),
    Problem("dilation_beyond_T", T=4, window_size=3, window_dilation=5),
    Problem("strided_without_window", T=9, window_stride=3),
    Problem("one_channel_each", C=1, O=1, K=1),
    Problem("ragged_panels", C=17, O=33, K=3, V=7, window_size=3),
    Problem("empty_batch", N=0, window_size=3),
    Problem("stage1", C=3, O=96, K=6, V=17, T=20, window_size=5),
    Problem("stage1_gcn", C=3, O=96, K=13, V=17, T=20),
    Problem("coco_stage2", N=1, C=48, O=96, K=6, V=17, T=24, window_size=5, window_stride=2),
    Problem("ntu_stage2", N=1, C=96, O=96, K=13, V=25, T=30),
]
SMALL = [problem for problem in PROBLEMS if problem.C * problem.O * problem.K <= 256]
MEDIUM = next(problem for problem in PROBLEMS if problem.name == "ragged_panels")
LONG = replace(MEDIUM, name="long", N=3, T=70)


def gradients(y: Tensor, inputs: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Return the output under "y" and the gradient for every input, for one fixed random gradient of the output."""
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    found = torch.autograd.grad(y, list(inputs.values()), gy.contiguous(memory_format=torch.channels_last))
    return {"y": y.detach(), **dict(zip(inputs, found, strict=True))}


def reference_answer(problem: Problem, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Return output and gradients of the reference in `dtype`; float64 is what counts as exact."""
    inputs = problem.inputs(dtype, seed)
    return gradients(reference.ms_g3d(*inputs.values(), *problem.window), inputs)


def assert_parity(found: dict[str, Tensor], problem: Problem, seed: int = 0) -> None:
    """Assert that every tensor errs at most twice as much as the reference in the same dtype, plus a tiny floor."""
    dtype = next(iter(found.values())).dtype
    eager, exact = reference_answer(problem, dtype, seed), reference_answer(problem, torch.float64, seed)
    floor = FLOOR if dtype == torch.float32 else 2.0**-42  # float64 is judged by float64: rounding in another order
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        ours, theirs = error(tensor, exact[name]), error(eager[name], exact[name])
        assert ours <= 2 * theirs + floor, f"{problem.name}, {name}: error {ours:.2e}, eager's own {theirs:.2e}"
