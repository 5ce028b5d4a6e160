"""The graph convolution and the batch normalisation behind it as one differentiable step: how a GPU trains.

    y = [relu](bn(ms_g3d(x)))

The kernels gather the statistics of every channel while they write ms_g3d(x), so nobody reads it for them: with windows
of tau frames it is the block's largest tensor. What else is left of a batch normalisation are torch's own operations;
running statistics, precision under autocast and gradients are those of the layers one by one.

The convolution's bias changes nothing but the running mean, since the normalisation follows: it is added there, and its
gradient is exactly zero.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import blocks, ops
from .normalization import BatchNorm2d

_aten = torch.ops.aten
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def takes(layer: Any, x: Tensor) -> bool:
    """Return whether a `modules.STMSGCN` trains on x in this step; else its layers must run one by one.

    They must outside training, on the CPU (but for the emulated backend), where a layer behind the convolution has
    hooks, where a batch normalisation is frozen, synchronised or otherwise not as it was built, and for a batch with
    one value a channel or none.
    """
    place = {"native": "cuda", "emulated": "cpu"}.get(layer.backend)
    if not layer.training or x.device.type != place or x.dim() != 4:
        return False
    if len(x) * layer.window_size * x.shape[3] < 2:
        return False
    _, norm, *act = layer.mlp.layers
    if type(norm) not in (nn.BatchNorm2d, BatchNorm2d) or not all(type(module) is nn.ReLU for module in act):
        return False
    if not (norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None):
        return False
    if norm.weight.dtype != (torch.float64 if x.dtype == torch.float64 else torch.float32):
        return False
    return not any(getattr(module, name) for module in layer.mlp.modules() for name in _HOOKS)


class _GraphConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        window: tuple[int, int, int],
        act: bool,
        eps: float,
        backend: str,
        tf32: bool,
    ):
        before, statistics = ops.operators(backend).ms_g3d_statistics(x, A, weight, None, *window, tf32)
        mean, variance = statistics.unbind()
        y = F.batch_norm(before, mean, variance, gamma, beta, eps=eps)
        if act:
            y = torch.relu_(y)
        ctx.save_for_backward(x, A, weight, gamma, before, y if act else None, mean, (variance + eps).rsqrt())
        ctx.settings = window, eps, backend, tf32
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, _: None):
        x, A, weight, gamma, before, y, mean, rstd = ctx.saved_tensors
        window, eps, backend, tf32 = ctx.settings
        need_x, need_A, need_weight, need_bias, *need_affine = ctx.needs_input_grad[:6]
        if y is not None:
            gy = _aten.threshold_backward(gy, y, 0)
        g, grad_gamma, grad_beta = _aten.native_batch_norm_backward(
            gy, before, gamma, None, None, mean, rstd, True, eps, [need_x or need_A or need_weight, *need_affine]
        )
        native, common = ops.operators(backend), (g, x, A, weight, *window)
        grad_x = native.ms_g3d_backward_input(*common, tf32) if need_x else None
        grad_A = grad_weight = None
        if need_A or need_weight:
            grads = native.ms_g3d_backward_parameters(*common, need_A, need_weight, False, tf32)
            grad_A, grad_weight = grads[0] if need_A else None, grads[1] if need_weight else None
        grad_bias = gamma.new_zeros(len(weight)) if need_bias else None
        return grad_x, grad_A, grad_weight, grad_bias, grad_gamma, grad_beta, *(None,) * 5


def graph_convolution(layer: Any, x: Tensor) -> Tensor:
    """The training step of a `modules.STMSGCN` that `takes` x: (N, C, T, V) -> (N, O, T_out, tau*V)."""
    A, weight, bias, window = blocks.operands(layer)
    _, norm, *act = layer.mlp.layers
    x, A, weight, _ = ops.prepared(layer.backend, x, A, weight, None)
    settings = window, bool(act), norm.eps, layer.backend, ops.allows_tf32()
    y, statistics = _GraphConvolution.apply(x, A, weight, bias, norm.weight, norm.bias, *settings)
    blocks.track([norm], [bias], statistics, y.numel() // y.shape[1])
    return y
