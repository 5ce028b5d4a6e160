"""The MS-G3D network: backbone, classification head, and the recogniser that joins them.

    x0 = data_bn(clip)                                                     (N*M, C, T, V)
    x1 = tcn1(relu(sgcn1(x0) + gcn3d1(x0)))                                (N*M, b, T, V)
    x2 = tcn2(relu(sgcn2(x1) + gcn3d2(x1)))                                (N*M, 2b, T/2, V)
    x3 = tcn3(relu(sgcn3(x2) + gcn3d3(x2)))                                (N*M, 4b, T/4, V)
    logits = fc(mean of x3 over persons, frames and joints)                (N, classes)

sgcn is a graph convolution per frame and two temporal ones, gcn3d the graph convolution over windows of 3 and 5 frames.
Persons are folded into the batch after data_bn, whose statistics are per (person slot, joint, channel). From there on
the native backend works in channels_last memory: the conversion is the one copy at the door. State-dict keys are
MMAction2's. Sources: Liu et al., CVPR 2020, section 4.1; mmaction2 `projects/msg3d/models/msg3d.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import absent, blocks, ops
from .errors import UserError
from .graph import Layout, binary_adjacency, check_flavour, get_layout, layouts_with
from .modules import MSGCN, MSTCN, Chain, MWMSG3DBlock


class MSG3D(nn.Module):
    """The backbone: clips (N, M, T, V, C) -> features (N, M, 4*base_channels, T_out, V), T_out = ceil(ceil(T/2)/2).

    Args:
        layout: the skeleton, V joints: a name, a Layout, or a dict as MMAction2 takes it.
        in_channels: C.
        base_channels: width of the first stage; the others have twice and four times as many channels.
        num_gcn_scales: K of the graph convolutions per frame.
        num_g3d_scales: K of those over windows.
        num_person: M; data_bn keeps statistics for each slot.
        tcn_dropout: probability after tcn1, tcn2 and tcn3.
        flavour: "mmaction2", "pyskl" (another initialisation) or "original" (the authors' graph and normalisation).
        backend: None ($MSG3D_BACKEND, else native), "native", "reference" or "emulated".
        memory: in training with the native backend, "fast" or "low": keep less for the backward pass, compute more.
        skip_absent: compute persons who are absent (zero through a whole clip) once for each slot. The result is the
            same. Not with the reference backend, in training with tcn_dropout or layers that are not fused (see
            `blocks.begin`), where the clips require gradients, nor while torch compiles.

    Raises:
        UserError: an argument that no network can be built from; in forward, a clip that does not fit.
    """

    A: Tensor

    def __init__(
        self,
        layout: str | Layout | Mapping[str, Any] = "coco",
        in_channels: int = 3,
        base_channels: int = 96,
        num_gcn_scales: int = 13,
        num_g3d_scales: int = 6,
        num_person: int = 2,
        tcn_dropout: float = 0.0,
        flavour: str = "mmaction2",
        backend: str | None = None,
        memory: str = "fast",
        skip_absent: bool = True,
    ) -> None:
        super().__init__()
        self.layout = layout = get_layout(layout)
        check_flavour(flavour)
        for name, value in (("in_channels", in_channels), ("num_person", num_person)):
            if value < 1:
                raise UserError(f"{name} is {value}, expected at least 1")
        if base_channels < 6:
            raise UserError(f"base_channels is {base_channels}, expected at least 6: one for each branch of MSTCN")
        if flavour == "original" and base_channels % 6:
            raise UserError(
                f"base_channels is {base_channels}, expected a multiple of 6, as the authors' MSTCN needs; "
                "round it or take another flavour"
            )
        self.num_person, self.in_channels = num_person, in_channels
        self.backend = ops.resolve_backend(backend)
        if memory not in ("fast", "low"):
            raise UserError(f"memory is {memory!r}, expected fast or low")
        self.memory, self.skip_absent = memory, skip_absent
        self.register_buffer("A", binary_adjacency(layout, flavour))
        self.data_bn = nn.BatchNorm1d(num_person * layout.num_joints * in_channels)

        def g3d(channels: int, out: int, stride: int = 1, expand: bool = False) -> MWMSG3DBlock:
            return MWMSG3DBlock(
                channels,
                out,
                layout,
                num_g3d_scales,
                window_stride=stride,
                expand=expand,
                flavour=flavour,
                backend=backend,
            )

        def sgcn(channels: int, middle: int, out: int, stride: int = 1) -> Chain:
            return Chain(
                MSGCN(num_gcn_scales, channels, middle, layout, flavour=flavour, backend=backend),
                MSTCN(middle, out, stride=stride, flavour=flavour, backend=backend),
                MSTCN(out, out, act=False, flavour=flavour, backend=backend),
            )

        def tcn(channels: int) -> MSTCN:
            return MSTCN(channels, channels, dropout=tcn_dropout, flavour=flavour, backend=backend)

        c1, c2, c3 = base_channels, 2 * base_channels, 4 * base_channels
        self.gcn3d1, self.sgcn1, self.tcn1 = g3d(in_channels, c1, expand=True), sgcn(in_channels, c1, c1), tcn(c1)
        self.gcn3d2, self.sgcn2, self.tcn2 = g3d(c1, c2, stride=2), sgcn(c1, c1, c2, stride=2), tcn(c2)
        self.gcn3d3, self.sgcn3, self.tcn3 = g3d(c2, c3, stride=2), sgcn(c2, c2, c3, stride=2), tcn(c3)

    def forward(self, clips: Tensor) -> Tensor:
        self._check(clips)
        N, M, T, V, C = clips.shape
        x = self.data_bn(clips.permute(0, 1, 3, 4, 2).reshape(N, M * V * C, T))
        x = x.view(N * M, V, C, T).permute(0, 2, 3, 1)  # (N*M, C, T, V)
        # The reference runs in the memory format that upstream runs in.
        upstream = self.backend == "reference"
        x = x.contiguous(memory_format=torch.contiguous_format if upstream else torch.channels_last)
        step = blocks.begin(self, x, self.backend, self.memory == "low")
        merged = absent.merge(clips) if self._may_merge(clips, step) else None
        if merged:
            x = take(x, merged.rows)
            step = step and replace(step, multiplicity=merged.multiplicity)
        x = self.tcn1(F.relu(self.sgcn1(x, step) + self.gcn3d1(x, step), inplace=True), step)
        x = self.tcn2(F.relu(self.sgcn2(x, step) + self.gcn3d2(x, step), inplace=True), step)
        x = self.tcn3(F.relu(self.sgcn3(x, step) + self.gcn3d3(x, step), inplace=True), step)
        if merged:
            x = take(x, merged.row_of)
        return x.unflatten(0, (N, M))

    def _may_merge(self, clips: Tensor, step: blocks.Step | None) -> bool:
        if not self.skip_absent or self.backend == "reference" or type(clips) is not Tensor:
            return False
        if clips.device.type not in ("cpu", "cuda") or clips.requires_grad or torch.compiler.is_compiling():
            return False
        if clips.is_cuda and torch.cuda.is_current_stream_capturing():  # a graph holds no decisions on values
            return False
        return not self.training or (step is not None and not self.tcn1.drop.p)

    def _check(self, x: Tensor) -> None:
        check_clips(x, self.layout, self.num_person, self.in_channels, self.data_bn.weight.dtype)
        if self.training and x.shape[0] * x.shape[2] == 1:
            raise UserError(
                "one clip of one frame has no statistics to train batch normalisation on; "
                "give more clips or frames, or call model.eval()"
            )


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x (N, C, T, V), channels_last like x."""
    return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def check_clips(x: Tensor, layout: Layout, num_person: int, in_channels: int, dtype: torch.dtype) -> None:
    """Raise UserError unless `x` holds clips (N, num_person, T, V, in_channels) of `layout` and `dtype`."""
    if not isinstance(x, Tensor):
        raise UserError(f"input is a {type(x).__name__}, expected a tensor; make one with torch.as_tensor")
    if x.ndim != 5:
        raise UserError(f"input has shape {tuple(x.shape)}, expected (clips, persons, frames, joints, channels)")
    V = layout.num_joints
    if x.shape[3] != V:
        known = layouts_with(x.shape[3])
        hint = f" ({' or '.join(known)}?)" if known else ""
        raise UserError(f"input has {x.shape[3]} joints{hint}, this model was built for {layout.name} with {V}")
    if x.shape[4] != in_channels:
        raise UserError(
            f"input has {x.shape[4]} channels, this model was built for {in_channels}; "
            "add or drop scores, or check the order (clips, persons, frames, joints, channels)"
        )
    if x.shape[1] != num_person:
        raise UserError(
            f"input has {x.shape[1]} persons, this model was built for num_person={num_person}; "
            "pad with zeros or keep the first persons"
        )
    if x.dtype != dtype:
        raise UserError(f"input is {x.dtype}, this model is {dtype}; convert one with .to(dtype)")
    if x.shape[2] < 1:
        raise UserError("input has no frames; give at least one")


class GCNHead(nn.Module):
    """Mean over persons, frames and joints, then a linear layer: (N, M, C, T, V) -> (N, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.0, flavour: str = "mmaction2") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)
        if flavour != "original":
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        # The same sums, in an order of dimensions that leaves the gradient in channels_last for the layers below.
        return x.mean((3, 4)).mean(1) if x.is_contiguous() else x.permute(0, 1, 3, 4, 2).mean((2, 3)).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.pool(x)))


class Recognizer(nn.Module):
    """MS-G3D for classification: clips (N, M, T, V, C) -> logits (N, num_classes).

    Args:
        layout: the skeleton, V joints: a name, a Layout, or a dict as MMAction2 takes it.
        num_classes: classes.
        in_channels: C.
        base_channels: width of the first stage, at least 6.
        num_gcn_scales: K of the graph convolutions per frame.
        num_g3d_scales: K of those over windows of frames.
        num_person: M, person slots of a clip.
        tcn_dropout: probability after each stage.
        head_dropout: probability before the linear layer.
        flavour: "mmaction2", "pyskl" (another initialisation) or "original" (the authors' graph and normalisation).
        backend: None ($MSG3D_BACKEND, else native), "native", "reference" or "emulated".
        memory: in training with the native backend, "fast" or "low": keep less for the backward pass, compute more.
        skip_absent: compute persons who are absent (zero through a whole clip) once for each slot. The result is the
            same. Not with the reference backend, in training with tcn_dropout or layers that are not fused (see
            `blocks.begin`), where the clips require gradients, nor while torch compiles.

    Raises:
        UserError: an argument that no network can be built from; in forward, a clip that does not fit.

    `hparams` holds these arguments but for the last three, as JSON can: `Recognizer(**model.hparams)` builds the like.
    `source` is the format of the checkpoint that the weights came from, if they did; `preprocessing` is what a
    checkpoint of ours says of the clips that it was trained on, for `Predictor`.
    """

    def __init__(
        self,
        layout: str | Layout | Mapping[str, Any] = "coco",
        num_classes: int = 60,
        in_channels: int = 3,
        base_channels: int = 96,
        num_gcn_scales: int = 13,
        num_g3d_scales: int = 6,
        num_person: int = 2,
        tcn_dropout: float = 0.0,
        head_dropout: float = 0.0,
        flavour: str = "mmaction2",
        backend: str | None = None,
        memory: str = "fast",
        skip_absent: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}, expected at least 1")
        layout = get_layout(layout)
        shape = {
            "in_channels": in_channels,
            "base_channels": base_channels,
            "num_gcn_scales": num_gcn_scales,
            "num_g3d_scales": num_g3d_scales,
            "num_person": num_person,
            "tcn_dropout": tcn_dropout,
            "flavour": flavour,
        }
        self.source: str | None = None
        self.preprocessing: dict[str, Any] | None = None
        self.hparams: dict[str, Any] = {
            "layout": layout.to_hparam(),
            "num_classes": num_classes,
            **shape,
            "head_dropout": head_dropout,
        }
        self.backbone = MSG3D(layout, **shape, backend=backend, memory=memory, skip_absent=skip_absent)
        self.cls_head = GCNHead(4 * base_channels, num_classes, head_dropout, flavour)

    @property
    def layout(self) -> Layout:
        """The skeleton that the model was built for."""
        return self.backbone.layout

    @property
    def backend(self) -> str:
        """Who computes the graph convolutions; can be set on a model that exists."""
        return self.backbone.backend

    @backend.setter
    def backend(self, name: str | None) -> None:
        name = ops.resolve_backend(name)
        for module in self.backbone.modules():
            if hasattr(module, "backend"):
                module.backend = name

    def forward(self, x: Tensor) -> Tensor:
        return self.cls_head(self.backbone(x))

    def features(self, x: Tensor) -> Tensor:
        """What the classifier looks at, (N, 4*base_channels): in eval mode `cls_head.fc` of it gives the logits."""
        return self.cls_head.pool(self.backbone(x))
