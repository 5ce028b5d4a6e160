"""The folded network on a GPU, layer by layer: what `fuse(model)` runs there, and what runs on the emulator.

    x0 = clips * scale + shift                                      data_bn; the clips' own memory is channels_last
    y  = second(first(relu(ms_gcn(x))))                             graph convolution with its ReLU in one kernel
    y += collapse(relu(ms_g3d(x)))    for both windows              in one kernel, where there is one; ReLU behind
    x  = tcn(y)

`first`, `second` and `tcn` are MSTCNs of three launches: the entries of all branches with their ReLU, the residual with
the last branch and every bias, and one kernel that adds the temporal branches (csrc/kernels/mstcn/cuda). The first two
are cuBLAS', with its epilogues. No decision depends on a value on the device: CUDA graphs can capture it all.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import folding, ops
from .modules import MSTCN, STMSGCN, MSG3DBlock, MWMSG3DBlock

MOST_SHAPES = 4096  # of x that weights are kept for; a server that takes clips as they are meets many lengths


class _PackedWeights:
    """Weights in the order in which tensor cores read them, packed once for each order that is needed.

    Which one it is follows from the tile, the tile from the sizes of x: a network that runs meets one to three orders.
    The first call that needs an order packs it, and waits, so that other streams may use it. What cannot be kept is
    packed by every call: in compiled code, and while a CUDA graph is captured, whose replay alone would write it.
    Copies begin without any.
    """

    def __init__(self) -> None:
        self._of_shape: dict[tuple[torch.Size, bool], tuple[Tensor | None, int]] = {}
        self._of_layout: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return type(self)().__dict__

    def get(self, operators: Any, x: Tensor, *weights_and_window: Any, tf32: bool) -> tuple[Tensor | None, int, bool]:
        """The last arguments of ms_g3d_relu and ms_g3d_collapse for x: packed weights, their order, and `tf32`."""
        if torch.compiler.is_compiling():
            return None, 0, tf32
        kept = self._of_shape.get((x.shape, tf32)) or self._pack(operators, x, *weights_and_window, tf32)
        return *kept, tf32

    def _pack(self, operators: Any, x: Tensor, *weights_window_and_tf32: Any) -> tuple[Tensor | None, int]:
        layout = operators.ms_g3d_layout(x, *weights_window_and_tf32)
        if layout and layout not in self._of_layout:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return None, 0
            packed = operators.ms_g3d_pack(x, *weights_window_and_tf32)
            if x.is_cuda:
                torch.cuda.current_stream(x.device).synchronize()
            self._of_layout[layout] = packed
        if len(self._of_shape) >= MOST_SHAPES:
            self._of_shape.clear()
        self._of_shape[x.shape, weights_window_and_tf32[-1]] = kept = self._of_layout.get(layout), layout
        return kept


class _Constants(nn.Module):
    """Weights folded in float64, kept in the network's type; `backend` says whose operators run on them."""

    def __init__(self, dtype: torch.dtype, backend: str) -> None:
        super().__init__()
        self.dtype, self.backend = dtype, backend
        self.packed = _PackedWeights()

    def keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.to(self.dtype).contiguous())

    def _apply(self, *args: Any, **kwargs: Any) -> "_Constants":
        self.packed = _PackedWeights()  # of the weights as they were, where they were
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = _PackedWeights()
        super()._load_from_state_dict(*args, **kwargs)


class GraphConvolution(_Constants):
    """relu(ms_g3d(x)), normalisation folded: (N, C, T, V) -> (N, O, T_out, tau*V)."""

    A: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, module: STMSGCN, dtype: torch.dtype, backend: str) -> None:
        super().__init__(dtype, backend)
        self.keep("A", folding.adjacency(module).transpose(1, 2))
        conv, bn, _ = module.mlp.layers
        weight, bias = folding.fold(conv, bn)
        self.keep("weight", weight.view(module.out_channels, module.num_scales, module.in_channels))
        self.keep("bias", bias)
        self.window = module.window_size, module.window_stride, module.window_dilation

    def forward(self, x: Tensor) -> Tensor:
        operators = ops.operators(self.backend)
        packed = self.packed.get(operators, x, self.A, self.weight, None, *self.window, tf32=ops.allows_tf32())
        return operators.ms_g3d_relu(x, self.A, self.weight, self.bias, *self.window, *packed)


class Windows(_Constants):
    """One G3D block: adds collapse(relu(ms_g3d(x))) to `out`; its bias is the caller's to add."""

    fold: Tensor

    def __init__(self, block: MSG3DBlock, dtype: torch.dtype, backend: str) -> None:
        super().__init__(dtype, backend)
        folding.check_windows(block)
        module = block.gcn3d[1]
        self.graph = GraphConvolution(module, dtype, backend)
        weight, bias = folding.fold(block.out_conv, block.out_bn)  # (O, E, 1, tau, 1)
        self.bias = bias  # float64; the sum of all is one of the residual's
        self.keep("fold", weight.flatten(2))  # (O, E, tau)
        frames = module.window_size * module.window_dilation
        clip = self.fold.new_empty(1, module.in_channels, frames, module.A.shape[1] // module.window_size)
        layout = ops.operators(backend).ms_g3d_layout
        arguments = clip, self.graph.A, self.graph.weight, self.fold, *self.graph.window
        self.in_one_kernel = [layout(*arguments, tf32) != 0 for tf32 in (False, True)]

    def forward(self, x: Tensor, out: Tensor, relu: bool) -> None:
        graph = self.graph
        tf32 = ops.allows_tf32()
        if self.in_one_kernel[tf32]:
            operators = ops.operators(self.backend)
            packed = self.packed.get(operators, x, graph.A, graph.weight, self.fold, *graph.window, tf32=tf32)
            operators.ms_g3d_collapse(
                x, graph.A, graph.weight, graph.bias, self.fold, None, out, True, relu, *graph.window, *packed
            )
            return
        y, tau = graph(x), graph.window[0]
        N, E, T, nodes = y.shape
        # The slots of a window stand below one another in a view of shape (N, E, T_out*tau, V).
        y = y.permute(0, 2, 3, 1).view(N, T * tau, nodes // tau, E).permute(0, 3, 1, 2)
        out.add_(F.conv2d(y, self.fold.unsqueeze(3), stride=(tau, 1)))
        if relu:
            out.relu_()


class TemporalUnit(_Constants):
    """MSTCN: (N, C, T, V) -> (N, O, T_out, V), in three launches. `extra` (O,) is added to its biases."""

    entry: Tensor
    entry_bias: Tensor
    taps: Tensor
    scale: Tensor
    direct: Tensor
    direct_bias: Tensor

    def __init__(self, module: MSTCN, dtype: torch.dtype, backend: str, extra: Tensor | None = None) -> None:
        super().__init__(dtype, backend)
        folding.check_temporal_unit(module)
        *dilated, pooled, linear = module.branches
        entries = [folding.fold(branch[0], branch[1]) for branch in [*dilated, pooled]]
        self.keep("entry", torch.cat([folding.matrix(weight) for weight, _ in entries], 1))  # (C, 5w)
        self.keep("entry_bias", torch.cat([bias for _, bias in entries]))
        convolutions = [folding.fold(branch[3].conv, branch[3].bn) for branch in dilated]  # (w, w, taps, 1)
        longest = max(weight.shape[2] for weight, _ in convolutions)
        centred = [F.pad(weight.squeeze(3), ((longest - weight.shape[2]) // 2,) * 2) for weight, _ in convolutions]
        self.keep("taps", torch.stack(centred).permute(0, 3, 1, 2))  # (branch, tap, output channel, input channel)
        scale, shift = folding.affine(pooled[4])
        self.keep("scale", scale)
        last, last_bias = folding.fold(linear[0], linear[1])
        direct, bias = folding.residual(module, self.entry.shape[1] + len(last_bias))
        before = self.entry.shape[1]
        direct[:, before:] += folding.matrix(last)  # it has no ReLU of its own: one more summand of the residual
        bias = bias + torch.cat([*(b for _, b in convolutions), shift, last_bias])
        self.keep("direct", direct)  # (C, O)
        self.keep("direct_bias", bias if extra is None else bias + extra)
        self.dilations, self.stride = [branch[3].conv.dilation[0] for branch in dilated], linear[0].stride[0]
        self.act = isinstance(module.act, nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)  # (N, T, V, C)
        read = rows[:, :: self.stride]
        if self.dtype == torch.float64:  # cuBLAS' epilogues may not be there: the third kernel does what they would
            h, out = torch.mm(rows.flatten(0, 2), self.entry), torch.mm(read.flatten(0, 2), self.direct)
            biases = self.entry_bias, self.direct_bias
        else:
            h = torch._addmm_activation(self.entry_bias, rows.flatten(0, 2), self.entry)
            out, biases = torch.addmm(self.direct_bias, read.flatten(0, 2), self.direct), (None, None)
        h = h.view(*rows.shape[:3], len(self.entry_bias)).permute(0, 3, 1, 2)
        out = out.view(*read.shape[:3], len(self.direct_bias)).permute(0, 3, 1, 2)
        operators = ops.operators(self.backend)
        operators.mstcn_folded(h, self.taps, self.scale, out, self.dilations, self.stride, self.act, *biases)
        return out


class Stage(nn.Module):
    """relu(sgcn(x) + gcn3d(x)), then tcn: (N, C, T, V) -> (N, O, T_out, V)."""

    def __init__(self, sgcn: nn.Sequential, gcn3d: MWMSG3DBlock, tcn: MSTCN, dtype: torch.dtype, backend: str) -> None:
        super().__init__()
        self.windows = nn.ModuleList(Windows(block, dtype, backend) for block in gcn3d.gcn3d)
        self.graph = GraphConvolution(sgcn[0], dtype, backend)
        self.first = TemporalUnit(sgcn[1], dtype, backend)
        self.second = TemporalUnit(sgcn[2], dtype, backend, sum(block.bias for block in self.windows))
        self.tcn = TemporalUnit(tcn, dtype, backend)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(self.graph(x)))
        for i, block in enumerate(self.windows, 1):
            block(x, y, i == len(self.windows))
        return self.tcn(y)


class FoldedNetwork(_Constants):
    """The backbone: clips (N, M, T, V, C) -> (N*M, 4*base_channels, T_out, V), channels_last.

    Args:
        backbone: in eval mode, on a CUDA device, or on the CPU for the emulator.
        dtype: of its parameters.
        backend: "native" or "emulated".
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: nn.Module, dtype: torch.dtype, backend: str) -> None:
        super().__init__(dtype, backend)
        M, V, C = backbone.num_person, backbone.layout.num_joints, backbone.in_channels
        for name, values in zip(("scale", "shift"), folding.affine(backbone.data_bn), strict=True):
            self.keep(name, values.view(M, 1, V, C))
        self.stages = nn.Sequential(*(Stage(*stage, dtype, backend) for stage in folding.stages(backbone)))

    def normalized(self, clips: Tensor) -> Tensor:
        """data_bn of the clips, as the stages take them: (N*M, C, T, V), channels_last."""
        x = torch.addcmul(self.shift, clips.contiguous(), self.scale)
        return x.flatten(0, 1).permute(0, 3, 1, 2)

    def forward(self, clips: Tensor) -> Tensor:
        return self.stages(self.normalized(clips))
