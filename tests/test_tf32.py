"""float32 in tf32: the tensor-core kernels on the emulator, and when torch lets the operators take them."""

from collections.abc import Iterator
from dataclasses import replace

import backward_kernels as backward
import emulator
import forward_kernels as forward
import pytest
import torch
from emulated import raw
from forward_shapes import SHAPES, Shape
from problems import Problem, gradients, reference_answer
from test_backward_kernels import SHAPES as BACKWARD
from test_cuda_forward import EXPECTED_KERNEL
from test_fused_gpu import SMALL, Recorder, on_gpu
from test_inference import build, clips
from tolerance import FLOOR, error
from torch import Tensor

from msg3d_fast import ops

# One of each kernel; the sweep over all shapes is slow.
CORE = ("frames_17", "frames_28", "windows_17_3", "windows_both", "windows_25_3", "few_windows_17", "collapse_48")
KERNELS = [replace(shape, tf32=True) for shape in SHAPES]
# Of the backward kernels: every tile, a team, all ways of buffering.
BACKWARD_CORE = ("ragged", "stage1", "one_weight_buffer", "stride2", "stride3_dilated2", "unread_frames")
GRADIENTS = [replace(shape, tf32=True, expects={}) for shape in BACKWARD if shape.name != "one_warp"]
GRADIENTS += [backward.Shape("sliced_to_fit", 1, 192, 5, 64, 2, 16, tf32=True, expects={"weight_slices": 3})]
UNIT = 2.0**-11  # half of the distance between neighbours of ten bits of mantissa
PROBLEMS = [
    Problem("frames_17", N=2, C=48, O=48, K=3, V=17, T=9),
    Problem("frames_25", N=1, C=20, O=40, K=2, V=25, T=5),  # C is no multiple of 8
    Problem("windows_17", N=2, C=32, O=48, K=2, V=17, T=7, window_size=3),
    Problem("windows_25_s2", N=1, C=24, O=96, K=2, V=25, T=9, window_size=5, window_stride=2),
    Problem("windows_7", N=1, C=12, O=48, K=1, V=9, T=9, window_size=7, window_dilation=2),
    Problem("first_stage", N=1, C=3, O=48, K=6, V=17, T=5, window_size=3),
]
PLAIN = Problem("odd_channels", N=1, C=18, O=30, K=2, V=9, T=4, window_size=3)  # no tensor-core kernel takes them


@pytest.fixture(scope="module")
def kernels() -> emulator.Kernels:
    return emulator.build(*forward.SOURCES, forward.LAUNCHERS)


@pytest.fixture(autouse=True)
def _as_torch_is_by_default() -> Iterator[None]:
    yield
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.fp32_precision = torch.backends.fp32_precision = "none"


@pytest.fixture(scope="module")
def backward_kernels() -> emulator.Kernels:
    return emulator.build(*backward.SOURCES, backward.LAUNCHERS)


def of(shapes: list, core: tuple[str, ...] = CORE) -> list[object]:
    return [
        pytest.param(shape, id=shape.name, marks=[] if shape.name in core else [pytest.mark.slow]) for shape in shapes
    ]


def fitting(kernels: emulator.Kernels, shape: Shape) -> Shape:
    """The shape on a device that has room for its tile: elements of 32 bits take twice that of 16."""
    wider = replace(shape, shared_kb=227)
    return shape if forward.plan(kernels, shape)["kernel"] else wider


def fitting_backwards(kernels: emulator.Kernels, shape: backward.Shape) -> backward.Shape:
    return replace(shape, shared_kb=227) if backward.plan(kernels, shape)["refused"] else shape


@pytest.mark.parametrize("shape", of(KERNELS))
def test_kernels(kernels: emulator.Kernels, shape: Shape) -> None:
    shape = fitting(kernels, shape)
    kind = EXPECTED_KERNEL.get(shape.name, "few_channels" if shape.C <= 8 else "windows")
    assert forward.KERNELS[forward.plan(kernels, shape)["kernel"]] == kind
    inputs = shape.inputs(torch.float32)
    for relu, accumulate, landing in ((False, False, "late"), (True, bool(shape.out), "early")):
        found = forward.run(kernels, shape, inputs, relu=relu, accumulate=accumulate, landing=landing)
        forward.assert_exact_enough(found, shape, inputs, relu=relu, accumulate=accumulate)


@pytest.mark.slow
@pytest.mark.parametrize("shape", of(KERNELS))
def test_order_of_execution_changes_no_bit(kernels: emulator.Kernels, shape: Shape) -> None:
    shape = fitting(kernels, shape)
    inputs = shape.inputs(torch.float32)
    runs = [forward.run(kernels, shape, inputs, seed=i, landing=way) for i, way in enumerate(emulator.LANDINGS)]
    assert all(torch.equal(run.y, runs[0].y) for run in runs)


def from_ptx(kernels: emulator.Kernels, shape: Shape) -> emulator.Kernels:
    """The kernel of the shape's plan as nvcc made it, without all others."""
    plan = forward.plan(kernels, shape)
    kind = forward.KERNELS[plan["kernel"]]
    one = f"{kind}_kernel.*tf32" + ("" if kind == "few_channels" else f"ELi{plan['tile']}E")
    return emulator.build(*forward.SOURCES, forward.LAUNCHERS, arch="80", entries=f"pack_kernel.*tf32|{one}")


@pytest.mark.slow
@pytest.mark.skipif(emulator.find_nvcc() is None, reason="route P needs nvcc")
@pytest.mark.parametrize("name", ["frames_17", "frames_28", "windows_17_3", "windows_both", "few_windows_17"])
def test_what_nvcc_makes_of_them(kernels: emulator.Kernels, name: str) -> None:
    shape = next(shape for shape in KERNELS if shape.name == name)
    inputs = shape.inputs(torch.float32)
    for landing in emulator.LANDINGS:
        found = forward.run(from_ptx(kernels, shape), shape, inputs, route="ptx", landing=landing)
        forward.assert_exact_enough(found, shape, inputs)


@pytest.mark.slow
@pytest.mark.skipif(emulator.find_nvcc() is None, reason="route P needs nvcc")
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("V", [17, 25])
def test_what_a_layer_of_96_channels_costs(kernels: emulator.Kernels, V: int, window: int) -> None:
    """Counted on nvcc's PTX, modelled for an A100 as in test_cuda_forward_budgets.py; tf32 has half the products."""
    shape = Shape("layer", 1, 96, 24, V, 3, 96, (window, 1, 1), tf32=True)
    inputs = shape.inputs(torch.float32)
    found = forward.run(from_ptx(kernels, shape), shape, inputs, route="ptx", count=True, checks=False)
    forward.assert_exact_enough(found, shape, inputs)
    main = found.counters[1]
    clocks = sum(main["mma_clocks"]) / 4
    wavefronts, least = (sum(access[name] for access in main["shared"].values()) for name in ("wavefronts", "least"))
    x, y = main["global"]["x"]["read"] * 32, main["global"]["y"]["written"] * 32
    x_bytes, y_bytes = 4 * inputs["x"].numel(), 4 * found.y.numel()
    moved = 32 * sum(buffer["read"] + buffer["written"] for buffer in main["global"].values())
    assert y == y_bytes
    assert x == x_bytes or (window > 1 and x + y <= 1.2 * (x_bytes + y_bytes))
    assert clocks <= 1.31 * shape.macs() / 512
    assert wavefronts <= clocks, "shared memory takes longer than the products"
    assert wavefronts <= 1.02 * least, "bank conflicts"
    assert moved / 47.4 <= 0.5 * clocks, "the second-level cache takes more than half of the products' time"


@pytest.mark.parametrize("name", ["frames_17", "windows_17_3", pytest.param("few_windows_17", marks=pytest.mark.slow)])
def test_a_bad_frame_stays_where_it_is_read(kernels: emulator.Kernels, name: str) -> None:
    """NaN, as the hardware makes them too, and infinity in one frame reach the windows that read it, and no other."""
    shape = next(replace(shape, N=2) for shape in KERNELS if shape.name == name)
    inputs = shape.inputs(torch.float32)
    clean = forward.run(kernels, shape, inputs).y
    frame, tau = shape.T - 1, shape.window[0]
    reads = torch.zeros(shape.N, shape.windows, dtype=torch.bool)
    reads[0, max(0, frame - tau // 2) :] = True
    for bad in (float("nan"), float("inf")):
        x = inputs["x"].clone()
        x[0, :, frame] = bad
        spoilt = forward.run(kernels, shape, inputs | {"x": x}).y
        untouched = ~reads[:, None, :, None].expand_as(clean)
        assert torch.equal(spoilt[untouched], clean[untouched])
        assert not spoilt[~untouched].isfinite().any()


@pytest.mark.parametrize("shape", of(GRADIENTS, BACKWARD_CORE))
def test_gradients(backward_kernels: emulator.Kernels, shape: backward.Shape) -> None:
    landing = ("late", "early")[GRADIENTS.index(shape) % 2]
    shape = fitting_backwards(backward_kernels, shape)
    plan = backward.plan(backward_kernels, shape)
    assert plan["refused"] == 0
    assert {name: plan[name] for name in shape.expects} == shape.expects
    inputs = shape.inputs(torch.float32)
    found = backward.run(backward_kernels, shape, inputs, landing=landing)
    backward.assert_exact_enough(found, shape, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("shape", of(GRADIENTS))
def test_gradients_repeat_bit_for_bit(backward_kernels: emulator.Kernels, shape: backward.Shape) -> None:
    shape = fitting_backwards(backward_kernels, shape)
    inputs = shape.inputs(torch.float32)
    first, *others = (
        backward.run(backward_kernels, shape, inputs, seed=seed, landing=landing).arrays
        for seed, landing in enumerate(emulator.LANDINGS)
    )
    assert all((other[name] == first[name]).all() for other in others for name in first)


@pytest.mark.parametrize("name", ["ragged", "stride2", "unread_frames", pytest.param("frames", marks=pytest.mark.slow)])
def test_a_bad_value_stays_in_its_gradients(backward_kernels: emulator.Kernels, name: str) -> None:
    """A NaN in one frame of x or one window of gy reaches exactly what the reference makes NaN."""
    shape = fitting_backwards(backward_kernels, next(shape for shape in GRADIENTS if shape.name == name))
    for what, place in (("x", (0, 0, shape.T // 2, 0)), ("gy", (0, 0, shape.windows // 2, shape.nodes - 1))):
        inputs = shape.inputs(torch.float32)
        inputs[what][place] = float("nan")
        found = backward.run(backward_kernels, shape, inputs, checks=False).tensors()
        for gradient, tensor in backward.exact(shape, inputs).items():
            assert (found[gradient].isnan() == tensor.isnan()).all(), f"NaN in {what}: grad_{gradient}"


def answer(problem: Problem, inputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    inputs = inputs or problem.inputs(torch.float32)
    return gradients(ops.ms_g3d(*inputs.values(), *problem.window, backend="emulated"), inputs)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.usefixtures("emulated_backend")
def test_tf32_where_torch_allows_it(problem: Problem) -> None:
    """Without leave everything is float32, to the bit; with it all but bias' gradient, a sum alone, is tf32."""
    default, exact = answer(problem), reference_answer(problem, torch.float64)
    eager = reference_answer(problem, torch.float32)
    for name, tensor in default.items():
        assert error(tensor, exact[name]) <= 2 * error(eager[name], exact[name]) + FLOOR, name
    torch.backends.cuda.matmul.allow_tf32 = True
    allowed = answer(problem)
    assert torch.equal(allowed["bias"], default["bias"])
    for name in ("y", "x", "A", "weight"):
        # Operands are off by a unit at the most, two of them and the intermediate; sums average that out.
        assert UNIT / 16 < error(allowed[name], exact[name]) <= 3 * UNIT, name
    again = answer(problem)
    assert all(torch.equal(again[name], allowed[name]) for name in allowed)
    torch.backends.cuda.matmul.allow_tf32 = False
    assert all(torch.equal(tensor, default[name]) for name, tensor in answer(problem).items())


@pytest.mark.usefixtures("emulated_backend")
def test_what_has_no_such_kernel_stays_float32() -> None:
    default = answer(PLAIN)
    torch.backends.cuda.matmul.allow_tf32 = True
    assert all(torch.equal(tensor, default[name]) for name, tensor in answer(PLAIN).items())
    inputs = {name: tensor.detach().double().requires_grad_() for name, tensor in PROBLEMS[0].inputs().items()}
    exact = reference_answer(PROBLEMS[0], torch.float64)
    assert all(error(tensor, exact[name]) < 1e-6 for name, tensor in answer(PROBLEMS[0], inputs).items())


def test_every_way_in_which_torch_is_told() -> None:
    matmul = torch.backends.cuda.matmul
    assert not ops.allows_tf32(), "off by default"
    try:
        for precision, expected in (("high", True), ("medium", True), ("highest", False)):
            torch.set_float32_matmul_precision(precision)
            assert ops.allows_tf32() == expected
    finally:
        torch.set_float32_matmul_precision("highest")
    for value in (True, False):
        matmul.allow_tf32 = value
        assert ops.allows_tf32() == value
    matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"  # of everything that says nothing of its own
    assert ops.allows_tf32()
    matmul.fp32_precision = "ieee"
    assert not ops.allows_tf32()


def test_a_cpu_does_not_care() -> None:
    x, A, weight, bias = (tensor.detach() for tensor in PROBLEMS[0].inputs().values())
    default = ops.ms_gcn(x, A, weight, bias)
    torch.backends.cuda.matmul.allow_tf32 = True
    assert torch.equal(ops.ms_gcn(x, A, weight, bias), default)


@pytest.mark.usefixtures("emulated_backend")
def test_compiled_code_follows_the_flag() -> None:
    tensors = [tensor.detach() for tensor in PROBLEMS[0].inputs().values()]

    def run() -> Tensor:
        return ops.ms_gcn(*tensors, backend="emulated")

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    default = run()
    assert torch.equal(compiled(), default)
    torch.backends.cuda.matmul.allow_tf32 = True
    allowed = run()
    assert not torch.equal(allowed, default)
    assert torch.equal(compiled(), allowed)


@pytest.mark.usefixtures("emulated_backend")
def test_opcheck_with_tf32() -> None:
    problem = Problem("small", N=1, C=12, O=16, K=2, V=5, T=3)
    torch.library.opcheck(raw.ms_g3d, (*problem.inputs().values(), *problem.window, True))
    x, A, weight, bias = (tensor.detach() for tensor in problem.inputs().values())
    gy = torch.randn_like(raw.ms_g3d(x, A, weight, bias, *problem.window))
    torch.library.opcheck(raw.ms_g3d_backward_input, (gy, x, A, weight, *problem.window, True))
    needs = True, False, True
    torch.library.opcheck(raw.ms_g3d_backward_parameters, (gy, x, A, weight, *problem.window, *needs, True))


@pytest.mark.usefixtures("emulated_backend")
def test_a_fused_network_follows_the_flag() -> None:
    """Weights are packed for either precision, and windows folded in the same kernel."""
    model = build(**SMALL["authors"] | {"base_channels": 24})
    x, fused = clips(model, 1, 6), on_gpu(model)
    default = fused(x)
    torch.backends.cuda.matmul.allow_tf32 = True
    for _ in range(2):
        with Recorder() as recorder:
            allowed = fused(x)
        assert 0 < error(allowed, default) < 8 * UNIT
        assert recorder.calls["msg3d_fast_emulated::ms_g3d_collapse"] == 6
    assert recorder.calls["msg3d_fast_emulated::ms_g3d_pack"] == 0
    torch.backends.cuda.matmul.allow_tf32 = False
    assert torch.equal(fused(x), default)
