"""Whole blocks as one differentiable step each: how the native backend trains on the CPU.

    graph_convolution  y = relu(bn(ms_g3d(x)))
    g3d                y = bn(out_conv(relu(bn(ms_g3d(x))))) + other
    mstcn              y = relu([six temporal branches] + residual)

Each keeps its input and what lies before its batch normalisations and computes the rest again in its backward pass;
with `memory="low"` it keeps little but its input. A sample may stand for several equal ones: its multiplicity enters
the mean and variance of every batch normalisation, and its gradient is the sum of theirs.

The biases of the convolutions change nothing but the running means, since a batch normalisation follows each: they are
added there, and their gradients are exactly zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import _library

_native = torch.ops.msg3d_fast


@dataclass(frozen=True)
class Step:
    """What all blocks of one training step share.

    Args:
        samples: how many samples the batch stands for.
        multiplicity: (N,), how many of them each row of the batch stands for; None: one each.
        low_memory: keep less for the backward pass, compute more.
    """

    samples: int
    multiplicity: Tensor | None = None
    low_memory: bool = False


def begin(module: nn.Module, x: Tensor, backend: str, low_memory: bool = False) -> Step | None:
    """Return the step in which `module` trains on the batch x, or None where its layers must run one by one.

    They must outside training, under autocast, on other devices and types than float32 and float64 on the CPU, for an
    empty batch, and with batch normalisations that are frozen, synchronised or otherwise not as they were built.
    """
    if not module.training or backend != "native" or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    if x.dtype not in (torch.float32, torch.float64) or x.numel() == 0 or not _library.available():
        return None
    if not all(_trains(norm) for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._NormBase)):
        return None
    return Step(len(x), None, low_memory)


def _trains(norm: nn.Module) -> bool:
    plain = isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.affine and norm.track_running_stats
    return plain and norm.training and norm.momentum is not None and norm.eps == 1e-5


def _affine(norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """All gammas, then all betas: (2, columns)."""
    gammas, betas = [norm.weight for norm in norms], [norm.bias for norm in norms]
    return torch.cat(gammas + betas).view(2, -1)


@torch.no_grad()
def track(norms: Iterable[nn.BatchNorm2d], biases: Iterable[Tensor | None], statistics: Tensor, count: int) -> None:
    """Move running statistics towards `statistics` of `count` values: means without the biases, biased variances."""
    mean, variance = statistics.view(2, -1)
    variance = variance * (count / max(count - 1, 1))
    first = 0
    for norm, bias in zip(norms, biases, strict=True):
        last = first + norm.num_features
        shifted = mean[first:last] if bias is None else mean[first:last] + bias
        norm.running_mean.lerp_(shifted.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_(variance[first:last].to(norm.running_var.dtype), norm.momentum)
        norm.num_batches_tracked += 1
        first = last


class _GraphConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: Tensor,
        step: Step,
        window: tuple[int, int, int],
        act: bool,
    ):
        before = _native.ms_g3d(x, A, weight, None, *window)
        y, statistics = _native.batch_norm(before, norm, step.multiplicity, act, 1e-5)
        ctx.save_for_backward(x, A, weight, norm, step.multiplicity, before, y if act else None, statistics)
        ctx.window, ctx.act = window, act
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, _: None):
        x, A, weight, norm, multiplicity, before, y, statistics = ctx.saved_tensors
        y = before if y is None else y  # without a ReLU it is not looked at
        g, grad_norm = _native.batch_norm_backward(gy, y, statistics, before, norm, multiplicity, ctx.act, 1e-5)
        grads = _native.ms_g3d_backward(g, x, A, weight, *ctx.window)
        return *grads, weight.new_zeros(len(weight)), grad_norm, None, None, None


def operands(layer: Any) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int]]:
    """A (destination first, as the operator wants it), weight (O, K, C), bias, window of a `modules.STMSGCN`."""
    conv = layer.mlp.layers[0]
    weight = conv.weight.view(layer.out_channels, layer.num_scales, layer.in_channels)
    window = layer.window_size, layer.window_stride, layer.window_dilation
    return (layer.A + layer.PA).transpose(1, 2), weight, conv.bias, window


def graph_convolution(layer: Any, x: Tensor, step: Step) -> Tensor:
    """The training step of `modules.STMSGCN`: (N, C, T, V) -> (N, O, T_out, tau*V)."""
    A, weight, bias, window = operands(layer)
    _, norm, *act = layer.mlp.layers
    y, statistics = _GraphConvolution.apply(x, A, weight, bias, _affine([norm]), step, window, bool(act))
    track([norm], [bias], statistics, step.samples * y.shape[2] * y.shape[3])
    return y


class _G3D(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_in: Tensor,
        fold: Tensor,
        fold_bias: Tensor,
        norm_out: Tensor,
        other: Tensor | None,
        step: Step,
        window: tuple[int, int, int],
    ):
        before = _native.ms_g3d(x, A, weight, None, *window)
        y, folded, statistics = _native.collapse(before, fold, norm_in, norm_out, other, step.multiplicity, 1e-5)
        # Where few channels become many, computing them again is nearly free.
        recompute = step.low_memory and x.shape[1] < before.shape[1]
        saved = None if recompute else before
        ctx.save_for_backward(x, A, weight, norm_in, fold, norm_out, step.multiplicity, saved, folded, statistics)
        ctx.window = window
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, _: None):
        x, A, weight, norm_in, fold, norm_out, multiplicity, before, folded, statistics = ctx.saved_tensors
        if before is None:
            before = _native.ms_g3d(x, A, weight, None, *ctx.window)
        g, grad_fold, grad_in, grad_out = _native.collapse_backward(
            gy, folded, statistics, before, fold, norm_in, norm_out, multiplicity, 1e-5
        )
        del before
        grads = _native.ms_g3d_backward(g, x, A, weight, *ctx.window)
        grad_bias, grad_fold_bias = weight.new_zeros(len(weight)), weight.new_zeros(len(fold))
        grad_other = gy if ctx.needs_input_grad[8] else None
        return *grads, grad_bias, grad_in, grad_fold, grad_fold_bias, grad_out, grad_other, None, None


def g3d(block: Any, x: Tensor, other: Tensor | None, step: Step) -> Tensor:
    """The training step of `modules.MSG3DBlock` after its embedding, plus `other` (N, O, T_out, V)."""
    layer, fold = block.gcn3d[1], block.out_conv
    A, weight, bias, window = operands(layer)
    norm = layer.mlp.layers[1]
    fold_weight = fold.weight.view(fold.out_channels, layer.out_channels, layer.window_size)
    norms = _affine([norm]), _affine([block.out_bn])
    y, statistics = _G3D.apply(x, A, weight, bias, norms[0], fold_weight, fold.bias, norms[1], other, step, window)
    count = step.samples * y.shape[2] * y.shape[3]
    inner, outer = statistics.split([2 * layer.out_channels, 2 * fold.out_channels])
    track([norm], [bias], inner, count * layer.window_size)
    track([block.out_bn], [fold.bias], outer, count)
    return y


class _MSTCN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_in: Tensor,
        weight_time: Tensor,
        weight_residual: Tensor | None,
        norm_in: Tensor,
        norm_out: Tensor,
        norm_residual: Tensor | None,
        step: Step,
        settings: tuple[Any, ...],
        *biases: Tensor,
    ):
        inputs = (x, weight_in, weight_time, weight_residual, norm_in, norm_out, norm_residual, step.multiplicity)
        y, *before, statistics = _native.mstcn(*inputs, *settings)
        kept = (None,) * 4 if step.low_memory else (*before, statistics)
        ctx.save_for_backward(*inputs, y if settings[3] else None, *kept)
        ctx.settings, ctx.bias_sizes = settings, [len(bias) for bias in biases]
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, _: None):
        *inputs, y, entry, branches, residual, statistics = ctx.saved_tensors
        if entry is None:
            _, entry, branches, residual, statistics = _native.mstcn(*inputs, *ctx.settings)
        y = branches if y is None else y  # without a ReLU it is not looked at
        grads = _native.mstcn_backward(gy, y, entry, branches, residual, statistics, *inputs, *ctx.settings)
        grads = [None if given is None else grad for given, grad in zip(inputs[:7], grads, strict=True)]
        return *grads, None, None, *(gy.new_zeros(size) for size in ctx.bias_sizes)


def mstcn(block: Any, x: Tensor, step: Step) -> Tensor:
    """The training step of `modules.MSTCN` but for its dropout: (N, C, T, V) -> (N, O, T_out, V)."""
    *convolutions, pool, last = block.branches
    entries = [*convolutions, pool]
    temporal = [branch[3] for branch in convolutions]
    weight_in = torch.cat([branch[0].weight for branch in block.branches]).flatten(1)  # (O, C)
    taps = max(unit.conv.kernel_size[0] for unit in temporal)
    centred = [F.pad(unit.conv.weight.squeeze(3), ((taps - unit.conv.kernel_size[0]) // 2,) * 2) for unit in temporal]
    weight_time = torch.stack(centred)  # (dilations, b, b, taps)
    norms_in, norms_out = [branch[1] for branch in entries], [unit.bn for unit in temporal] + [pool[4], last[1]]
    biases_in = [branch[0].bias for branch in entries]
    biases_out = [unit.conv.bias for unit in temporal] + [None, last[0].bias]  # the pooled branch ends without one
    convolved = [block.residual] if hasattr(block.residual, "conv") else []
    biases = [bias for bias in biases_in + biases_out if bias is not None] + [unit.conv.bias for unit in convolved]
    identity, act = isinstance(block.residual, nn.Identity), isinstance(block.act, nn.ReLU)
    dilations, stride = [unit.conv.dilation[0] for unit in temporal], last[0].stride[0]
    y, statistics = _MSTCN.apply(
        x,
        weight_in,
        weight_time,
        convolved[0].conv.weight.flatten(1) if convolved else None,
        _affine(norms_in),
        _affine(norms_out),
        _affine([convolved[0].bn]) if convolved else None,
        step,
        (dilations, stride, identity, act, 1e-5),
        *biases,
    )
    joints = step.samples * x.shape[3]
    columns = [sum(norm.num_features for norm in norms) for norms in (norms_in, norms_out)]
    inner, outer, residual = statistics.split([2 * columns[0], 2 * columns[1], 2 * columns[1] * len(convolved)])
    track(norms_in, biases_in, inner, joints * x.shape[2])
    track(norms_out, biases_out, outer, joints * y.shape[2])
    for unit in convolved:
        track([unit.bn], [unit.conv.bias], residual, joints * y.shape[2])
    return y


def _like(x: Tensor, channels: int, frames: int, nodes: int) -> Tensor:
    shape = len(x), channels, frames, nodes
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _statistics(x: Tensor, columns: int) -> Tensor:
    return x.new_empty(2 * columns, dtype=torch.float64)


def _fake_batch_norm(x: Tensor, norm: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _like(x, *x.shape[1:]), _statistics(x, x.shape[1])


def _fake_batch_norm_backward(gy: Tensor, y: Tensor, statistics: Tensor, x: Tensor, norm: Tensor, *_: Any):
    return _like(x, *x.shape[1:]), torch.empty_like(norm)


def _fake_collapse(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    out, channels, tau = weight.shape
    y = _like(x, out, x.shape[2], x.shape[3] // tau)
    return y, torch.empty_like(y), _statistics(x, channels + out)


def _fake_collapse_backward(
    gy: Tensor, c: Tensor, statistics: Tensor, x: Tensor, weight: Tensor, norm_x: Tensor, norm_c: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    grads = (torch.empty_like(tensor) for tensor in (weight, norm_x, norm_c))
    return _like(x, *x.shape[1:]), *grads


def _fake_ms_g3d_backward(gy: Tensor, x: Tensor, A: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _like(x, *x.shape[1:]), A.new_empty(A.shape), weight.new_empty(weight.shape)


def _fake_mstcn(
    x: Tensor, weight_in: Tensor, weight_time: Tensor, weight_residual: Tensor | None, norm_p: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    (_, _, T, V), O, entry, stride = x.shape, len(weight_in), norm_p.shape[1], rest[4]  # noqa: E741
    y, before = _like(x, O, -(-T // stride), V), _like(x, entry, T, V)
    residual = x.new_empty(0) if weight_residual is None else torch.empty_like(y)
    return y, before, torch.empty_like(y), residual, _statistics(x, entry + O * (1 if weight_residual is None else 2))


def _fake_mstcn_backward(
    gy: Tensor, y: Tensor, p: Tensor, z: Tensor, r: Tensor, statistics: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    grads = (x.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in rest[:6])
    return _like(x, *x.shape[1:]), *grads


if _library.available():
    for _fake in (
        _fake_batch_norm,
        _fake_batch_norm_backward,
        _fake_collapse,
        _fake_collapse_backward,
        _fake_ms_g3d_backward,
        _fake_mstcn,
        _fake_mstcn_backward,
    ):
        torch.library.register_fake(f"msg3d_fast::{_fake.__name__.removeprefix('_fake_')}", _fake)
