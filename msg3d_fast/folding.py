"""What eval mode lets one compute beforehand, in float64: batch normalisations and A + PA as constants.

Every batch normalisation is a fixed affine map then, and is multiplied into the convolution before it; only the one
behind a max-pool stays, which does not commute with the maximum.
"""

import torch
from torch import Tensor, nn

from .errors import UserError
from .modules import MSTCN, STMSGCN, MSG3DBlock

DILATIONS = (1, 2, 3, 4)


def fold(conv: nn.Module, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (O, ...) and bias (O,) of bn(conv(x)) in eval mode."""
    scale, shift = affine(bn)
    weight = conv.weight.detach().double()
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), conv.bias.detach().double() * scale + shift


def affine(bn: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch normalisation in eval mode."""
    scale = bn.weight.detach().double() * (bn.running_var.double() + bn.eps).rsqrt()
    return scale, bn.bias.detach().double() - bn.running_mean.double() * scale


def adjacency(module: STMSGCN) -> Tensor:
    """A + PA, (K, source, destination) as in the checkpoints."""
    return module.A.double() + module.PA.detach().double()


def check_temporal_unit(module: MSTCN) -> None:
    """Raise UserError unless the folded kernels can compute it."""
    dilated = module.branches[:-2]
    if [branch[3].conv.dilation[0] for branch in dilated] != list(DILATIONS) or module.residual is None:
        raise UserError(
            f"an MSTCN without residual or with other dilations than {DILATIONS}; fuse takes the network's own"
        )


def check_windows(block: MSG3DBlock) -> None:
    """Raise UserError unless the folded kernels can compute it."""
    if block.in1x1 is not None:
        raise UserError("a G3D block with embed_factor other than 1; fuse takes the network's own")


def stages(backbone: nn.Module) -> tuple[tuple[nn.Module, nn.Module, nn.Module], ...]:
    """The three stages of the network, each sgcn, gcn3d, tcn."""
    names = ("sgcn", "gcn3d", "tcn")
    first, second, third = (tuple(getattr(backbone, f"{name}{i}") for name in names) for i in (1, 2, 3))
    return first, second, third


def matrix(weight: Tensor) -> Tensor:
    """The weight (O, C, 1, 1) of a 1x1 convolution as (C, O)."""
    return weight.flatten(1).t()


def residual(module: MSTCN, channels: int) -> tuple[Tensor, Tensor]:
    """What an MSTCN adds to its branches, as a matrix (C, O) and a bias (O,): its convolution, or the identity's."""
    if isinstance(module.residual, nn.Identity):
        like = module.branches[0][0].weight
        eye = torch.eye(channels, dtype=torch.float64, device=like.device)
        return eye, torch.zeros(channels, dtype=torch.float64, device=like.device)
    weight, bias = fold(module.residual.conv, module.residual.bn)
    return matrix(weight), bias
