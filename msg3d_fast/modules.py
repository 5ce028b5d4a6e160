"""The blocks of MS-G3D, under the authors' names and MMAction2's parameter names.

    STMSGCN       y = relu(bn(W * [A_0 x; ...; A_{K-1} x]))    over windows of tau frames: the G3D operator
    MSGCN         the same frame by frame, tau = 1
    MSG3DBlock    bn(out_conv(STMSGCN(x)))                     out_conv folds the tau slots of a window into one
    MWMSG3DBlock  the sum of one MSG3DBlock per window size
    MSTCN         relu([six temporal branches] + residual)

x is (N, C, T, V), persons folded into N. Every A is a buffer beside its learned residual PA, both (K, tau*V, tau*V) and
indexed [scale, source, destination] as in MMAction2's checkpoints; the operator wants [scale, destination, source] and
gets a view. `backend` chooses who computes the graph convolutions; "reference" runs the very operations that upstream
runs. Sources: Liu et al., CVPR 2020, section 3; mmaction2 `projects/msg3d/models`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import blocks, gpu_blocks, ops
from .errors import UserError
from .graph import Layout, adjacency, check_flavour
from .normalization import BatchNorm2d


class MLP(nn.Module):
    """1x1 convolution, batch normalisation and, unless `act` is false, ReLU for each of `out_channels` in turn."""

    def __init__(self, in_channels: int, out_channels: Sequence[int], act: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for width in out_channels:
            self.layers += [nn.Conv2d(in_channels, width, 1), BatchNorm2d(width)]
            self.layers += [nn.ReLU(inplace=True)] * act
            in_channels = width

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class STMSGCN(nn.Module):
    """Multi-scale graph convolution over windows of tau frames: (N, C, T, V) -> (N, O, T_out, tau*V).

    Args:
        num_scales: K.
        in_channels: C.
        out_channels: O.
        layout: the skeleton, V joints.
        window_size: tau.
        window_stride: s.
        window_dilation: d.
        act: end with a ReLU.
        flavour: whose normalised adjacency.
        backend: see `ops.ms_g3d`.

    Raises:
        UserError: windows without a middle frame, whose output would be shorter than the temporal path's.
    """

    A: Tensor

    def __init__(
        self,
        num_scales: int,
        in_channels: int,
        out_channels: int,
        layout: str | Layout,
        window_size: int,
        window_stride: int = 1,
        window_dilation: int = 1,
        act: bool = True,
        flavour: str = "mmaction2",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if (window_size - 1) * window_dilation % 2:
            raise UserError(
                f"windows of {window_size} frames with window_dilation {window_dilation} have no middle frame; "
                "use an odd window_size"
            )
        self.num_scales, self.in_channels, self.out_channels = num_scales, in_channels, out_channels
        self.window_size, self.window_stride, self.window_dilation = window_size, window_stride, window_dilation
        self.backend = ops.resolve_backend(backend)
        A = adjacency(layout, num_scales, window_size, flavour)
        self.PA = nn.Parameter(torch.empty_like(A).uniform_(-1e-6, 1e-6))
        self.register_buffer("A", A)
        self.mlp = MLP(num_scales * in_channels, [out_channels], act)

    def forward(self, x: Tensor, step: blocks.Step | None = None) -> Tensor:
        step = step or blocks.begin(self, x, self.backend)
        if step:
            return blocks.graph_convolution(self, x, step)
        if gpu_blocks.takes(self, x):
            return gpu_blocks.graph_convolution(self, x)
        conv, *rest = self.mlp.layers
        y = ops.ms_g3d(
            x,
            (self.A + self.PA).transpose(1, 2),  # the operator's A is destination-first
            conv.weight.view(self.out_channels, self.num_scales, self.in_channels),
            conv.bias,
            self.window_size,
            self.window_stride,
            self.window_dilation,
            backend=self.backend,
        )
        for layer in rest:
            y = layer(y)
        return y

    def extra_repr(self) -> str:
        window = f"tau={self.window_size}, s={self.window_stride}, d={self.window_dilation}"
        return f"K={self.num_scales}, C={self.in_channels}, O={self.out_channels}, {window}, nodes={len(self.A[0])}"


class MSGCN(STMSGCN):
    """Multi-scale graph convolution frame by frame, the case tau = s = d = 1: (N, C, T, V) -> (N, O, T, V).

    Args:
        num_scales: K.
        in_channels: C.
        out_channels: O.
        layout: the skeleton, V joints.
        act: end with a ReLU.
        flavour: whose normalised adjacency.
        backend: see `ops.ms_gcn`.
    """

    def __init__(
        self,
        num_scales: int,
        in_channels: int,
        out_channels: int,
        layout: str | Layout,
        act: bool = True,
        flavour: str = "mmaction2",
        backend: str | None = None,
    ) -> None:
        super().__init__(num_scales, in_channels, out_channels, layout, 1, act=act, flavour=flavour, backend=backend)


class MSG3DBlock(nn.Module):
    """G3D: graph convolution over windows, then one that folds each window: (N, C, T, V) -> (N, O, T_out, V).

    Args:
        in_channels: C.
        out_channels: O.
        layout: the skeleton.
        num_scales: K.
        window_size: tau.
        window_stride: s.
        window_dilation: d.
        embed_factor: other than 1, a 1x1 MLP first embeds x in O // embed_factor channels.
        expand: widen to O inside the graph convolution, as the first stage does, whose C cannot carry the features.
        flavour: whose normalised adjacency.
        backend: see `ops.ms_g3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layout: str | Layout,
        num_scales: int,
        window_size: int,
        window_stride: int = 1,
        window_dilation: int = 1,
        embed_factor: int = 1,
        expand: bool = False,
        flavour: str = "mmaction2",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        if embed_factor == 1:
            self.in1x1, embed_in = None, in_channels
            embed_out = out_channels if expand else in_channels
        else:
            embed_in = embed_out = out_channels // embed_factor
            self.in1x1 = MLP(in_channels, [embed_in])
        # Upstream's first child is the unfolding of windows, which the operator does itself; the names count from it.
        self.gcn3d = nn.Sequential(
            nn.Identity(),
            STMSGCN(
                num_scales,
                embed_in,
                embed_out,
                layout,
                window_size,
                window_stride,
                window_dilation,
                flavour=flavour,
                backend=backend,
            ),
        )
        self.out_conv = nn.Conv3d(embed_out, out_channels, (1, window_size, 1))
        self.out_bn = BatchNorm2d(out_channels)

    def forward(self, x: Tensor, step: blocks.Step | None = None, other: Tensor | None = None) -> Tensor:
        if self.in1x1 is not None:
            x = self.in1x1(x)
        step = step or blocks.begin(self, x, self.gcn3d[1].backend)
        if step:
            return blocks.g3d(self, x, other, step)
        y = self._by_layers(x)
        return y if other is None else other + y

    def _by_layers(self, x: Tensor) -> Tensor:
        y = self.gcn3d(x)  # (N, E, T_out, tau*V)
        N, E, T, W = y.shape
        tau = self.window_size
        if self.gcn3d[1].backend == "reference":
            return self.out_bn(self.out_conv(y.view(N, E, T, tau, W // tau)).squeeze(3))
        # The slots of a window stand below one another in a view of shape (N, E, T_out*tau, V), where a strided 2-D
        # convolution folds them; the 3-D one, whose weight this is, is slower to train.
        y = y.permute(0, 2, 3, 1).reshape(N, T * tau, W // tau, E).permute(0, 3, 1, 2)
        return self.out_bn(F.conv2d(y, self.out_conv.weight.squeeze(2), self.out_conv.bias, stride=(tau, 1)))


class MWMSG3DBlock(nn.Module):
    """The sum of one G3D block per window size: (N, C, T, V) -> (N, O, T_out, V).

    Args:
        in_channels: C.
        out_channels: O.
        layout: the skeleton.
        num_scales: K.
        window_sizes: tau of each block.
        window_stride: s, common to all.
        window_dilations: d of each block.
        expand: see `MSG3DBlock`.
        flavour: whose normalised adjacency.
        backend: see `ops.ms_g3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layout: str | Layout,
        num_scales: int,
        window_sizes: Sequence[int] = (3, 5),
        window_stride: int = 1,
        window_dilations: Sequence[int] = (1, 1),
        expand: bool = False,
        flavour: str = "mmaction2",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.gcn3d = nn.ModuleList(
            MSG3DBlock(
                in_channels,
                out_channels,
                layout,
                num_scales,
                window_size,
                window_stride,
                window_dilation,
                expand=expand,
                flavour=flavour,
                backend=backend,
            )
            for window_size, window_dilation in zip(window_sizes, window_dilations, strict=True)
        )

    def forward(self, x: Tensor, step: blocks.Step | None = None) -> Tensor:
        y = None
        for block in self.gcn3d:
            y = block(x, step, y)
        return y


class Chain(nn.Sequential):
    """Blocks one after the other, in one training step."""

    def forward(self, x: Tensor, step: blocks.Step | None = None) -> Tensor:
        for block in self:
            x = block(x, step)
        return x


class PointwiseConv(nn.Conv2d):
    """1x1 convolution of every `stride`-th frame: (N, C, T, V) -> (N, O, ceil(T / stride), V)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, (stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous():
            return super().forward(x)
        # In channels_last memory oneDNN's own strided 1x1 convolution (torch 2.13, CPU) writes past its buffers where C
        # is no multiple of 8.
        x = x[:, :, :: self.stride[0]].contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, self.weight, self.bias)


class TemporalConv(nn.Module):
    """Convolution along time and batch normalisation; odd kernels keep the frames aligned."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) * dilation // 2
        if kernel_size == 1:
            self.conv = PointwiseConv(in_channels, out_channels, stride)
        else:
            self.conv = nn.Conv2d(
                in_channels, out_channels, (kernel_size, 1), (stride, 1), (padding, 0), dilation=(dilation, 1)
            )
        self.bn = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class MSTCN(nn.Module):
    """Multi-scale temporal convolution, dilated branches beside a max-pool and a 1x1: (N, C, T, V) -> (N, O, T_out, V).

    Each branch has O // (number of branches) channels, the last one the remainder too.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: frames of the dilated convolutions, odd: one number, or one for each.
        stride: frames from one output to the next.
        dilations: one dilated branch for each.
        residual: add the input, through a 1x1 convolution where shapes differ.
        act: end with a ReLU.
        dropout: probability after the activation.
        flavour: how convolutions start: "mmaction2" Kaiming-normal by fan-out with zero bias, else torch's own way.
        backend: who computes a training step: "reference" layer by layer as upstream, else fused.

    Raises:
        UserError: fewer output channels than branches, or an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int = 1,
        dilations: Sequence[int] = (1, 2, 3, 4),
        residual: bool = True,
        act: bool = True,
        dropout: float = 0.0,
        flavour: str = "mmaction2",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.backend = ops.resolve_backend(backend)
        num_branches = len(dilations) + 2
        width = out_channels // num_branches
        if width < 1:
            raise UserError(
                f"MSTCN has {num_branches} branches, found {out_channels} output channels; give at least one each"
            )
        sizes = [kernel_size] * len(dilations) if isinstance(kernel_size, int) else kernel_size
        if any(size % 2 == 0 for size in sizes):
            raise UserError(
                f"kernel_size is {kernel_size}; an even kernel cannot be centred on a frame, use an odd one"
            )

        def entry(channels: int, stride: int = 1) -> list[nn.Module]:
            return [PointwiseConv(in_channels, channels, stride), BatchNorm2d(channels)]

        self.branches = nn.ModuleList(
            nn.Sequential(*entry(width), nn.ReLU(inplace=True), TemporalConv(width, width, size, stride, dilation))
            for size, dilation in zip(sizes, dilations, strict=True)
        )
        pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
        self.branches.append(nn.Sequential(*entry(width), nn.ReLU(inplace=True), pool, BatchNorm2d(width)))
        self.branches.append(nn.Sequential(*entry(out_channels - (num_branches - 1) * width, stride)))
        if not residual:
            self.residual = None
        elif in_channels == out_channels and stride == 1:
            self.residual = nn.Identity()
        else:
            self.residual = TemporalConv(in_channels, out_channels, 1, stride)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()
        self.drop = nn.Dropout(dropout)
        if check_flavour(flavour) == "mmaction2":
            for conv in self.modules():
                if isinstance(conv, nn.Conv2d):
                    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                    nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, step: blocks.Step | None = None) -> Tensor:
        step = step or blocks.begin(self, x, self.backend)
        if step:
            return self.drop(blocks.mstcn(self, x, step))
        y = torch.cat([branch(x) for branch in self.branches], dim=1)
        if self.residual is not None:
            y = y + self.residual(x)
        return self.drop(self.act(y))
