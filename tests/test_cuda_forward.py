"""The tensor-core forward kernels, executed: values by the tolerance rule, on both routes, with every check on."""

from dataclasses import replace

import emulator
import forward_kernels as forward
import numpy as np
import pytest
import torch
from forward_shapes import COLLAPSE, FEW_CHANNELS, FRAMES, SHAPES, TYPICAL, WINDOWS, Shape

EXPECTED_KERNEL = {
    **{shape.name: "frames" for shape in FRAMES},
    **{shape.name: "windows" for shape in WINDOWS},
    **{shape.name: "few_channels" for shape in FEW_CHANNELS},
}


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
    ragged = {plan["kernel"] for plan in plans if plan["weight_steps"] and plan["channel_steps"] % plan["weight_steps"]}
    in_turn = [plan for plan in plans if plan["slices_per_block"] > 1]
    by_columns = [plan for plan in plans if plan["kernel"] == 2 and plan["weight_columns"] < 2 * plan["groups"]]
    at_once = {plan["slices_at_once"] for plan in plans if plan["slices"] > 1 and plan["collapse_bytes"]}
    assert at_once == {1, 2}
    assert streamed
    assert by_columns
    assert chunked
    assert ragged == {1, 2}
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
        for name in {"bias", "collapse_bias"} & set(inputs):
            inputs[name] = torch.zeros_like(inputs[name])
            del given[name]
    if variant == "residual":  # halves add up to A without rounding
        residual = given["A"] = inputs["A"] / 2
    found = forward.run(
        kernels,
        shape,
        given,
        dtype,
        relu=relu,
        transposed=variant in ("strides", "residual"),  # whose own are dense
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
    """NaN and infinity in one frame of one clip reach the windows that read it, and no other; relu keeps a NaN."""
    inputs = shape.inputs(torch.bfloat16)
    for bad, (clip, frame) in ((float("nan"), (0, shape.T - 1)), (float("inf"), (1, 0)), (-float("inf"), (0, 1))):
        relu = bad != bad
        clean = forward.run(kernels, shape, inputs, relu=relu).y
        x = inputs["x"].clone()
        x[clip, :, frame] = bad
        spoilt = forward.run(kernels, shape, inputs | {"x": x}, relu=relu).y
        size, stride, dilation = shape.window
        padding = (size - 1) * dilation // 2
        reads = torch.zeros(shape.N, shape.windows, dtype=torch.bool)
        for window in range(shape.windows):
            reads[clip, window] = frame in [window * stride + slot * dilation - padding for slot in range(size)]
        untouched = ~reads[:, None, :, None].expand_as(clean)
        assert torch.equal(spoilt[untouched], clean[untouched])
        if relu:
            assert spoilt[~untouched].isnan().all()
        elif not shape.out:  # whose relu makes a number of minus infinity
            assert not spoilt[~untouched].isfinite().any()


@pytest.mark.parametrize("kernel", ["frames_25", "windows_17_3", "few_windows_17", "collapse_few"])
def test_no_clips(kernels: emulator.Kernels, kernel: str) -> None:
    shape = replace(next(shape for shape in SHAPES if shape.name == kernel), N=0)
    assert forward.run(kernels, shape, shape.inputs(torch.bfloat16)).y.numel() == 0
