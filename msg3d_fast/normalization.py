"""Batch normalisation of channels_last activations with statistics as exact as those of contiguous ones.

    y = weight * (x - mean) / sqrt(var + eps) + bias,    mean and var over N, T and V

On the CPU torch adds up a channels_last batch row by row in float32: with tens of thousands of rows the statistics,
and with them every gradient, lose nearly two decimal digits against the contiguous path, which adds in double. Here
rows are added by torch's pairwise sums, which do not lose them.
"""

from typing import Any

import torch
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
