"""ms_g3d and ms_gcn: values and gradients of the native backend, and the reference itself against plain loops."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MEDIUM, PROBLEMS, SMALL, Problem, assert_parity, gradients, reference_answer
from tolerance import error
from torch import Tensor

from msg3d_fast import _library, ops, reference

by_name = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
ORDERS = ("project_first", "aggregate_first")


@pytest.fixture(autouse=True)
def _own_choices_back() -> Iterator[None]:
    yield
    _library.set_isa("auto")
    _library.set_order("auto")


def native(inputs: dict[str, Tensor], problem: Problem) -> dict[str, Tensor]:
    return gradients(ops.ms_g3d(*inputs.values(), *problem.window, backend="native"), inputs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@by_name
def test_values_and_gradients(problem: Problem, dtype: torch.dtype, order: str) -> None:
    _library.set_order(order)
    found = native(problem.inputs(dtype), problem)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    assert_parity(found, problem)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("isa", _library.info().get("supported_isas", ["auto"]))
@pytest.mark.parametrize("problem", [*SMALL, MEDIUM], ids=lambda problem: problem.name)
def test_every_instruction_set(problem: Problem, isa: str, order: str) -> None:
    _library.set_isa(isa)
    _library.set_order(order)
    assert _library.info()["isa"] == isa
    for dtype in (torch.float32, torch.float64):
        assert_parity(native(problem.inputs(dtype), problem), problem)


# What the one pass keeps of a clip, several megabytes, lets it take two or one of these three at a time.
GROUPS = Problem("groups_of_clips", N=3, C=3, T=1300, V=25, K=2, O=16, window_size=5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("problem", [*PROBLEMS, GROUPS], ids=lambda problem: problem.name)
def test_all_gradients_in_one_pass(problem: Problem, order: str) -> None:
    x, A, weight, _ = problem.inputs(torch.float64).values()
    call = (x, A, weight, *problem.window)
    native = torch.ops.msg3d_fast
    with torch.no_grad():
        y = ops.ms_g3d(x, A, weight, None, *problem.window)
        gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        _library.set_order(order)
        found = native.ms_g3d_backward(gy, *call)
        _library.set_order(next(other for other in ORDERS if other != order))  # shares nothing with it
        grad_A, grad_weight, _ = native.ms_g3d_backward_parameters(gy, *call, True, True, False, False)
        expected = native.ms_g3d_backward_input(gy, *call, False), grad_A, grad_weight
    for tensor, other in zip(found, expected, strict=True):
        assert error(tensor, other) < 1e-13


def test_ms_gcn_is_the_window_of_one() -> None:
    inputs = PROBLEMS[0].inputs()
    expected = ops.ms_g3d(*inputs.values(), window_size=1)
    assert torch.equal(ops.ms_gcn(*inputs.values()), expected)
    assert torch.allclose(reference.ms_gcn(*inputs.values()), expected, atol=1e-5)


def test_without_bias() -> None:
    problem = MEDIUM
    inputs = problem.inputs()
    bias = inputs.pop("bias")
    found = native({**inputs, "bias": torch.zeros_like(bias, requires_grad=True)}, problem)
    y = ops.ms_g3d(*inputs.values(), None, *problem.window)
    assert torch.equal(y, found["y"])
    for name, grad in gradients(y, inputs).items():
        assert torch.equal(grad, found[name])


@pytest.mark.parametrize(
    "wanted", [("x",), ("A",), ("weight",), ("bias",), ("x", "bias"), ("A", "weight")], ids="+".join
)
def test_only_the_gradients_that_are_wanted(wanted: tuple[str, ...]) -> None:
    everything = native(MEDIUM.inputs(), MEDIUM)
    inputs = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in MEDIUM.inputs().items()}
    y = ops.ms_g3d(*inputs.values(), *MEDIUM.window)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(gy.contiguous(memory_format=torch.channels_last))
    for name, tensor in inputs.items():
        assert torch.equal(tensor.grad, everything[name]) if name in wanted else tensor.grad is None


def strided(tensor: Tensor, how: str) -> Tensor:
    if how == "contiguous":
        return tensor.contiguous()
    if how == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "every second":
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan, dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    shifted = torch.full((tensor.numel() + 1,), torch.nan, dtype=tensor.dtype)[1:].view(tensor.shape)  # odd alignment
    return shifted.copy_(tensor)


@pytest.mark.parametrize("how", ["contiguous", "transposed", "every second", "shifted"])
@pytest.mark.parametrize("argument", ["x", "A", "weight", "bias"])
def test_strided_inputs(argument: str, how: str) -> None:
    if argument == "bias" and how == "transposed":
        how = "contiguous"
    expected = native(MEDIUM.inputs(), MEDIUM)
    inputs = MEDIUM.inputs()
    inputs[argument] = strided(inputs[argument].detach(), how).requires_grad_()
    before = ops.format_conversions()
    found = native(inputs, MEDIUM)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (ops.format_conversions() > before) == (argument == "x"), "only x has to be copied, and that is counted"


def test_gradient_of_any_strides() -> None:
    inputs = MEDIUM.inputs()
    y = ops.ms_g3d(*inputs.values(), *MEDIUM.window)
    expanded = torch.autograd.grad(y.sum(), list(inputs.values()), retain_graph=True)
    ones = torch.ones(y.shape).contiguous(memory_format=torch.channels_last)
    dense = torch.autograd.grad(y, list(inputs.values()), ones)
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def plain_loops(x: Tensor, A: Tensor, weight: Tensor, bias: Tensor, window: tuple[int, int, int]) -> Tensor:
    """The formula at the head of reference.py, one index at a time."""
    (N, C, T, V), (O, K, _), (tau, stride, dilation) = x.shape, weight.shape, window  # noqa: E741
    padding = ((tau - 1) * dilation) // 2
    T_out = (T + 2 * padding - dilation * (tau - 1) - 1) // stride + 1
    y = torch.zeros(N, O, T_out, tau * V, dtype=x.dtype)
    for n, t, k, node, slot, u in torch.cartesian_prod(*map(torch.arange, (N, T_out, K, tau * V, tau, V))).tolist():
        frame = t * stride + slot * dilation - padding
        if 0 <= frame < T:
            for o in range(O):
                dot = sum(weight[o, k, c] * x[n, c, frame, u] for c in range(C))
                y[n, o, t, node] += A[k, node, slot * V + u] * dot
    return y + bias[:, None, None]


@pytest.mark.parametrize("window", [(1, 1, 1), (3, 1, 1), (3, 2, 2), (2, 1, 1)], ids=str)
def test_reference_is_the_formula(window: tuple[int, int, int]) -> None:
    problem = Problem("loops", 1, 2, 5, 2, 2, 2, *window)
    inputs = {name: tensor.detach() for name, tensor in problem.inputs(torch.float64).items()}
    found = reference.ms_g3d(*inputs.values(), *window)
    assert torch.allclose(found, plain_loops(*inputs.values(), window), atol=1e-12)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    size = st.integers
    tau, stride, dilation = draw(size(1, 9)), draw(size(1, 3)), draw(size(1, 3))
    smallest_T = 1 + (tau - 1) * dilation % 2
    V = draw(size(1, max(1, 64 // tau)))
    N, C, K, O = draw(size(0, 3)), draw(size(1, 20)), draw(size(1, 13)), draw(size(1, 40))  # noqa: E741
    return Problem("drawn", N, C, draw(size(smallest_T, 40)), V, K, O, tau, stride, dilation)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), order=st.sampled_from(ORDERS))
def test_random_problems(problem: Problem, order: str) -> None:
    _library.set_order(order)
    found, exact = native(problem.inputs(torch.float64), problem), reference_answer(problem, torch.float64)
    for name, tensor in found.items():
        scale = exact[name].abs().max().item() if exact[name].numel() else 1.0
        assert torch.allclose(tensor, exact[name], rtol=0, atol=1e-12 * max(scale, 1.0)), name
