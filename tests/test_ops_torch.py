"""ms_g3d among torch's machinery: opcheck, gradcheck, compile, export, autocast; and its answers to wrong arguments."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import LONG, MEDIUM, PROBLEMS, SMALL, Problem, gradients
from torch import Tensor

from msg3d_fast import _library, ops, reference
from msg3d_fast.errors import UserError

raw = torch.ops.msg3d_fast
small = pytest.mark.parametrize("problem", SMALL, ids=lambda problem: problem.name)


def detached(problem: Problem, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [tensor.detach() for tensor in problem.inputs(dtype).values()]


@small
def test_opcheck_forward(problem: Problem) -> None:
    torch.library.opcheck(raw.ms_g3d, (*problem.inputs().values(), *problem.window))


@small
def test_opcheck_backward(problem: Problem) -> None:
    x, A, weight, bias = detached(problem)
    gy = torch.randn_like(ops.ms_g3d(x, A, weight, bias, *problem.window))
    torch.library.opcheck(raw.ms_g3d_backward_input, (gy, x, A, weight, *problem.window))
    for needs in ((True, True, True), (False, True, False)):
        torch.library.opcheck(raw.ms_g3d_backward_parameters, (gy, x, A, weight, *problem.window, *needs))


@pytest.mark.parametrize("order", ["project_first", "aggregate_first"])
@pytest.mark.parametrize("window", [(1, 1, 1), (3, 2, 1), (3, 1, 2), (2, 1, 1)], ids=str)
def test_gradcheck(window: tuple[int, int, int], order: str) -> None:
    problem = Problem("gradcheck", 1, 2, 4, 2, 2, 3, *window)
    _library.set_order(order)
    try:
        torch.autograd.gradcheck(lambda *i: ops.ms_g3d(*i, *window), tuple(problem.inputs(torch.float64).values()))
    finally:
        _library.set_order("auto")


def test_no_second_derivative() -> None:
    x, *others = PROBLEMS[0].inputs().values()
    (grad,) = torch.autograd.grad(ops.ms_gcn(x, *others).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives; use backend='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend: str) -> None:
    inputs = MEDIUM.inputs()
    expected = gradients(ops.ms_g3d(*inputs.values(), *MEDIUM.window) * 2, inputs)
    compiled = torch.compile(lambda *i: ops.ms_g3d(*i, *MEDIUM.window) * 2, fullgraph=True, backend=backend)
    found = gradients(compiled(*inputs.values()), inputs)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_compiles_for_any_length() -> None:
    compiled = torch.compile(lambda *i: ops.ms_g3d(*i, *LONG.window), fullgraph=True, backend="aot_eager", dynamic=True)
    x, *others = detached(LONG)
    for T in (70, 41, 12):
        clip = x[:, :, :T].contiguous(memory_format=torch.channels_last)
        assert torch.equal(compiled(clip, *others), ops.ms_g3d(clip, *others, *LONG.window))


def test_exports() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, A: Tensor, weight: Tensor) -> Tensor:
            return ops.ms_gcn(x, A, weight)

    inputs = tuple(detached(PROBLEMS[0])[:3])
    assert torch.equal(torch.export.export(Layer(), inputs).module()(*inputs), ops.ms_gcn(*inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_autocast_runs_in_float32(dtype: torch.dtype) -> None:
    inputs = {name: tensor.detach().to(dtype) for name, tensor in MEDIUM.inputs().items()}
    inputs["A"] = inputs["A"].float()  # parameters stay float32 under autocast
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    with torch.autocast("cpu", dtype):
        y = ops.ms_g3d(*inputs.values(), *MEDIUM.window)
    assert y.dtype == torch.float32
    assert torch.equal(y, ops.ms_g3d(*(tensor.float() for tensor in inputs.values()), *MEDIUM.window))
    for name, grad in gradients(y, inputs).items():
        assert name == "y" or grad.dtype == inputs[name].dtype


def test_the_reference_runs_in_autocasts_type() -> None:
    inputs = {name: tensor.detach().float().requires_grad_() for name, tensor in MEDIUM.inputs().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.ms_g3d(*inputs.values(), *MEDIUM.window, backend="reference")
    assert y.dtype == torch.bfloat16
    exact = ops.ms_g3d(*inputs.values(), *MEDIUM.window, backend="reference")
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))
    assert all(grad.dtype == torch.float32 for name, grad in gradients(y, inputs).items() if name != "y")


def test_fake_cuda_and_meta_tensors_have_shapes() -> None:
    on_meta = [tensor.to("meta") for tensor in detached(MEDIUM)]
    y = ops.ms_g3d(*on_meta, *MEDIUM.window)
    assert y.shape == (MEDIUM.N, MEDIUM.O, MEDIUM.T, 3 * MEDIUM.V)
    assert y.is_contiguous(memory_format=torch.channels_last)
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 4, 6, 5, device="cuda")
        A, weight = torch.empty(2, 5, 5, device="cuda"), torch.empty(8, 2, 4, device="cuda")
        assert raw.ms_g3d(x, A, weight, None, 1, 1, 1).device.type == "cuda"
        if _library.info()["cuda_archs"]:
            assert ops.ms_gcn(x, A, weight).shape == (2, 8, 6, 5)
            assert ops.ms_gcn(x.half(), A.half(), weight.half()).dtype == torch.float16
        else:
            with pytest.raises(UserError, match=r"this build of msg3d_fast has no CUDA .*: install it where nvcc"):
                ops.ms_gcn(x, A, weight)


# What is wrong -> (what to change in a right call of window_size 3, the one line).
WRONG = {
    "window_size": ({"window_size": 0}, "window_size is 0; expected at least 1"),
    "window_stride": ({"window_stride": 0}, "window_stride is 0; expected at least 1"),
    "window_dilation": ({"window_dilation": -1}, "window_dilation is -1; expected at least 1"),
    "x dimensions": (
        {"x": torch.zeros(4, 6, 5)},
        "x has shape (4, 6, 5); expected (N, C, T, V): fold persons into N, one row per clip",
    ),
    "no frames": (
        {"x": torch.zeros(2, 4, 0, 5)},
        "x has shape (2, 4, 0, 5); expected (N, C, T, V) with at least one channel, frame and joint",
    ),
    "A of another layout": (
        {"A": torch.zeros(2, 51, 51)},
        "A has shape (2, 51, 51); expected (K, 15, 15), destination before source, for window_size 3 and the 5 joints "
        "of x: build it for this window and layout",
    ),
    "A without scales": (
        {"A": torch.zeros(0, 15, 15)},
        "A has shape (0, 15, 15); expected (K, 15, 15), destination before source, for window_size 3 and the 5 joints "
        "of x: build it for this window and layout",
    ),
    "weight of a convolution": (
        {"weight": torch.zeros(8, 8, 1, 1)},
        "weight has shape (8, 8, 1, 1); expected (O, 2, 4) for the 2 scales of A and the 4 channels of x: view the 1x1 "
        "convolution's weight as (O, K, C)",
    ),
    "weight of other scales": (
        {"weight": torch.zeros(8, 3, 4)},
        "weight has shape (8, 3, 4); expected (O, 2, 4) for the 2 scales of A and the 4 channels of x: view the 1x1 "
        "convolution's weight as (O, K, C)",
    ),
    "bias": ({"bias": torch.zeros(7)}, "bias has shape (7,); expected (8,) for the output channels of weight, or None"),
    "too few frames": (
        {"x": torch.zeros(2, 4, 1, 5), "A": torch.zeros(2, 10, 10), "window_size": 2},
        "x has 1 frames; expected at least 2 for window_size 2 and window_dilation 1: pad x or use an odd window_size",
    ),
    "A's type": (
        {"A": torch.zeros(2, 15, 15).double()},
        "A is float64; expected float32 like x: convert it with .to(x.dtype)",
    ),
    "weight's type": (
        {"weight": torch.zeros(8, 2, 4).bfloat16()},
        "weight is bfloat16; expected float32 like x: convert it with .to(x.dtype)",
    ),
    "bias's type": (
        {"bias": torch.zeros(8).double()},
        "bias is float64; expected float32 like x: convert it with .to(x.dtype)",
    ),
}


def wrong_call(changes: dict[str, object]) -> dict[str, object]:
    right = {"x": torch.zeros(2, 4, 6, 5), "A": torch.zeros(2, 15, 15), "weight": torch.zeros(8, 2, 4)}
    right |= {"bias": torch.zeros(8), "window_size": 3, "window_stride": 1, "window_dilation": 1}
    return {**right, **changes}


def through_door(**call: object) -> Tensor:
    return ops.ms_g3d(**call)


def through_reference(**call: object) -> Tensor:
    return ops.ms_g3d(**call, backend="reference")


def through_operator(**call: object) -> Tensor:
    return raw.ms_g3d(**call)


def through_fake(**call: object) -> Tensor:
    return raw.ms_g3d(
        **{name: value.to("meta") if isinstance(value, Tensor) else value for name, value in call.items()}
    )


@pytest.mark.parametrize("way", [through_door, through_reference, through_operator, through_fake])
@pytest.mark.parametrize("case", WRONG)
def test_errors_say_the_same_everywhere(case: str, way: Callable[..., Tensor]) -> None:
    changes, line = WRONG[case]
    with pytest.raises(RuntimeError if way is through_operator else UserError) as caught:
        way(**wrong_call(changes))
    assert str(caught.value) == f"ms_g3d: {line}"


@pytest.mark.parametrize("name", ["x", "A", "weight", "bias"])
def test_what_is_no_tensor(name: str) -> None:
    for backend in ("native", "reference"):
        with pytest.raises(UserError, match=f"ms_g3d: {name} is a ndarray; expected a tensor: use torch.as_tensor"):
            ops.ms_g3d(**wrong_call({name: np.zeros((2, 3))}), backend=backend)


def test_half_precision_without_autocast() -> None:
    line = "x is float16; expected float32 or float64: convert it with .float(), or run under torch.autocast"
    for way, kind in ((through_door, UserError), (through_operator, RuntimeError)):
        with pytest.raises(kind) as caught:
            way(**wrong_call({"x": torch.zeros(2, 4, 6, 5).half()}))
        assert str(caught.value) == f"ms_g3d: {line}"


def test_gradient_of_the_wrong_shape_or_type() -> None:
    x, A, weight, _ = detached(PROBLEMS[0])
    with pytest.raises(
        RuntimeError, match=r"^ms_g3d: gy has shape \(1, 2, 3, 4\); expected the output's \(2, 8, 6, 5\)$"
    ):
        raw.ms_g3d_backward_input(torch.zeros(1, 2, 3, 4), x, A, weight, 1, 1, 1)
    with pytest.raises(RuntimeError, match=r"^ms_g3d: gy is float64; expected float32 like x"):
        raw.ms_g3d_backward_input(torch.zeros(2, 8, 6, 5).double(), x, A, weight, 1, 1, 1)


def test_backend_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    call = wrong_call({})
    monkeypatch.delenv("MSG3D_BACKEND", raising=False)
    assert ops.resolve_backend(None) == "native"
    monkeypatch.setenv("MSG3D_BACKEND", "reference")
    assert ops.resolve_backend(None) == "reference"
    assert ops.resolve_backend("native") == "native"
    assert torch.equal(ops.ms_g3d(**call), reference.ms_g3d(**call))
    with pytest.raises(UserError, match="backend is 'fast'; expected one of native, reference, emulated"):
        ops.ms_g3d(**call, backend="fast")
