"""Fused training blocks: the outputs, gradients and statistics of their layers, whatever shape, memory or threads."""

import copy
from collections.abc import Callable

import pytest
import torch
from tolerance import assert_as_good_as_eager, error
from torch import Tensor, nn

from msg3d_fast import Layout, Recognizer, blocks
from msg3d_fast.modules import MSGCN, MSTCN, STMSGCN, MSG3DBlock

CHAIN = Layout(tuple("abcde"), ((1, 0), (2, 1), (3, 2), (4, 3)), 2)  # V = 5

# name: (block, input channels, frames)
CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "tcn_identity": (lambda: MSTCN(12, 12), 12, 13),
    "tcn_no_relu": (lambda: MSTCN(12, 12, act=False), 12, 120),
    "tcn_stride2": (lambda: MSTCN(10, 19, stride=2), 10, 31),
    "tcn_stride3": (lambda: MSTCN(7, 7, stride=3), 7, 20),
    "tcn_no_residual": (lambda: MSTCN(12, 30, residual=False), 12, 9),
    "tcn_one_frame": (lambda: MSTCN(18, 18), 18, 1),
    "tcn_wide": (lambda: MSTCN(96, 192, stride=2, kernel_size=5, dilations=(1, 3)), 96, 60),
    "tcn_kernels_differ": (lambda: MSTCN(12, 12, kernel_size=(3, 5, 3, 1)), 12, 11),
    "gcn_expands": (lambda: MSGCN(4, 3, 12, CHAIN), 3, 9),
    "gcn_wide": (lambda: MSGCN(3, 33, 20, CHAIN), 33, 50),
    "gcn_windows": (lambda: STMSGCN(2, 4, 6, CHAIN, 3), 4, 7),
    "gcn_no_relu": (lambda: MSGCN(2, 5, 7, CHAIN, act=False), 5, 6),
    "g3d_expands": (lambda: MSG3DBlock(3, 12, CHAIN, 3, 3, expand=True), 3, 11),
    "g3d_stride2": (lambda: MSG3DBlock(20, 33, CHAIN, 2, 5, 2), 20, 21),
    "g3d_dilated": (lambda: MSG3DBlock(7, 5, CHAIN, 2, 3, 1, 2), 7, 8),
    "g3d_embeds": (lambda: MSG3DBlock(7, 8, CHAIN, 2, 3, embed_factor=2), 7, 8),
}


def built(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """The block with every parameter and statistic drawn at random, and an input of three samples in channels_last."""
    make, channels, frames = CASES[name]
    block = make().train().to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
        for norm in block.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
    return block, torch.randn(3, channels, frames, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)


def by_layers(block: nn.Module) -> nn.Module:
    twin = copy.deepcopy(block)
    for module in twin.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"
    return twin


def results(block: nn.Module, x: Tensor, weights: Tensor | None = None, step: blocks.Step | None = None):
    """Output, gradients of the input and of every parameter, every buffer."""
    x = x.clone().requires_grad_()
    y = block(x) if step is None else block(x, step)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64) if weights is None else weights
    (y * weights.to(y.dtype)).sum().backward()
    found = {"y": y.detach(), "gx": x.grad, **{f"gp/{name}": p.grad for name, p in block.named_parameters()}}
    return found | {f"b/{name}": buffer.clone() for name, buffer in block.named_buffers()}


def assert_same(found: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == exact.keys()
    largest = max(value.abs().max() for key, value in exact.items() if key.startswith("gp/"))
    for key, value in exact.items():
        scale = largest if key.startswith("gp/") else value.double().abs().max().clamp(min=1e-300)
        off = ((found[key] - value).abs().max() / scale).item()
        assert off <= tolerance, f"{key}: off by {off:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_fused_agrees_with_the_layers(name: str) -> None:
    block, x = built(name)
    assert_same(results(copy.deepcopy(block), x), results(by_layers(block), x), 1e-12)


@pytest.mark.parametrize("name", ["tcn_wide", "tcn_no_relu", "gcn_wide", "g3d_stride2", "g3d_expands"])
def test_float32_is_as_good_as_eager(name: str) -> None:
    block, x = built(name, torch.float32)
    exact = results(by_layers(block).double(), x.double())
    eager, fused = results(by_layers(block), x), results(copy.deepcopy(block), x)
    largest = max(value.abs().max().item() for key, value in exact.items() if key.startswith("gp/"))
    for key, value in exact.items():
        scale = largest if key.startswith("gp/") else None
        assert_as_good_as_eager(error(fused[key], value, scale), error(eager[key], value, scale), key)


@pytest.mark.parametrize("name", ["tcn_identity", "tcn_stride2", "gcn_wide", "g3d_stride2"])
def test_a_row_stands_for_several_equal_ones(name: str) -> None:
    block, x = built(name)
    copies = torch.tensor([0, 1, 1, 2, 1, 2])
    shape = by_layers(block)(x[copies]).shape
    weights = torch.randn(shape, dtype=torch.float64)
    summed = torch.zeros(3, *shape[1:], dtype=torch.float64).index_add(0, copies, weights)
    padded, twin = results(by_layers(block), x[copies], weights), copy.deepcopy(block)
    step = blocks.Step(6, torch.bincount(copies).double())
    found = results(twin, x, summed, step)
    padded["y"] = padded["y"][[0, 1, 3]]
    padded["gx"] = torch.zeros_like(x).index_add(0, copies, padded["gx"])
    assert_same(found, padded, 1e-12)


@pytest.mark.parametrize("name", ["tcn_stride2", "tcn_no_relu", "g3d_expands", "g3d_stride2"])
def test_low_memory_changes_no_bit(name: str) -> None:
    block, x = built(name, torch.float32)
    fast = results(copy.deepcopy(block), x, None, blocks.Step(3))
    low = results(copy.deepcopy(block), x, None, blocks.Step(3, None, low_memory=True))
    assert all(torch.equal(low[key], value) for key, value in fast.items())


@pytest.mark.parametrize("name", ["tcn_wide", "tcn_no_relu", "gcn_wide", "g3d_stride2"])
def test_threads_change_no_bit(name: str) -> None:
    block, x = built(name, torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            runs.append(results(copy.deepcopy(block), x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(run[key], value) for run in runs[1:] for key, value in runs[0].items())


@pytest.mark.parametrize("name", ["tcn_identity", "tcn_stride3", "gcn_expands", "g3d_dilated"])
def test_gradcheck(name: str) -> None:
    block, x = built(name)
    block, x = block.requires_grad_(False), x[:2, :, :4].requires_grad_()
    names, values = zip(*((key, value.requires_grad_()) for key, value in block.named_parameters()), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    # The biases before a batch normalisation have exactly no gradient, the numeric one is rounding.
    assert torch.autograd.gradcheck(run, (x, *values), atol=1e-6, rtol=1e-4, fast_mode=True)


def test_compiles_whole() -> None:
    block, x = built("tcn_stride2")
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend="aot_eager")
    found = {key.replace("_orig_mod.", ""): value for key, value in results(compiled, x).items()}
    assert_same(found, results(block, x), 1e-12)


def test_steps_begin_only_where_they_hold() -> None:
    block, x = built("tcn_identity", torch.float32)
    assert blocks.begin(block, x, "native") == blocks.Step(3)
    assert blocks.begin(block, x, "reference") is None
    assert blocks.begin(block, x.to("meta"), "native") is None
    assert blocks.begin(block, x.half(), "native") is None
    assert blocks.begin(block, x[:0], "native") is None
    with torch.autocast("cpu"):
        assert blocks.begin(block, x, "native") is None
    assert blocks.begin(copy.deepcopy(block).eval(), x, "native") is None
    frozen = copy.deepcopy(block)
    frozen.branches[0][1].eval()
    assert blocks.begin(frozen, x, "native") is None
    assert blocks.begin(nn.SyncBatchNorm.convert_sync_batchnorm(block), x, "native") is None


def test_frozen_statistics_train_layer_by_layer() -> None:
    block, x = built("tcn_identity")
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    before = block.branches[0][1].running_mean.clone()
    assert_same(results(copy.deepcopy(block), x), results(by_layers(block), x), 1e-12)
    assert torch.equal(block.branches[0][1].running_mean, before)


@pytest.mark.parametrize(("memory", "megabytes"), [("fast", 80), ("low", 45)])
def test_bytes_kept_for_the_backward_pass(memory: str, megabytes: int) -> None:
    """The default network, one clip of two persons and 100 frames: every storage once, parameters not counted."""
    model = Recognizer("coco", num_classes=60, memory=memory).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randn(1, 2, 100, 17, 3)).sum()
    assert 10e6 < sum(kept.values()) <= megabytes * 1e6
    loss.backward()
