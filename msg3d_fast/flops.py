"""Parameters and multiply-adds of a network, layer by layer: as published implementations compute it, and as we do.

    aggregation    N*K*C*T_out*(tau*V)^2      every scale over the nodes of every window; papers leave it out
    convolution    N*T_out*tau*V*K*C*O        the 1x1 convolution behind it, and every other convolution
    ours           what `ops.ms_g3d` computes, in the order that its plan chooses

One multiply-add is two FLOPs. Batch normalisation, ReLU, max-pools and sums are not counted, as is the custom.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import _library
from .config import Config
from .errors import UserError
from .model import Recognizer
from .modules import MSTCN, STMSGCN, MSG3DBlock


@dataclass(frozen=True)
class Layer:
    """One row of the table, for one clip.

    Args:
        name: of the module.
        shape: of its output, (N, O, T_out, nodes), or (N, classes).
        parameters: that train.
        aggregation: multiply-adds of the aggregation in the published order.
        convolution: multiply-adds of convolutions and of the classifier.
        ours: multiply-adds as planned here; None without the native library.
        order: "project_first" or "aggregate_first", or "" where there is nothing to choose.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    aggregation: int
    convolution: int
    ours: int | None
    order: str = ""


def count(model: Recognizer, frames: int = 100) -> list[Layer]:
    """The layers of a network for one clip, in the order in which they run; nothing is computed but shapes.

    Raises:
        UserError: fewer frames than one.
    """
    if frames < 1:
        raise UserError(f"a clip of {frames} frames is asked for, expected at least 1")
    with torch.device("meta"):
        net = Recognizer(**model.hparams, backend="reference").eval()
        clip = torch.empty(1, net.backbone.num_person, frames, net.layout.num_joints, net.backbone.in_channels)
    layers: list[Layer] = []
    convolved = [0]  # multiply-adds of the convolutions inside the layer that runs

    def convolution(conv: nn.Module, _: Any, y: Tensor) -> None:
        convolved[0] += y.numel() * conv.weight[0].numel()

    def row(name: str, module: nn.Module, own: Sequence[nn.Module], x: Tensor, y: Tensor) -> None:
        parameters = sum(p.numel() for part in own for p in part.parameters())
        macs, aggregation, ours, order = convolved[0], 0, convolved[0], ""
        if isinstance(module, STMSGCN):
            nodes, channels = y.shape[3], module.num_scales * module.in_channels
            aggregation = y.shape[0] * y.shape[2] * channels * nodes**2
            macs = y.numel() * channels
            ours, order = _planned(module, x)
        layers.append(Layer(name, tuple(y.shape), parameters, aggregation, macs, ours, order))
        convolved[0] = 0

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            module.register_forward_hook(convolution)
        if isinstance(module, STMSGCN | MSTCN | MSG3DBlock | nn.Linear | nn.BatchNorm1d):
            own = [module.out_conv, module.out_bn] if isinstance(module, MSG3DBlock) else [module]
            name = name.removeprefix("backbone.").removeprefix("cls_head.")
            name = f"{name}.out_conv" if isinstance(module, MSG3DBlock) else name
            module.register_forward_hook(lambda m, x, y, name=name, own=own: row(name, m, own, x[0], y))
    net(clip)
    return layers


def _planned(module: STMSGCN, x: Tensor) -> tuple[int | None, str]:
    if not _library.available():
        return None, ""
    window = module.window_size, module.window_stride, module.window_dilation
    plan = _library.plan(_library.Sizes(tuple(x.shape), module.num_scales, module.out_channels, *window))
    return int(plan[f"{plan['order']}_macs"]), str(plan["order"])


def network(config: Config) -> Recognizer:
    """The network of a configuration, without weights.

    Raises:
        UserError: the configuration leaves sizes to the data.
    """
    wanted = asdict(config.model)
    if unknown := [key for key in ("layout", "num_classes") if wanted[key] is None]:
        raise UserError(
            f"configuration {config.name} leaves {' and '.join(f'model.{key}' for key in unknown)} to the data; set "
            f"{' and '.join(f'--model.{key}' for key in unknown)}"
        )
    wanted |= {"in_channels": wanted["in_channels"] or 3, "num_person": wanted["num_person"] or 2}
    del wanted["checkpoint"], wanted["backend"]
    with torch.device("meta"):
        return Recognizer(**wanted, backend="reference")


def table(layers: Sequence[Layer]) -> str:
    """The layers and their sums as text, in millions of multiply-adds."""
    width = max(len(layer.name) for layer in layers)
    lines = [
        f"{'layer':{width}}  {'output':20}{'parameters':>11}{'aggregation':>13}{'convolution':>13}{'ours':>10}  order"
    ]
    for one in layers:
        ours = "" if one.ours is None else f"{one.ours / 1e6:.2f}"
        line = f"{one.name:{width}}  {one.shape!s:20}{one.parameters:11,}{one.aggregation / 1e6:13.2f}"
        lines.append(f"{line}{one.convolution / 1e6:13.2f}{ours:>10}  {one.order}".rstrip())
    aggregation, convolution = sum(one.aggregation for one in layers), sum(one.convolution for one in layers)
    lines += [
        "",
        f"parameters                   {sum(one.parameters for one in layers):,}",
        f"multiply-adds as published   {(aggregation + convolution) / 1e9:.3f} G, the aggregation being "
        f"{aggregation / max(1, aggregation + convolution):.1%} of them",
        f"without the aggregation      {convolution / 1e9:.3f} G, as papers count",
    ]
    if all(one.ours is not None for one in layers):
        lines.append(f"in the order that runs here  {sum(one.ours or 0 for one in layers) / 1e9:.3f} G")
    return "\n".join(lines)
