"""The GPU's binding, plans and kernels over CPU tensors: the ordinary tests of ms_g3d, of blocks and of networks."""

import copy
import sys
from dataclasses import replace

import emulated
import golden_files
import pytest
import torch
from emulated import raw
from networks import build
from problems import LONG, MEDIUM, PROBLEMS, SMALL, Problem, gradients, reference_answer
from test_golden_networks import CASES, eager_error, groups, scales
from test_ops import strided
from test_ops_torch import WRONG, detached, wrong_call
from tolerance import FLOOR, assert_as_good_as_eager, error
from torch import Tensor

from msg3d_fast import Recognizer, _library, ops
from msg3d_fast.errors import UserError

TYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Sizes that the tensor-core plans take, with ragged edges: windows that are no multiple of a block's, odd channels.
TENSOR_CORES = [
    Problem("frames_17", N=2, C=48, O=48, K=3, V=17, T=9),
    Problem("frames_25", N=1, C=16, O=40, K=2, V=25, T=5),
    Problem("windows_17", N=2, C=48, O=48, K=2, V=17, T=7, window_size=3),
    Problem("windows_25_s2", N=1, C=24, O=96, K=2, V=25, T=9, window_size=5, window_stride=2),
    Problem("windows_dilated", N=1, C=16, O=48, K=2, V=17, T=11, window_size=3, window_dilation=2),
    Problem("windows_7", N=1, C=16, O=48, K=1, V=9, T=9, window_size=7),
]
LARGE = ("stage1", "stage1_gcn", "coco_stage2", "ntu_stage2")
VALUES = [
    pytest.param(problem, dtype, id=f"{problem.name}-{name}")
    for problem in [*PROBLEMS, *TENSOR_CORES]
    for name, dtype in TYPES.items()
    if problem.name not in LARGE or name in ("f32", "bf16")
]
GOLDEN = [case for case in CASES if "mstcn" not in case.id]  # an MSTCN runs none of the kernels outside `fuse`
pytestmark = pytest.mark.usefixtures("emulated_backend")


def answer(inputs: dict[str, Tensor], problem: Problem) -> dict[str, Tensor]:
    return gradients(ops.ms_g3d(*inputs.values(), *problem.window, backend="emulated"), inputs)


def assert_parity(found: dict[str, Tensor], problem: Problem) -> None:
    dtype = found["y"].dtype
    eager, exact = reference_answer(problem, dtype), reference_answer(problem, torch.float64)
    floor = 2.0**-42 if dtype == torch.float64 else FLOOR
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        ours, theirs = error(tensor, exact[name]), error(eager[name], exact[name])
        assert ours <= 2 * theirs + floor, f"{problem.name}, {name}: error {ours:.2e}, eager's own {theirs:.2e}"


@pytest.mark.parametrize(("problem", "dtype"), VALUES)
def test_values_and_gradients(problem: Problem, dtype: torch.dtype) -> None:
    found = answer(problem.inputs(dtype), problem)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    assert_parity(found, problem)


@pytest.mark.parametrize("device", emulated.DEVICES)
@pytest.mark.parametrize("problem", TENSOR_CORES, ids=lambda problem: problem.name)
def test_every_kind_of_device(problem: Problem, device: str) -> None:
    raw.set_device(*emulated.DEVICES[device])
    assert_parity(answer(problem.inputs(torch.bfloat16), problem), problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("problem", [LONG, *TENSOR_CORES[1:4]], ids=lambda problem: problem.name)
def test_two_runs_are_equal_bit_for_bit(problem: Problem, dtype: torch.dtype) -> None:
    first, second = (answer(problem.inputs(dtype), problem) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("problem", [MEDIUM, *TENSOR_CORES[:4]], ids=lambda problem: problem.name)
def test_a_broken_frame_stays_in_its_windows(problem: Problem, dtype: torch.dtype) -> None:
    inputs = {name: tensor.detach() for name, tensor in problem.inputs(dtype).items()}
    clean = ops.ms_g3d(*inputs.values(), *problem.window, backend="emulated")
    frame = problem.T // 2
    inputs["x"][0, :, frame] = torch.nan
    broken = ops.ms_g3d(*inputs.values(), *problem.window, backend="emulated")
    tau, stride, dilation = problem.window
    first = torch.arange(clean.shape[2]) * stride - (tau - 1) * dilation // 2
    reads = ((frame - first) % dilation == 0) & (frame >= first) & (frame - first <= (tau - 1) * dilation)
    reached = torch.zeros(clean.shape[0], clean.shape[2], dtype=torch.bool)
    reached[0] = reads
    assert torch.isnan(broken.permute(0, 2, 1, 3)[reached]).all()
    assert torch.equal(broken.permute(0, 2, 1, 3)[~reached], clean.permute(0, 2, 1, 3)[~reached])
    assert torch.equal(raw.ms_g3d_relu(*inputs.values(), *problem.window).isnan(), broken.isnan())


def test_kept_plans_are_of_one_window() -> None:
    """Calls that differ in stride or dilation alone have plans of their own."""
    for stride, dilation in ((1, 1), (1, 2), (2, 1), (2, 2)):
        problem = replace(TENSOR_CORES[2], window_stride=stride, window_dilation=dilation)
        assert_parity(answer(problem.inputs(torch.bfloat16), problem), problem)


@pytest.mark.parametrize("problem", SMALL, ids=lambda problem: problem.name)
def test_opcheck(problem: Problem) -> None:
    torch.library.opcheck(raw.ms_g3d, (*problem.inputs().values(), *problem.window))
    x, A, weight, bias = detached(problem)
    gy = torch.randn_like(raw.ms_g3d(x, A, weight, bias, *problem.window))
    torch.library.opcheck(raw.ms_g3d_relu, (x, A, weight, bias, *problem.window))
    torch.library.opcheck(raw.ms_g3d_backward_input, (gy, x, A, weight, *problem.window))
    for needs in ((True, True, True), (False, True, False)):
        torch.library.opcheck(raw.ms_g3d_backward_parameters, (gy, x, A, weight, *problem.window, *needs))


@pytest.mark.parametrize("window", [(1, 1, 1), (3, 2, 1), (3, 1, 2)], ids=str)
def test_gradcheck(window: tuple[int, int, int]) -> None:
    problem = Problem("gradcheck", 1, 2, 4, 2, 2, 3, *window)
    inputs = tuple(problem.inputs(torch.float64).values())
    torch.autograd.gradcheck(lambda *i: ops.ms_g3d(*i, *window, backend="emulated"), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("how", ["contiguous", "transposed", "every second", "shifted"])
@pytest.mark.parametrize("argument", ["x", "A", "weight", "bias"])
def test_strided_inputs(argument: str, how: str, dtype: torch.dtype) -> None:
    if argument == "bias" and how == "transposed":
        how = "contiguous"
    problem = TENSOR_CORES[2]
    expected = answer(problem.inputs(dtype), problem)
    inputs = problem.inputs(dtype)
    inputs[argument] = strided(inputs[argument].detach(), how).requires_grad_()
    before = raw.format_conversions()
    found = answer(inputs, problem)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (raw.format_conversions() > before) == (argument == "x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("problem", [MEDIUM, TENSOR_CORES[0], TENSOR_CORES[2]], ids=lambda problem: problem.name)
def test_relu_in_the_same_kernel(problem: Problem, dtype: torch.dtype) -> None:
    inputs = detached(problem, dtype)
    before = raw.launches()
    y = raw.ms_g3d(*inputs, *problem.window)
    launches, before = raw.launches() - before, raw.launches()
    assert torch.equal(raw.ms_g3d_relu(*inputs, *problem.window), y.relu())
    assert raw.launches() - before == launches


@pytest.mark.parametrize("case", WRONG)
def test_errors_say_the_same_as_everywhere(case: str) -> None:
    changes, line = WRONG[case]
    for way, kind in ((lambda **call: ops.ms_g3d(**call, backend="emulated"), UserError), (raw.ms_g3d, RuntimeError)):
        with pytest.raises(kind) as caught:
            way(**wrong_call(changes))
        assert str(caught.value) == f"ms_g3d: {line}"


def test_types_that_there_are_no_kernels_for() -> None:
    line = "expected float32, float64, float16 or bfloat16: convert it with .float()"
    for way, kind in ((lambda **call: ops.ms_g3d(**call, backend="emulated"), UserError), (raw.ms_g3d, RuntimeError)):
        with pytest.raises(kind, match=line):
            way(**wrong_call({"x": torch.zeros(2, 4, 6, 5).int()}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast_keeps_its_type(dtype: torch.dtype) -> None:
    inputs = MEDIUM.inputs()
    with torch.autocast("cpu", dtype):
        y = ops.ms_g3d(*inputs.values(), *MEDIUM.window, backend="emulated")
    assert y.dtype == dtype
    assert torch.equal(y, ops.ms_g3d(*(i.to(dtype) for i in inputs.values()), *MEDIUM.window, backend="emulated"))
    for name, grad in gradients(y, inputs).items():
        assert name == "y" or grad.dtype == torch.float32


# ---- blocks and networks


@pytest.mark.parametrize(("path", "mode"), GOLDEN)
def test_golden_float64(path, mode: str) -> None:
    found, scale = golden_files.results(path, mode, "emulated", torch.float64), scales(path, mode)
    for key, exact in golden_files.expected(path, mode).items():
        deviation = (found[key].double() - exact.double()).abs()
        allowed = 2.0**-24 * exact.double().abs() + 1e-12 * scale[key]
        assert (deviation <= allowed).all(), f"{key}: off by {deviation.max():.2e}"


@pytest.mark.parametrize(("path", "mode"), GOLDEN)
def test_golden_float32_is_as_good_as_eager(path, mode: str) -> None:
    for group, found in groups(golden_files.results(path, mode, "emulated", torch.float32), path, mode).items():
        assert_as_good_as_eager(found, eager_error(path, mode)[group], group)


def tiny(backend: str = "emulated") -> Recognizer:
    torch.manual_seed(0)
    return build(backend, base_channels=16, num_gcn_scales=3, num_g3d_scales=2).train()


def trained(network: Recognizer, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = network(x)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(x)))
    loss.backward()
    grads = torch.cat([p.grad.flatten() for p in network.parameters()])
    return {"logits": logits.detach().float(), "gradients": grads}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "autocast_bf16"])
def test_a_network_trains(dtype: torch.dtype) -> None:
    x = torch.randn(2, 2, 8, 17, 3)
    exact = trained(tiny("reference").double(), x.double(), torch.float32)
    eager = trained(tiny("reference"), x, dtype)
    before = raw.launches()
    found = trained(tiny(), x, dtype)
    assert raw.launches() - before >= 9 * 3, "nine graph convolutions, forwards and backwards"
    for name in found:
        scale = exact[name].norm()
        ours, theirs = ((v[name].double() - exact[name]).norm() / scale for v in (found, eager))
        assert ours <= 2 * theirs + FLOOR, name


def test_absent_persons_are_computed_once() -> None:
    network = tiny().eval()
    x = torch.randn(3, 2, 8, 17, 3)
    x[:, 1] = 0
    padded = copy.deepcopy(network)
    padded.backbone.skip_absent = False
    torch.testing.assert_close(network(x), padded(x))


def test_where_it_is_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.delitem(sys.modules, "msg3d_fast._emulated", raising=False)
    monkeypatch.setattr(_library, "import_module", missing)
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    with pytest.raises(UserError, match=r"is not built: run 'python setup.py build_emulated' in the source folder"):
        ops.ms_g3d(**wrong_call({}), backend="emulated")
