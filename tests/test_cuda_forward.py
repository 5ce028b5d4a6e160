"""The tensor-core forward kernels, executed: values by the tolerance rule, on both routes, with every check on."""

from dataclasses import replace

import emulator
import forward_kernels as forward
import numpy as np
import pytest
import torch
from forward_kernels import Shape

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
]
COLLAPSE = [
    Shape("collapse_17_3", 1, 32, 9, 17, 2, 96, (3, 1, 1), 96),
    Shape("collapse_17_two", 1, 32, 12, 17, 2, 96, (3, 1, 1), 96),  # two windows a warp
    Shape("collapse_25_3", 1, 32, 9, 25, 2, 144, (3, 1, 1), 240),  # two slices at once, outputs in passes
    Shape("collapse_in_turn", 1, 16, 2, 48, 1, 144, (5, 1, 1), 48, shared_kb=99),  # slices add up in memory
    Shape("collapse_25_5", 1, 32, 5, 25, 1, 96, (5, 2, 1), 50),
    Shape("collapse_48", 1, 16, 3, 48, 1, 48, (3, 1, 1), 32),  # more than 32 joints
    Shape("collapse_few", 1, 3, 11, 25, 6, 96, (3, 1, 1), 96),  # two tiles of rows a warp, a ragged second block
    Shape("collapse_few_17", 2, 3, 5, 17, 6, 48, (5, 1, 1), 102),  # outputs in two passes, no multiple of four
]
SHAPES = [*FRAMES, *WINDOWS, *FEW_CHANNELS, *COLLAPSE]
EXPECTED_KERNEL = {
    **{shape.name: "frames" for shape in FRAMES},
    **{shape.name: "windows" for shape in WINDOWS},
    **{shape.name: "few_channels" for shape in FEW_CHANNELS},
}
# One of each kernel and tile, for what need not be asked of all.
TYPICAL = [next(shape for shape in SHAPES if shape.name == name) for name in ("frames_17", "frames_25", "windows_17_3")]
TYPICAL += [next(shape for shape in SHAPES if shape.name == name) for name in ("windows_25_5", "few_windows_17")]
TYPICAL += [next(shape for shape in SHAPES if shape.name == name) for name in ("collapse_25_3", "collapse_few")]


def named(shapes: list[Shape]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=lambda shape: shape.name)


@pytest.fixture(scope="module")
def kernels() -> emulator.Kernels:
    return emulator.build(*forward.SOURCES, forward.LAUNCHERS)


@named(SHAPES)
def test_values(kernels: emulator.Kernels, shape: Shape) -> None:
    """Copies land as late as they may, every access is checked."""
    assert forward.KERNELS[forward.plan(kernels, shape)["kernel"]] == EXPECTED_KERNEL.get(
        shape.name, "few_channels" if shape.C <= 8 else "windows"
    )
    inputs = shape.inputs(torch.bfloat16)
    found = forward.run(kernels, shape, inputs, landing="late")
    forward.assert_exact_enough(found, shape, inputs)


def test_the_shapes_reach_every_tile(kernels: emulator.Kernels) -> None:
    plans = [forward.plan(kernels, shape) for shape in SHAPES]
    tiles = {(plan["kernel"], plan["tile"]) for plan in plans}
    assert tiles == {(1, tile) for tile in range(7)} | {(2, tile) for tile in range(7)} | {(3, 0)}
    streamed = [plan for plan in plans if plan["kernel"] == 2 and plan["weight_steps"] < plan["channel_steps"]]
    chunked = [plan for plan in plans if plan["kernel"] == 1 and plan["weight_steps"] < plan["channel_steps"]]
    in_turn = [plan for plan in plans if plan["slices_per_block"] > 1]
    by_columns = [plan for plan in plans if plan["kernel"] == 2 and plan["weight_columns"] < 2 * plan["groups"]]
    at_once = {plan["slices_at_once"] for plan in plans if plan["slices"] > 1 and plan["collapse_bytes"]}
    assert at_once == {1, 2}
    assert streamed
    assert by_columns
    assert chunked
    assert in_turn
    assert any(plan["parts"] > 1 for plan in plans)
    assert any(plan["slices"] > plan["slices_per_block"] for plan in plans)


@named(TYPICAL)
@pytest.mark.parametrize("variant", ["half", "relu", "no_bias", "strides", "residual"])
def test_variants(kernels: emulator.Kernels, shape: Shape, variant: str) -> None:
    dtype = torch.float16 if variant == "half" else torch.bfloat16
    inputs = shape.inputs(dtype)
    relu = variant == "relu"
    given, residual = dict(inputs), None
    if variant == "no_bias":
        inputs["bias"] = torch.zeros_like(inputs["bias"])
        del given["bias"]
    if variant == "residual":  # halves add up to A without rounding
        residual = given["A"] = inputs["A"] / 2
    found = forward.run(
        kernels,
        shape,
        given,
        dtype,
        relu=relu,
        transposed=variant == "strides",
        residual=residual,
        landing="early",
    )
    forward.assert_exact_enough(found, shape, inputs, dtype, relu)


@named(COLLAPSE)
def test_a_collapse_adds_to_what_is_there(kernels: emulator.Kernels, shape: Shape) -> None:
    inputs = shape.inputs(torch.bfloat16)
    found = forward.run(kernels, shape, inputs, relu=True, accumulate=True)
    forward.assert_exact_enough(found, shape, inputs, relu=True, accumulate=True)


@named(TYPICAL)
def test_order_of_execution_changes_no_bit(kernels: emulator.Kernels, shape: Shape) -> None:
    inputs = shape.inputs(torch.bfloat16)
    first = forward.run(kernels, shape, inputs, landing="late").array
    for seed, landing in enumerate(emulator.LANDINGS, 1):
        again = forward.run(kernels, shape, inputs, seed=seed, landing=landing).array
        np.testing.assert_array_equal(again, first)


@named([replace(shape, N=2) for shape in TYPICAL])
def test_a_bad_frame_stays_where_it_is_read(kernels: emulator.Kernels, shape: Shape) -> None:
    """NaN and infinity in one frame of one clip reach the windows that read it, and no other."""
    inputs = shape.inputs(torch.bfloat16)
    clean = forward.run(kernels, shape, inputs).y
    for bad, (clip, frame) in ((float("nan"), (0, shape.T - 1)), (float("inf"), (1, 0)), (-float("inf"), (0, 1))):
        x = inputs["x"].clone()
        x[clip, :, frame] = bad
        spoilt = forward.run(kernels, shape, inputs | {"x": x}).y
        size, stride, dilation = shape.window
        padding = (size - 1) * dilation // 2
        reads = torch.zeros(shape.N, shape.windows, dtype=torch.bool)
        for window in range(shape.windows):
            reads[clip, window] = frame in [window * stride + slot * dilation - padding for slot in range(size)]
        untouched = ~reads[:, None, :, None].expand_as(clean)
        assert torch.equal(spoilt[untouched], clean[untouched])
        if not shape.out:  # relu makes a number of minus infinity
            assert not spoilt[~untouched].isfinite().any()


@pytest.mark.parametrize("kernel", ["frames_25", "windows_17_3", "few_windows_17", "collapse_few"])
def test_no_clips(kernels: emulator.Kernels, kernel: str) -> None:
    shape = replace(next(shape for shape in SHAPES if shape.name == kernel), N=0)
    assert forward.run(kernels, shape, shape.inputs(torch.bfloat16)).y.numel() == 0
