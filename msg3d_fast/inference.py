"""The folded network: what `fuse(model)` makes of a trained recogniser.

Every batch normalisation becomes a part of its neighbours and A + PA a constant (folding.py). What is left are matrix
products with a bias and a ReLU. On a GPU they run layer by layer (folded.py); on the CPU `csrc/kernels/folded` runs
them on weights packed once.

The packing is a list of sizes and one flat array, written here in the order in which `csrc/kernels/folded/network.h`
reads them. Weight matrices become panels of 16 output channels. Channel counts are rounded up: each branch of MSTCN
takes a multiple of 16 places, those without a channel have zero weights and stay zero.
"""

import math
from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import _library, absent, folding
from .errors import UserError
from .folded import FoldedNetwork
from .folding import DILATIONS
from .graph import Layout
from .model import Recognizer, check_clips, take
from .modules import MSTCN, STMSGCN, MWMSG3DBlock
from .watch import Watch

GPU_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PANEL = 16  # kPanel in csrc/kernels/gemm/fused_product.h
LARGEST = 64  # scales, window and dilation that csrc/kernels/folded/network.h reads


def _round_up(value: int, multiple: int = PANEL) -> int:
    return -(-value // multiple) * multiple


def _places(channels: int) -> tuple[Tensor, int]:
    """Where MSTCN's channels go, (channels,), and how many places there are: whole panels for each branch."""
    width = channels // (len(DILATIONS) + 2)
    slot, branch = _round_up(width), torch.arange(channels) // width
    branch = branch.clamp(max=len(DILATIONS) + 1)
    last = channels - (len(DILATIONS) + 1) * width
    return branch * slot + torch.arange(channels) - branch * width, (len(DILATIONS) + 1) * slot + _round_up(last)


def _spread(tensor: Tensor, dim: int, places: Tensor, size: int) -> Tensor:
    """`tensor` with dimension `dim` widened to `size`: entry i at places[i], zeros elsewhere."""
    shape = list(tensor.shape)
    shape[dim] = size
    return tensor.new_zeros(shape).index_copy_(dim, places, tensor)


def _at_points(B: Tensor) -> list[Tensor]:
    """The factors of csrc/kernels/folded/joined_windows.h for windows of five, B (5, ...)."""
    points = [0, 1, -1, 0.5, -2]

    def at(p: float, taps: Tensor, others: list[float]) -> Tensor:
        scale = math.prod(p - q for q in others if q != p)
        return sum(p**j * tap for j, tap in enumerate(taps)) / scale

    factors = {p: [at(p, B[::2], points), at(p, B[1::2], points[:-1])] for p in points[:-1]}
    return [*factors.pop(0), B[4], B[3], *chain.from_iterable(factors.values()), at(-2, B[::2], points)]


class _Packer:
    """Collects sizes and arrays in the order in which the kernels read them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.arrays: list[Tensor] = []

    def array(self, values: Tensor) -> None:
        flat = values.reshape(-1)
        self.arrays.append(torch.cat([flat, flat.new_zeros(-len(flat) % PANEL)]))

    def panels(self, matrix: Tensor) -> None:
        """A matrix (rows, O) as O/16 panels (rows, 16)."""
        self.array(matrix.unflatten(1, (-1, PANEL)).transpose(0, 1))

    def graph_convolution(
        self, module: STMSGCN, source: tuple[Tensor, int], target: tuple[Tensor, int], aggregate_first: bool
    ) -> None:
        K, tau = module.num_scales, module.window_size
        if max(K, tau, module.window_dilation) > LARGEST:
            raise UserError(
                f"a graph convolution of {K} scales, window {tau} and dilation {module.window_dilation}; fuse takes "
                f"up to {LARGEST} of each"
            )
        self.sizes += [K, tau, module.window_dilation]
        A = folding.adjacency(module)  # (K, source, destination)
        nodes = A.shape[1]
        if aggregate_first:
            self.array(A.transpose(1, 2))  # ((k,w,v), (w',u))
        else:
            self.array(A.reshape(K, tau, nodes // tau, nodes).permute(3, 1, 0, 2))  # ((w,v), (w',k,u))
        conv, bn, _ = module.mlp.layers
        weight, bias = folding.fold(conv, bn)
        weight = _spread(weight.view(-1, K, module.in_channels), 2, *source).flatten(1)  # (O, (k,c))
        self.panels(_spread(weight, 0, *target).t())
        self.array(_spread(bias, 0, *target))
        if tau in (3, 5) and (module.window_stride, module.window_dilation) == (2, 1):  # joins() in network.h
            B = A.reshape(K, tau, nodes // tau, nodes).permute(1, 3, 0, 2)  # (w', (w,v), k, u)
            self.array(B[0] + B[2] if tau == 3 else torch.stack(_at_points(B), 1))

    def temporal_unit(self, module: MSTCN, source: tuple[Tensor, int], target: tuple[Tensor, int]) -> None:
        folding.check_temporal_unit(module)
        *dilated, pooled, linear = module.branches
        width, taps = dilated[0][0].out_channels, dilated[0][3].conv.kernel_size[0]
        slot, channels = _round_up(width), torch.arange(width)
        hidden = (len(DILATIONS) + 1) * slot
        convolves = not isinstance(module.residual, nn.Identity)
        self.sizes += [slot, target[1] - hidden, taps, int(convolves), int(not isinstance(module.act, nn.Identity))]

        entries = [folding.fold(branch[0], branch[1]) for branch in [*dilated, pooled]]
        self.panels(torch.cat([_spread(self._matrix(w, source), 1, channels, slot) for w, _ in entries], 1))
        self.array(torch.cat([_spread(b, 0, channels, slot) for _, b in entries]))
        if convolves:
            weight, bias = folding.fold(module.residual.conv, module.residual.bn)
            residual, residual_bias = _spread(self._matrix(weight, source), 1, *target), _spread(bias, 0, *target)
        else:
            residual, residual_bias = torch.eye(target[1], dtype=torch.float64), torch.zeros(target[1]).double()
        bias_of = residual_bias.split(slot)
        for branch, bias in zip(dilated, bias_of, strict=False):
            w, b = folding.fold(branch[3].conv, branch[3].bn)  # (b, b, taps, 1)
            w = _spread(_spread(w.squeeze(3), 0, channels, slot), 1, channels, slot)
            self.panels(w.permute(2, 1, 0).flatten(0, 1))
            self.array(_spread(b, 0, channels, slot) + bias)
        scale, shift = folding.affine(pooled[4])
        self.array(_spread(scale, 0, channels, slot))
        self.array(_spread(shift, 0, channels, slot) + bias_of[len(DILATIONS)])
        # The last branch has no ReLU of its own: the residual is one more summand of its weights.
        w, b = folding.fold(linear[0], linear[1])
        last = (torch.arange(len(b)), target[1] - hidden)
        self.panels(_spread(self._matrix(w, source), 1, *last) + residual[:, hidden:])
        self.array(_spread(b, 0, *last) + residual_bias[hidden:])
        if convolves:
            self.panels(residual[:, :hidden])

    def windows(
        self, module: MWMSG3DBlock, source: tuple[Tensor, int], target: tuple[Tensor, int], first: bool
    ) -> None:
        self.sizes.append(len(module.gcn3d))
        bias = torch.zeros(target[1], dtype=torch.float64)
        for block in module.gcn3d:
            folding.check_windows(block)
            conv = block.gcn3d[1]
            embedded = (torch.arange(conv.out_channels), _round_up(conv.out_channels))
            self.sizes.append(embedded[1])
            self.graph_convolution(conv, source, embedded, first)
            w, b = folding.fold(block.out_conv, block.out_bn)  # (O, E, 1, tau, 1)
            w = _spread(_spread(w.flatten(2), 0, *target), 1, *embedded)
            self.panels(w.permute(2, 1, 0).flatten(0, 1))
            bias += _spread(b, 0, *target)
        self.array(bias)

    @staticmethod
    def _matrix(weight: Tensor, source: tuple[Tensor, int]) -> Tensor:
        """The weight (O, C, 1, 1) of a 1x1 convolution as (places of C, O)."""
        return _spread(folding.matrix(weight), 0, *source)


def _pack(model: Recognizer) -> tuple[Tensor, Tensor, tuple[Tensor, int]]:
    """Sizes int64, weights float64, and the places of the last stage's channels."""
    net, packer = model.backbone, _Packer()
    M, V, C = net.num_person, net.layout.num_joints, net.in_channels
    source = (torch.arange(C), _round_up(C, 4))
    packer.sizes += [M, V, C]
    for values in folding.affine(net.data_bn):
        packer.array(_spread(values.view(M, V, C), 2, *source))
    stages = folding.stages(net)
    packer.sizes.append(len(stages))
    for i, (sgcn, gcn3d, tcn) in enumerate(stages):
        spatial, first, second = sgcn
        middle, target = _places(spatial.out_channels), _places(tcn.branches[5][0].in_channels)
        packer.sizes += [middle[1], target[1], gcn3d.gcn3d[0].gcn3d[1].window_stride]
        packer.graph_convolution(spatial, source, middle, aggregate_first=i == 0)
        packer.temporal_unit(first, middle, target)
        packer.temporal_unit(second, target, target)
        packer.temporal_unit(tcn, target, target)
        packer.windows(gcn3d, source, target, first=i == 0)
        source = target
    return torch.tensor(packer.sizes), torch.cat(packer.arrays), source


class FusedRecognizer(nn.Module, ABC):
    """A recogniser folded for inference; `fuse` makes it. Clips (N, M, T, V, C) -> logits (N, num_classes).

    Args:
        model: the recogniser, in eval mode.
        skip_absent: do not compute persons that are zero in every frame; see `fuse`.
    """

    fc_weight: Tensor
    fc_bias: Tensor

    def __init__(self, model: Recognizer, skip_absent: bool) -> None:
        super().__init__()
        self.hparams: dict[str, Any] = dict(model.hparams)
        self.layout: Layout = model.layout
        self.dtype: torch.dtype = model.cls_head.fc.weight.dtype
        self.skip_absent = skip_absent
        self._watch: Watch | None = Watch(model)
        super().train(False)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """What the classifier looks at, (N, 4*base_channels), as `Recognizer.features`."""

    def _check(self, x: Tensor) -> None:
        h = self.hparams
        check_clips(x, self.layout, h["num_person"], h["in_channels"], self.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            raise UserError(
                "the input requires a gradient, a fused model computes none; use the model that it was made from"
            )
        if x.device != self.fc_bias.device:
            raise UserError(f"input is on {x.device}, this model on {self.fc_bias.device}; move one with .to(device)")
        if not torch.compiler.is_compiling() and self._watch is not None and self._watch.changed():
            raise UserError("the model's weights changed since it was fused; call fuse(model) again")

    def train(self, mode: bool = True) -> "FusedRecognizer":
        if mode:
            raise UserError(
                "a fused model has no training mode; train the model that it was made from and fuse it again"
            )
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        # A copy stands alone: there is no model beside it whose weights could change.
        return {**self.__dict__, "_watch": None}


class PackedRecognizer(FusedRecognizer):
    """A fused recogniser on the CPU.

    Deterministic bit for bit for any number of threads; several Python threads may call it at once. Working memory,
    about 6 MB for each of at most max(4, threads / 2) persons of 100 frames of the coco network, is kept between calls
    and shared by all of them.
    """

    sizes: Tensor
    weights: Tensor
    places: Tensor

    def __init__(self, model: Recognizer, skip_absent: bool) -> None:
        super().__init__(model, skip_absent)
        sizes, weights, places = _pack(model)
        fc = model.cls_head.fc
        self.register_buffer("sizes", sizes)
        self.register_buffer("weights", weights.to(self.dtype))
        self.register_buffer("fc_weight", _spread(fc.weight.detach(), 1, *places))
        self.register_buffer("fc_bias", fc.bias.detach().clone())
        self.register_buffer("places", places[0])
        self._absent: dict[int, Tensor] = {}  # by T: features (M, features) of persons that are not there

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)[0]

    def features(self, x: Tensor) -> Tensor:
        return self._run(x)[1][:, self.places].to(x.dtype)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and float64 (N, places of the last stage's channels)."""
        self._check(x)
        # A graph holds no decisions on values: it computes every person.
        skips, T = self.skip_absent and not torch.compiler.is_compiling(), x.shape[2]
        known = self._absent.get(T) if skips else None
        logits, features, absent = torch.ops.msg3d_fast.folded_network(
            x.detach(), self.sizes, self.weights, self.fc_weight, self.fc_bias, skips, known
        )
        if skips and len(absent):
            self._absent[T] = absent
        return logits, features


class LayeredRecognizer(FusedRecognizer):
    """A fused recogniser on a GPU, or on its emulator: at most 60 launches a forward pass.

    Nothing waits for the device unless `skip_absent` does, so that CUDA graphs can capture a call. Autocast changes
    nothing: it computes in the model's type and sums in float32.
    """

    def __init__(self, model: Recognizer, skip_absent: bool, backend: str) -> None:
        super().__init__(model, skip_absent)
        self.network = FoldedNetwork(model.backbone, self.dtype, backend)
        self.register_buffer("fc_weight", model.cls_head.fc.weight.detach().clone())
        self.register_buffer("fc_bias", model.cls_head.fc.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.fc_bias.device.type, enabled=False):
            return F.linear(self.features(x), self.fc_weight, self.fc_bias)

    def features(self, x: Tensor) -> Tensor:
        self._check(x)
        N, M = x.shape[:2]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # also when features() asks
            merged = absent.merge(x) if self._may_merge(x) else None
            if merged:
                y = self.network.stages(take(self.network.normalized(x), merged.rows))
                return y.mean((2, 3)).index_select(0, merged.row_of).unflatten(0, (N, M)).mean(1)
            return self.network(x).unflatten(0, (N, M)).mean((1, 3, 4))

    def _may_merge(self, x: Tensor) -> bool:
        if not self.skip_absent or torch.compiler.is_compiling():
            return False
        return not (x.is_cuda and torch.cuda.is_current_stream_capturing())  # a graph holds no decisions on values


def fuse(model: Recognizer, skip_absent: bool | None = None) -> FusedRecognizer:
    """Fold a trained recogniser for inference: the same call, the same logits, several times faster on the CPU.

    Every batch normalisation but those behind max-pools is multiplied into its convolution in float64, A + PA is added
    up, and on the CPU the weights are packed once. logits = fuse(model)(x) equals model.eval()(x) within rounding; for
    a float64 model within 1e-10.

    Args:
        model: in eval mode, float32 or float64, on a CUDA device (or with backend "emulated") also float16 or bfloat16.
        skip_absent: a person slot that is zero in every frame, joint and channel of a clip has the same features in
            every such clip: they are computed once and reused, with the same result. A slot that is zero in some frames
            only is a person. To know who is there a GPU's host must wait for the device, once a call. None: on the CPU
            as the model does; on a GPU no.

    Returns:
        FusedRecognizer: a module without parameters or training mode, for the device that the model is on. It refuses
        to run once the model's weights have changed, for as long as somebody holds the model; on a GPU it does not
        notice what is written through `.data`.

    Raises:
        UserError: a model in training mode, on another device, of another float type, or that is no Recognizer.
    """
    if not isinstance(model, Recognizer):
        raise UserError(f"fuse takes a Recognizer, found {type(model).__name__}; see msg3d_fast.Recognizer")
    _library.require()
    if any(m.training for m in model.modules()):
        raise UserError(
            "the model is in training mode, whose batch statistics cannot be folded; call model.eval() first"
        )
    kinds = {(p.device, p.dtype) for p in model.parameters()}
    device, dtype = next(iter(kinds))
    on_gpu = device.type == "cuda" or (device.type == "cpu" and model.backend == "emulated")
    expected, fix = ("float32 or float64 on cpu", "model.float().cpu()")
    if on_gpu:
        expected, fix = "one float type on one device", f"model.float().to({str(device)!r})"
    if len(kinds) != 1 or dtype not in (GPU_TYPES if on_gpu else GPU_TYPES[:2]) or device.type not in ("cpu", "cuda"):
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise UserError(f"the model's parameters are {found}; fuse needs {expected}: use {fix}")
    if not on_gpu:
        with torch.no_grad():
            return PackedRecognizer(model, model.backbone.skip_absent if skip_absent is None else skip_absent)
    if device.type == "cuda" and model.backend == "emulated":
        raise UserError(f"the model is on {device}; backend 'emulated' runs on the CPU: set model.backend = 'native'")
    if device.type == "cuda":
        _library.require_cuda()
    with torch.no_grad():
        return LayeredRecognizer(model, bool(skip_absent), "native" if device.type == "cuda" else "emulated")


if _library.available():

    @torch.library.register_fake("msg3d_fast::folded_network")
    def _folded_network(
        x: Tensor,
        sizes: Tensor,
        weights: Tensor,
        fc_weight: Tensor,
        fc_bias: Tensor,
        skip_absent: bool,
        absent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        computed = torch.library.get_ctx().new_dynamic_size() if skip_absent and absent is None else 0
        N, (classes, width) = len(x), fc_weight.shape
        return (
            x.new_empty(N, classes),
            x.new_empty(N, width, dtype=torch.float64),
            x.new_empty(computed, width, dtype=torch.float64),
        )
