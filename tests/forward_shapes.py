"""Calls that the tensor-core forward kernels are tested on: every kernel, tile and kind of raggedness, by name."""

from dataclasses import dataclass

import shapes
import torch


@dataclass(frozen=True)
class Shape(shapes.Shape):
    """A forward call, with the collapse behind it if there is one."""

    out: int = 0  # channels of the collapse

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*super().sizes, self.out, self.tf32)

    def macs(self) -> int:
        """Multiply-adds that are needed if each frame is projected and each window aggregated once."""
        project = self.N * self.T * self.V * self.C
        return self.O * (
            self.K * (project + self.N * self.windows * self.nodes**2) + self.N * self.windows * self.nodes * self.out
        )

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
        """x (N, C, T, V) and all weights, rounded to dtype, in float64; "out" is what a collapse adds to."""
        draw = torch.Generator().manual_seed(seed)

        def normal(*sizes: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(sizes, generator=draw) * scale).to(dtype).double()

        tensors = {
            "x": normal(self.N, self.C, self.T, self.V),
            "A": normal(self.K, self.nodes, self.nodes, scale=self.nodes**-0.5),
            "weight": normal(self.O, self.K, self.C, scale=(self.K * self.C) ** -0.5),
            "bias": normal(self.O),
        }
        if self.out:
            tensors["collapse_weight"] = normal(
                self.out, self.O, self.window[0], scale=(self.O * self.window[0]) ** -0.5
            )
            tensors["collapse_bias"] = normal(self.out)
            tensors["out"] = normal(self.N, self.out, self.windows, self.V)
        return tensors


# Each stands for a path through plan and kernel; the comment says which. Few frames keep them quick: large tiles come
# from the single multiprocessor that their plan is made for.
FRAMES = [
    Shape("frames_17", 1, 96, 13, 17, 2, 96),  # three frames a warp, a ragged second block
    Shape("frames_25", 1, 96, 17, 25, 2, 96),  # two frames a warp
    Shape("frames_18", 2, 32, 7, 18, 3, 48),  # a pack that crosses clips
    Shape("frames_28", 1, 16, 5, 28, 1, 48),
    Shape("joints_5", 2, 24, 3, 5, 2, 50),  # C and O no multiples of 16
    Shape("joints_21", 1, 48, 5, 21, 2, 96),
    Shape("joints_31", 1, 40, 3, 31, 2, 34),
    Shape("joints_48", 1, 32, 3, 48, 1, 48),
    Shape("joints_64", 1, 64, 2, 64, 1, 96),
    Shape("frames_wide", 1, 192, 5, 25, 2, 192),
    Shape("frames_wide_99", 1, 192, 5, 25, 2, 192, shared_kb=99),  # weights in chunks
    Shape("frames_ragged_chunks", 1, 240, 3, 25, 1, 48, shared_kb=99),  # the last chunk of weights is shorter
    Shape("frames_slices", 1, 32, 3, 17, 2, 500),  # slices of output channels in turn
    Shape("frames_small", 2, 32, 3, 25, 2, 96, multiprocessors=108),  # one frame a block
]
WINDOWS = [
    Shape("windows_17_3", 1, 96, 9, 17, 2, 96, (3, 1, 1)),  # a ragged last block
    Shape("windows_25_3", 1, 96, 9, 25, 2, 96, (3, 1, 1)),  # wide projection units
    Shape("windows_17_5", 1, 32, 9, 17, 2, 96, (5, 1, 1)),
    Shape("windows_25_5", 1, 32, 13, 25, 2, 96, (5, 1, 1)),  # slices in turn
    Shape("windows_25_7", 1, 32, 5, 25, 1, 48, (7, 1, 1)),  # nodes in two parts
    Shape("windows_25_5_stride", 1, 32, 9, 25, 2, 96, (5, 2, 1)),  # the tile of 64 nodes, twice
    Shape("windows_64_3", 1, 16, 3, 64, 1, 48, (3, 1, 1)),
    Shape("windows_stride", 2, 48, 7, 17, 2, 96, (3, 2, 1)),
    Shape("windows_dilated", 1, 32, 8, 25, 2, 96, (3, 1, 2)),
    Shape("windows_both", 1, 16, 9, 20, 2, 50, (5, 2, 2)),  # frames that no window reads are not loaded
    Shape("windows_coprime", 1, 24, 11, 9, 2, 48, (3, 3, 2)),
    Shape("windows_streamed", 1, 192, 9, 25, 1, 192, (5, 2, 1), shared_kb=99),  # W and A in chunks
    Shape("windows_ragged_chunks", 1, 112, 5, 25, 1, 48, (3, 1, 1), shared_kb=99),  # the last chunk of W is shorter
    Shape("windows_columns", 1, 192, 9, 25, 1, 192, (5, 2, 1)),  # W in chunks of output channels
    Shape("windows_even", 1, 16, 5, 6, 2, 16, (2, 1, 1)),
    Shape("windows_short", 2, 16, 1, 17, 2, 48, (5, 1, 1)),  # a clip shorter than its window
    Shape("windows_of_one", 1, 16, 7, 17, 2, 48, (1, 2, 1)),
    Shape("windows_small", 2, 32, 4, 25, 2, 96, (3, 1, 1), multiprocessors=108),
]
FEW_CHANNELS = [
    Shape("few_frames_25", 2, 3, 9, 25, 13, 96),
    Shape("few_windows_17", 1, 3, 9, 17, 6, 96, (3, 1, 1)),
    Shape("few_windows_25", 1, 3, 7, 25, 6, 96, (5, 2, 1)),
    Shape("few_5", 1, 5, 5, 6, 3, 34, (3, 1, 3)),  # 24 columns are no multiple of C
    Shape("few_8", 1, 8, 4, 64, 2, 48),
    Shape("few_1", 1, 1, 3, 1, 1, 2),
    Shape("few_slices", 1, 3, 9, 5, 2, 432),  # more than 48 output channels for each of eight warps
]
COLLAPSE = [
    Shape("collapse_17_3", 1, 32, 9, 17, 2, 96, (3, 1, 1), out=96),
    Shape("collapse_17_two", 1, 32, 12, 17, 2, 96, (3, 1, 1), out=96),  # two windows a warp
    Shape("collapse_25_3", 1, 32, 9, 25, 2, 144, (3, 1, 1), out=240),  # two slices at once, outputs in passes
    Shape("collapse_in_turn", 1, 16, 2, 48, 1, 144, (5, 1, 1), out=48, shared_kb=99),  # slices add up in memory
    Shape("collapse_25_5", 1, 32, 5, 25, 1, 96, (5, 2, 1), out=50),
    Shape("collapse_48", 1, 16, 3, 48, 1, 48, (3, 1, 1), out=32),  # more than 32 joints
    Shape("collapse_few", 1, 3, 11, 25, 6, 96, (3, 1, 1), out=96),  # two tiles of rows a warp, a ragged second block
    Shape("collapse_few_17", 2, 3, 5, 17, 6, 48, (5, 1, 1), out=102),  # outputs in two passes, no multiple of four
]
SHAPES = [*FRAMES, *WINDOWS, *FEW_CHANNELS, *COLLAPSE]
# One of each kernel and tile, for what need not be asked of all.
TYPICAL = [next(shape for shape in SHAPES if shape.name == name) for name in ("frames_17", "frames_25", "windows_17_3")]
TYPICAL += [next(shape for shape in SHAPES if shape.name == name) for name in ("windows_25_5", "few_windows_17")]
TYPICAL += [next(shape for shape in SHAPES if shape.name == name) for name in ("collapse_25_3", "collapse_few")]
