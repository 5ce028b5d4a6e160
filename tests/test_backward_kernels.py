"""The tensor-core backward kernels, executed by both emulators: values, strangers' NaN, repeatability, refusals."""

from collections.abc import Iterator

import backward_kernels
import emulator
import pytest
import torch
from backward_kernels import LAUNCHERS, SOURCES, Shape, assert_exact_enough

# Every tile, team, way of buffering and kind of raggedness; `expects` keeps the names true.
SHAPES = [
    Shape("ragged", 2, 16, 7, 5, 3, 40, (3, 1, 1)),
    Shape("team_of_four", 1, 3, 11, 25, 13, 96, expects={"team": 4, "x_tile": 1}),
    Shape("stage1", 2, 3, 11, 25, 2, 96, (3, 1, 1), expects={"team": 2, "node_slices": 3}),
    Shape("frames", 1, 64, 23, 25, 2, 64, multiprocessors=1, expects={"window_groups": 8, "A_tile": 0, "x_ahead": 1}),
    Shape("coco_frames", 2, 96, 9, 17, 7, 32, multiprocessors=1, expects={"x_tile": 0, "A_tile": 0}),
    Shape("ahead", 1, 96, 20, 25, 3, 96, (3, 1, 1), multiprocessors=1, expects={"gy_ahead": 1, "x_ahead": 0}),
    Shape("no_room_ahead", 1, 32, 18, 25, 4, 64, (5, 1, 1), multiprocessors=1, expects={"gy_ahead": 0, "A_tile": 2}),
    Shape("one_weight_buffer", 1, 192, 10, 17, 5, 32, (3, 1, 1), multiprocessors=1, expects={"weight_buffers": 1}),
    Shape("no_room_for_x", 1, 192, 6, 25, 3, 32, (5, 1, 1), shared_kb=99, multiprocessors=1, expects={"x_room": 0}),
    Shape("stride2", 2, 32, 13, 17, 3, 32, (5, 2, 1), multiprocessors=1, expects={"pieces": 3}),
    Shape("dilated", 2, 32, 13, 17, 4, 32, (3, 1, 2), multiprocessors=1),
    Shape("stride3_dilated2", 1, 40, 19, 33, 3, 24, (2, 3, 2), multiprocessors=1, expects={"x_tile": 2}),
    Shape("tau7_dilated3", 2, 16, 12, 3, 2, 8, (7, 1, 3), multiprocessors=1),
    Shape("64_joints", 1, 24, 5, 64, 2, 16, (3, 1, 1), multiprocessors=1, expects={"node_slices": 3}),
    Shape("unread_frames", 2, 16, 15, 4, 2, 8, (2, 4, 6), multiprocessors=1),
    Shape("strided_without_window", 1, 256, 7, 10, 2, 72, (1, 2, 1), multiprocessors=1, expects={"x_slices": 2}),
    Shape("512_channels", 1, 512, 4, 10, 2, 32, (3, 1, 1), multiprocessors=1, expects={"x_slices": 3}),
    Shape("one_warp", 1, 96, 2, 46, 1, 8, (7, 1, 1), expects={"weight_warps": 1, "weight_slices": 3}),
    Shape("one_joint", 2, 5, 7, 1, 1, 8, (5, 1, 1)),
    Shape("as_forward", 2, 32, 3, 5, 2, 48, expects={"as_forward": 1}),  # grad_x
    Shape("unread_first_frame", 2, 16, 13, 5, 2, 16, (2, 2, 3), multiprocessors=1),
]
BY_NAME = {shape.name: shape for shape in SHAPES}
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def source() -> Iterator[emulator.Kernels]:
    return emulator.build(*SOURCES, LAUNCHERS)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_gradients(source: emulator.Kernels, shape: Shape) -> None:
    """Route S with every check on, copies landing as late and as early as can be."""
    plan = backward_kernels.plan(source, shape)
    assert plan["refused"] == 0
    assert {name: plan[name] for name in shape.expects} == shape.expects
    number = SHAPES.index(shape)
    dtype = DTYPES[number % 2]
    inputs = shape.inputs(dtype)
    landing = ("late", "early")[number // 2 % 2]
    assert_exact_enough(backward_kernels.run(source, shape, inputs, dtype, landing=landing), shape, inputs)


def test_any_strides_a_residual_and_float_gradients(source: emulator.Kernels) -> None:
    shape, dtype = BY_NAME["ragged"], torch.bfloat16
    inputs = shape.inputs(dtype)
    residual = shape.inputs(dtype, seed=1)["A"]
    exact_sum = inputs | {"A": (inputs["A"] + residual).to(dtype).double()}
    found = backward_kernels.run(
        source, shape, inputs, residual=residual, transposed=True, in_float=True, landing="late"
    )
    assert_exact_enough(found, shape, exact_sum)
    rounded = backward_kernels.run(source, shape, inputs, residual=residual)
    for name in ("A", "weight"):
        assert (torch.from_numpy(found.arrays[name]).to(dtype).double() == rounded.tensors()[name]).all()


def test_any_strides_of_a_forward_pass(source: emulator.Kernels) -> None:
    shape = BY_NAME["as_forward"]
    inputs = shape.inputs(torch.bfloat16)
    found = backward_kernels.run(source, shape, inputs, wanted=("x",), transposed=True)
    assert_exact_enough(found, shape, inputs)


@pytest.mark.parametrize("name", ["ragged", "frames", "stride2", "unread_frames", "unread_first_frame", "dilated"])
def test_a_nan_stays_where_it_belongs(source: emulator.Kernels, name: str) -> None:
    """A NaN in one frame of x or one window of gy reaches exactly what the reference makes NaN."""
    shape = BY_NAME[name]
    for what, place in (("x", (0, 0, shape.T // 2, 0)), ("gy", (0, 0, shape.windows // 2, shape.nodes - 1))):
        inputs = shape.inputs(torch.bfloat16)
        inputs[what][place] = float("nan")
        found = backward_kernels.run(source, shape, inputs, checks=False).tensors()
        for gradient, tensor in backward_kernels.exact(shape, inputs).items():
            assert (found[gradient].isnan() == tensor.isnan()).all(), f"NaN in {what}: grad_{gradient}"
    # The last frame of stride 4 over 15 frames is read by no window; the first of the other shape only by window -1.
    if name.startswith("unread"):
        inputs = shape.inputs(torch.bfloat16)
        correct = backward_kernels.exact(shape, inputs)
        unread = [f for f in range(shape.T) if (correct["x"][:, :, f] == 0).all()]
        assert unread
        inputs["x"][:, :, unread] = float("nan")
        found = backward_kernels.run(source, shape, inputs, checks=False).tensors()
        assert not any(tensor.isnan().any() for tensor in found.values())


@pytest.mark.parametrize("name", ["ragged", "ahead", "stride2"])
def test_results_repeat_bit_for_bit(source: emulator.Kernels, name: str) -> None:
    """Whatever the order of blocks and warps and the arrival of copies."""
    shape = BY_NAME[name]
    inputs = shape.inputs(torch.bfloat16)
    first, *others = (
        backward_kernels.run(source, shape, inputs, in_float=True, seed=seed, checks=False, landing=landing).arrays
        for seed, landing in ((0, "late"), (1, "early"), (2, "random"))
    )
    for other in others:
        assert all((first[gradient] == other[gradient]).all() for gradient in first)


def test_gradients_alone(source: emulator.Kernels) -> None:
    """Each is computed without the others, with the same bits."""
    shape = BY_NAME["ragged"]
    inputs = shape.inputs(torch.bfloat16)
    together = backward_kernels.run(source, shape, inputs, checks=False).arrays
    for gradient in backward_kernels.GRADIENTS:
        alone = backward_kernels.run(source, shape, inputs, wanted=(gradient,), checks=False).arrays
        assert list(alone) == [gradient]
        assert (alone[gradient] == together[gradient]).all()


def test_an_empty_batch(source: emulator.Kernels) -> None:
    shape = Shape("empty", 0, 16, 7, 5, 3, 40, (3, 1, 1))
    found = backward_kernels.run(source, shape, shape.inputs(torch.bfloat16), in_float=True).arrays
    assert not found["A"].any()
    assert not found["weight"].any()


def test_what_the_plan_refuses(source: emulator.Kernels) -> None:
    def refused(**sizes: int) -> int:
        values = {"N": 1, "C": 96, "T": 30, "V": 25, "K": 6, "O": 96, "window": (3, 1, 1)} | sizes
        return backward_kernels.plan(source, Shape("", **values))["refused"]

    assert refused() == 0
    assert refused(V=65) == refused(O=100) == 3
    assert refused(V=64, window=(7, 1, 1)) == 3
    assert refused(V=64, window=(5, 1, 1)) == refused(C=512, O=512) == 0
    for window in ((1, 1, 1), (3, 1, 1), (5, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2)):
        for channels in (96, 192):
            for joints in (17, 25):
                assert refused(C=channels, O=channels, V=joints, window=window, shared_kb=99) == 0
