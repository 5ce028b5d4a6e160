"""The front door of the operators: checks, autocast, choice of backend; what torch must know of the native ones.

    y[n,o,t,w,v] = bias[o] + sum_k sum_c weight[o,k,c] * sum_{w',u} A[k,(w,v),(w',u)] * x[n,c, t*s + w'*d - p, u]

The native operators stand in csrc/library.cpp; here are their fake kernels (shapes for tracing) and gradients. The
backward pass keeps only the inputs and computes again what it needs.
"""

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import _library, reference
from .errors import UserError

BACKENDS = ("native", "reference", "emulated")


def resolve_backend(name: str | None) -> str:
    """Return the backend that `name` stands for; None means $MSG3D_BACKEND, else native.

    Raises:
        UserError: there is no such backend.
    """
    chosen = name or os.environ.get("MSG3D_BACKEND") or "native"
    if chosen not in BACKENDS:
        raise UserError(f"backend is {chosen!r}; expected one of {', '.join(BACKENDS)}")
    return chosen


def format_conversions() -> int:
    """Return how many activations and gradients were not channels_last and had to be copied since the import."""
    return torch.ops.msg3d_fast.format_conversions() if _library.available() else 0


def ms_g3d(
    x: Tensor,
    A: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    window_size: int = 3,
    window_stride: int = 1,
    window_dilation: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Multi-scale graph convolution over windows of frames.

        y[n,o,t,w,v] = bias[o] + sum_k sum_c weight[o,k,c] * sum_{w',u} A[k,(w,v),(w',u)] * x[n,c, t*s + w'*d - p, u]

    with p = ((tau-1)*d)//2, and frames outside the clip zero. Nodes (w, v) are numbered w*V + v.

    Args:
        x: (N, C, T, V), float32 or float64, on a GPU also float16 or bfloat16. Taken as it is if its memory is
            channels_last; anything else is copied, which `format_conversions` counts.
        A: (K, tau*V, tau*V), `A[k, destination, source]`; dense, the learned residual already added; any strides.
        weight: (O, K, C), the 1x1 convolution's (O, K*C, 1, 1) seen scale-major; any strides.
        bias: (O,) or None.
        window_size: tau, frames in a window.
        window_stride: s, frames from one window to the next.
        window_dilation: d, frames from one slot of a window to the next.
        backend: `native`, `reference`, `emulated` (the GPU's kernels on CPU tensors, for tests), or None for
            $MSG3D_BACKEND, else native. Never a silent fallback.

    Returns:
        (N, O, T_out, tau*V) with T_out = (T + 2p - d*(tau-1) - 1)//s + 1; channels_last from the native backend.

    Raises:
        UserError: a size, type or device that does not fit, or a backend that is not there.

    Memory and determinism: the native backend materialises no tensor of scales or windows, forwards or backwards; its
    workspace does not grow with N or T. Results repeat bit for bit, for any number of threads. Under autocast the CPU
    runs in float32 and returns float32, whatever autocast's type; a GPU runs and returns autocast's type and sums in
    float32; the reference runs in that type. Gradients cannot be differentiated again.

    Precision: float32 on a GPU (and `emulated`) is exact multiply-adds, unless torch allows tf32 for matrix products
    (`torch.backends.cuda.matmul.allow_tf32`): then operands are rounded to ten bits of mantissa and sums stay float32,
    forwards and backwards (the bias' gradient is such a sum alone). Sizes of which no tile fits into a GPU's shared
    memory stay exact: `msg3d-fast doctor --plan` names them.

    Equivalent to `reference.ms_g3d`.
    """
    chosen = resolve_backend(backend)
    for name, value in (("x", x), ("A", A), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and (value is not None or name != "bias"):
            raise UserError(f"ms_g3d: {name} is a {type(value).__name__}; expected a tensor: use torch.as_tensor")
    if chosen != "reference":
        x, A, weight, bias = prepared(chosen, x, A, weight, bias)
    elif _autocasts(x) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)  # as upstream's einsum and convolution do
        x, A, weight = x.to(dtype), A.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(x, A, weight, bias, window_size, window_stride, window_dilation)
    if chosen == "reference":
        return reference.ms_g3d(x, A, weight, bias, window_size, window_stride, window_dilation)
    window = window_size, window_stride, window_dilation
    return operators(chosen).ms_g3d(x, A, weight, bias, *window, allows_tf32())


def ms_gcn(x: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Multi-scale graph convolution frame by frame: `ms_g3d` with tau = s = d = 1.

        y[n,o,t,v] = bias[o] + sum_k sum_c weight[o,k,c] * sum_u A[k,v,u] * x[n,c,t,u]

    Args:
        x: (N, C, T, V), float32 or float64.
        A: (K, V, V), `A[k, destination, source]`.
        weight: (O, K, C), scale-major.
        bias: (O,) or None.
        backend: as in `ms_g3d`.

    Returns:
        (N, O, T, V).

    Raises:
        UserError: as `ms_g3d`.

    Equivalent to `reference.ms_gcn`.
    """
    return ms_g3d(x, A, weight, bias, window_size=1, backend=backend)


def _autocasts(x: Tensor) -> bool:
    kind = x.device.type  # the meta device has no autocast
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


@torch.compiler.assume_constant_result  # its guards hold the flag and compile again where that changes
def allows_tf32() -> bool:
    """Return whether torch lets matrix products of float32 on a GPU take tf32: `torch.backends.cuda.matmul`'s
    fp32_precision, which allow_tf32 and `torch.set_float32_matmul_precision` set too. Off by default."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def operators(backend: str) -> Any:
    """Return the namespace of the registered operators of `native` or `emulated`.

    Raises:
        LibraryUnavailable: the library that registers them is not there.
    """
    if backend == "emulated":
        if not torch.compiler.is_compiling():  # who traces has called it before
            _library.require_emulated()
            _register("msg3d_fast_emulated")
        return torch.ops.msg3d_fast_emulated
    _library.require()
    return torch.ops.msg3d_fast


def prepared(
    backend: str, x: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the arguments in the types that the backend takes on x's device, which autocast may have to change."""
    operators(backend)
    on_gpu = x.is_cuda or backend == "emulated"
    if backend == "emulated" and x.device.type not in ("cpu", "meta"):
        raise UserError(f"ms_g3d: x is on {x.device}; backend 'emulated' takes tensors on the CPU: use 'native'")
    if x.is_cuda:
        _library.require_cuda()
    elif x.device.type not in ("cpu", "meta"):
        raise UserError(
            f"ms_g3d: x is on {x.device}; there are native kernels for CPUs and CUDA devices: move the model and its "
            "input there, or use backend='reference'"
        )
    if _autocasts(x):
        to = torch.get_autocast_dtype(x.device.type) if on_gpu else torch.float32
        from_types = (torch.float16, torch.bfloat16, torch.float32)
        x, A, weight, bias = (t.to(to) if t is not None and t.dtype in from_types else t for t in (x, A, weight, bias))
    if x.dtype not in (_GPU_TYPES if on_gpu else _GPU_TYPES[:2]):
        fix = "convert it with .float()" + ("" if on_gpu else ", or run under torch.autocast")
        expected = "float32, float64, float16 or bfloat16" if on_gpu else "float32 or float64"
        raise UserError(f"ms_g3d: x is {_name(x.dtype)}; expected {expected}: {fix}")
    return x, A, weight, bias


_GPU_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _check(
    x: Tensor,
    A: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window_size: int,
    window_stride: int,
    window_dilation: int,
) -> tuple[int, int]:
    """Return (T_out, tau*V), or raise what csrc/torch/ms_g3d.cpp raises, in the same words."""

    def fail(words: str) -> None:
        raise UserError(f"ms_g3d: {words}")

    counts = {"window_size": window_size, "window_stride": window_stride, "window_dilation": window_dilation}
    for argument, value in counts.items():
        if value < 1:
            fail(f"{argument} is {value}; expected at least 1")
    if x.dim() != 4:
        fail(f"x has shape {_shape(x)}; expected (N, C, T, V): fold persons into N, one row per clip")
    _, C, T, V = x.shape
    if C == 0 or T == 0 or V == 0:
        fail(f"x has shape {_shape(x)}; expected (N, C, T, V) with at least one channel, frame and joint")
    nodes = window_size * V
    if A.dim() != 3 or A.shape[0] == 0 or A.shape[1] != nodes or A.shape[2] != nodes:
        fail(
            f"A has shape {_shape(A)}; expected (K, {nodes}, {nodes}), destination before source, for window_size "
            f"{window_size} and the {V} joints of x: build it for this window and layout"
        )
    K = A.shape[0]
    if weight.dim() != 3 or weight.shape[0] == 0 or weight.shape[1] != K or weight.shape[2] != C:
        fail(
            f"weight has shape {_shape(weight)}; expected (O, {K}, {C}) for the {K} scales of A and the {C} channels "
            "of x: view the 1x1 convolution's weight as (O, K, C)"
        )
    span = window_dilation * (window_size - 1)
    room = T + 2 * (span // 2) - span - 1
    if room < 0:
        fail(
            f"x has {T} frames; expected at least 2 for window_size {window_size} and window_dilation "
            f"{window_dilation}: pad x or use an odd window_size"
        )
    for argument, tensor in {"A": A, "weight": weight, "bias": bias}.items():
        if tensor is None:
            continue
        if argument == "bias" and (tensor.dim() != 1 or tensor.shape[0] != weight.shape[0]):
            fail(
                f"bias has shape {_shape(tensor)}; expected ({weight.shape[0]},) for the output channels of weight, "
                "or None"
            )
        if tensor.dtype != x.dtype:
            fail(f"{argument} is {_name(tensor.dtype)}; expected {_name(x.dtype)} like x: convert it with .to(x.dtype)")
        if tensor.device != x.device:
            fail(f"{argument} is on {tensor.device}; expected {x.device} like x: move it with .to(x.device)")
    return room // window_stride + 1, nodes


def _channels_last_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake(x: Tensor, A: Tensor, weight: Tensor, bias: Tensor | None, *window_and_more: Any) -> Tensor:
    T_out, nodes = _check(x, A, weight, bias, *window_and_more[:3])
    return _channels_last_like(x, (x.shape[0], weight.shape[0], T_out, nodes))


def _fake_statistics(x: Tensor, A: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _fake(x, A, weight, *rest), x.new_empty((2, weight.shape[0]), dtype=dtype)


def _fake_in_place(*_: Any) -> None:
    """Of what writes into a tensor that it is given."""


def _fake_backward_input(gy: Tensor, x: Tensor, A: Tensor, weight: Tensor, *window_and_tf32: int) -> Tensor:
    _check(x, A, weight, None, *window_and_tf32[:3])
    return _channels_last_like(x, x.shape)


def _fake_backward_parameters(
    gy: Tensor, x: Tensor, A: Tensor, weight: Tensor, *window_needs_and_tf32: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, A, weight, None, *window_needs_and_tf32[:3])
    shapes, needs = (A.shape, weight.shape, weight.shape[:1]), window_needs_and_tf32[3:6]
    grads = [x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)]
    return grads[0], grads[1], grads[2]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, A, weight, _, *ctx.window, ctx.tf32 = inputs
    ctx.save_for_backward(x, A, weight)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("ms_g3d: the native backend has no second derivatives; use backend='reference'")


@cache
def _register(namespace: str) -> None:
    """Tell torch the shapes and gradients of a namespace's operators."""
    native = getattr(torch.ops, namespace)

    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, A, weight = ctx.saved_tensors
        need_x, *needs = ctx.needs_input_grad[:4]
        common = gy, x, A, weight, *ctx.window
        grad_x = native.ms_g3d_backward_input(*common, ctx.tf32) if need_x else None
        grads = native.ms_g3d_backward_parameters(*common, *needs, ctx.tf32) if any(needs) else (None,) * 3
        return grad_x, *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 4

    torch.library.register_fake(f"{namespace}::ms_g3d", _fake)
    torch.library.register_fake(f"{namespace}::ms_g3d_statistics", _fake_statistics)
    torch.library.register_fake(f"{namespace}::ms_g3d_relu", _fake)
    torch.library.register_fake(f"{namespace}::ms_g3d_collapse", _fake_in_place)
    torch.library.register_fake(f"{namespace}::mstcn_folded", _fake_in_place)
    torch.library.register_fake(f"{namespace}::ms_g3d_backward_input", _fake_backward_input)
    torch.library.register_fake(f"{namespace}::ms_g3d_backward_parameters", _fake_backward_parameters)
    torch.library.register_autograd(f"{namespace}::ms_g3d", backward, setup_context=_save_inputs)
    torch.library.register_autograd(f"{namespace}::ms_g3d_backward_input", _no_second_derivative)
    torch.library.register_autograd(f"{namespace}::ms_g3d_backward_parameters", _no_second_derivative)


if _library.available():
    _register("msg3d_fast")
