"""Batch normalisation of channels_last activations with statistics as exact as those of contiguous ones.

    y = weight * (x - mean) / sqrt(var + eps) + bias,    mean and var over N, T and V

On the CPU torch adds up a channels_last batch row by row in float32: with tens of thousands of rows the statistics,
and with them every gradient, lose nearly two decimal digits against the contiguous path, which adds in double. Here
rows are added by torch's pairwise sums, which do not lose them.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Normalize(torch.autograd.Function):
    """x (N, C, T, V), weight and bias (C, 1, 1) -> y like x; mean and biased variance (1, C, 1, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean((0, 2, 3), keepdim=True)
        centred = x - mean
        var = (centred * centred).mean((0, 2, 3), keepdim=True)
        rstd = (var + eps).rsqrt()
        ctx.save_for_backward(centred, weight, rstd)
        ctx.mark_non_differentiable(mean, var)
        return torch.addcmul(bias, centred, weight * rstd), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _mean: Tensor, _var: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, rstd = ctx.saved_tensors
        rows = centred.numel() // centred.shape[1]
        grad_bias = grad.sum((0, 2, 3), keepdim=True)
        grad_weight = (grad * centred).sum((0, 2, 3), keepdim=True) * rstd
        grad_x = torch.addcmul(grad - grad_bias / rows, centred, rstd * grad_weight, value=-1 / rows)
        return grad_x * (weight * rstd), grad_weight[0], grad_bias[0], None


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, exact for channels_last float32 activations on the CPU in training."""

    def forward(self, x: Tensor) -> Tensor:
        inexact = x.device.type == "cpu" and x.dtype == torch.float32 and not x.is_contiguous()
        if not (self.training and inexact and x.is_contiguous(memory_format=torch.channels_last)):
            return super().forward(x)
        y, mean, var = _Normalize.apply(x, self.weight[:, None, None], self.bias[:, None, None], self.eps)
        rows = x.numel() // x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(var.flatten() * (rows / (rows - 1)), self.momentum)
        return y


class _Total(torch.autograd.Function):
    """Sum over the processes; so is its gradient, since every process has a loss of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose statistics in training are those of the batches of all processes, on any device.

    torch's own is for GPUs only. Parameters, buffers and their names are those of the layer that it replaces. Where
    `alone` is set, a process runs by itself.
    """

    alone = False

    def _check_input_dim(self, input: Tensor) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.alone or not dist.is_initialized():
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *[1] * (x.ndim - 2))
        rows = wide.new_tensor([x.numel() // x.shape[1]])
        *total, count = _Total.apply(torch.cat([wide.sum(axes), rows])).split([x.shape[1], 1])
        mean = (total[0] / count).view(shape)
        centred = wide - mean
        var = _Total.apply((centred * centred).sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.flatten().to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(x.dtype)


def synchronize(model: nn.Module) -> None:
    """Replace every batch normalisation of `model` by one over all processes, with its parameters and buffers."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                sync = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                sync._parameters, sync._buffers, sync.training = child._parameters, child._buffers, child.training
                setattr(module, name, sync)
