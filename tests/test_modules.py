"""The blocks: sizes, memory format, initialisation, exact statistics. Upstream's numbers: test_golden_networks."""

import math
from functools import partial

import pytest
import torch
from tolerance import assert_as_good_as_eager, error
from torch import Tensor, nn

from msg3d_fast import UserError, ops
from msg3d_fast.modules import MSGCN, MSTCN, STMSGCN, MSG3DBlock, MWMSG3DBlock, TemporalConv
from msg3d_fast.normalization import BatchNorm2d

BACKENDS = ("reference", "native")
BLOCKS = {
    "MSGCN": partial(MSGCN, 4, 6, 8, "coco"),
    "MSGCN_one_channel": partial(MSGCN, 2, 1, 8, "coco"),
    "MSG3DBlock": partial(MSG3DBlock, 6, 8, "coco", 3, 3),
    "MSG3DBlock_stride2": partial(MSG3DBlock, 6, 8, "coco", 3, 5, window_stride=2),
    "MSG3DBlock_dilated": partial(MSG3DBlock, 6, 8, "coco", 3, 3, window_stride=2, window_dilation=3),
    "MSG3DBlock_expand": partial(MSG3DBlock, 2, 8, "coco", 3, 3, expand=True),
    "MSG3DBlock_embed": partial(MSG3DBlock, 6, 8, "coco", 3, 3, embed_factor=2),
    "MWMSG3DBlock": partial(MWMSG3DBlock, 6, 8, "coco", 3, window_stride=2),
    "MSTCN": lambda backend: MSTCN(6, 12),
    "MSTCN_stride2": lambda backend: MSTCN(6, 13, stride=2),
    "MSTCN_plain": lambda backend: MSTCN(6, 12, residual=False, act=False, dropout=0.5),
}


def in_channels(block: nn.Module) -> int:
    return next(module.in_channels for module in block.modules() if isinstance(module, STMSGCN | nn.Conv2d))


def give(C: int, T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, C, T, 17, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("T", [1, 2, 7])
@pytest.mark.parametrize("name", BLOCKS)
def test_backends_agree_in_float64(name: str, T: int) -> None:
    blocks = {backend: BLOCKS[name](backend=backend).double().eval() for backend in BACKENDS}
    blocks["native"].load_state_dict(blocks["reference"].state_dict())
    x = give(in_channels(blocks["native"]), T, torch.float64)
    found = {backend: block(x) for backend, block in blocks.items()}
    torch.testing.assert_close(found["native"], found["reference"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_last_goes_in_and_comes_out_without_a_copy(name: str) -> None:
    block = BLOCKS[name](backend="native")
    x, before = give(in_channels(block), 8), ops.format_conversions()
    for mode in (True, False):
        y = block.train(mode)(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert ops.format_conversions() == before


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("T", [1, 4, 5])
def test_spatial_and_temporal_paths_end_on_the_same_frames(stride: int, T: int) -> None:
    x = torch.randn(1, 6, T, 17)
    expected = (1, 12, (T - 1) // stride + 1, 17)
    assert MSTCN(6, 12, stride=stride).eval()(x).shape == expected
    for window, dilation in ((3, 1), (5, 1), (3, 4), (2, 2)):
        block = MSG3DBlock(6, 12, "coco", 2, window, stride, dilation).eval()
        assert block(x).shape == expected


def test_windows_and_widths_that_cannot_be_built() -> None:
    with pytest.raises(UserError, match="windows of 4 frames with window_dilation 1 have no middle frame"):
        MSG3DBlock(6, 12, "coco", 2, 4)
    with pytest.raises(UserError, match="kernel_size is 4"):
        MSTCN(6, 12, kernel_size=4)
    with pytest.raises(UserError, match="MSTCN has 6 branches, found 5 output channels"):
        MSTCN(6, 5)
    with pytest.raises(UserError, match="backend is 'fast'"):
        MSGCN(2, 6, 12, "coco", backend="fast")


@pytest.mark.parametrize("width", [6, 7, 13, 16])
def test_last_branch_takes_the_remainder(width: int) -> None:
    block = MSTCN(6, width, kernel_size=[3, 5, 3, 7]).eval()
    entries = [branch[0].out_channels for branch in block.branches]
    assert entries == [width // 6] * 5 + [width - 5 * (width // 6)]
    assert block(torch.randn(2, 6, 9, 5)).shape == (2, width, 9, 5)


def test_mstcn_branches_one_by_one() -> None:
    block = MSTCN(6, 12, stride=2).double()
    x = torch.randn(2, 6, 9, 17, dtype=torch.float64)
    y = torch.cat([branch(x) for branch in block.branches], 1) + block.residual(x)
    torch.testing.assert_close(block(x), y.relu())
    plain = MSTCN(6, 12, residual=False, act=False).double()
    torch.testing.assert_close(plain(x), torch.cat([branch(x) for branch in plain.branches], 1))


def test_temporal_dropout_follows_the_activation() -> None:
    block = MSTCN(12, 12, dropout=0.5).train()
    x = torch.randn(4, 12, 20, 17)
    y = block(x)
    reference = MSTCN(12, 12).train()
    reference.load_state_dict(block.state_dict())
    kept = y != 0
    torch.testing.assert_close(y[kept], 2 * reference(x)[kept])


def std(weight: Tensor) -> float:
    return weight.std().item()


def is_kaiming(conv: nn.Conv2d) -> bool:
    fan_out = conv.out_channels * math.prod(conv.kernel_size)
    assert conv.weight.numel() > 2000, "too few numbers to tell"
    expected = math.sqrt(2 / fan_out)
    close = abs(std(conv.weight) / expected - 1) < 0.08
    normal = conv.weight.abs().max() > 2.5 * expected
    return close and bool(normal) and not conv.bias.any()


def is_torchs_own(conv: nn.Conv2d | nn.Conv3d) -> bool:
    bound = 1 / math.sqrt(conv.in_channels * math.prod(conv.kernel_size))
    uniform = bool(conv.weight.abs().max() <= bound) and abs(std(conv.weight) * math.sqrt(3) / bound - 1) < 0.05
    return uniform and bool(conv.bias.any())


@pytest.mark.parametrize(
    ("flavour", "check"), [("mmaction2", is_kaiming), ("pyskl", is_torchs_own), ("original", is_torchs_own)]
)
def test_temporal_convolutions_start_as_upstreams(flavour: str, check: object) -> None:
    block = MSTCN(192, 384, flavour=flavour)
    convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 11
    assert all(check(conv) for conv in convs)


@pytest.mark.parametrize("flavour", ["mmaction2", "pyskl", "original"])
def test_graph_convolutions_start_as_upstreams(flavour: str) -> None:
    block = MSG3DBlock(64, 64, "coco", 4, 3, flavour=flavour)
    assert is_torchs_own(block.gcn3d[1].mlp.layers[0])
    assert is_torchs_own(block.out_conv)
    PA = block.gcn3d[1].PA
    assert PA.abs().max() <= 1e-6
    assert abs(std(PA) / (1e-6 / math.sqrt(3)) - 1) < 0.05


def test_learned_residual_is_source_first_as_the_adjacency() -> None:
    """What PA[k, source, destination] = 1 adds to the destination is the source's features."""
    block = MSGCN(1, 2, 2, "coco", act=False).double().eval()
    x = torch.randn(1, 2, 3, 17, dtype=torch.float64)
    before = block(x)
    with torch.no_grad():
        block.PA[0, 4, 9] += 1
    conv, bn = block.mlp.layers
    gain = (
        torch.einsum("oc,ct->ot", conv.weight[:, :, 0, 0], x[0, :, :, 4]) * (bn.running_var + bn.eps).rsqrt()[:, None]
    )
    difference = block(x) - before
    torch.testing.assert_close(difference[0, :, :, 9], gain)
    assert torch.equal(difference[..., :9], torch.zeros_like(difference[..., :9]))


@pytest.mark.parametrize("rows", [(2, 8, 5), (16, 100, 17)], ids=["few", "many"])
def test_channels_last_statistics_are_as_exact_as_contiguous_ones(rows: tuple[int, int, int]) -> None:
    N, T, V = rows
    x, grad = torch.randn(N, 12, T, V) + 1, torch.randn(N, 12, T, V)
    start = BatchNorm2d(12)
    start.weight.data.uniform_(0.5, 1.5)
    start.bias.data.normal_()

    def run(dtype: torch.dtype, kind: type, layout: torch.memory_format) -> dict[str, Tensor]:
        bn = kind(12)
        bn.load_state_dict(start.state_dict())
        bn = bn.to(dtype)
        leaf = x.detach().to(dtype).contiguous(memory_format=layout).clone().requires_grad_()
        y = bn(leaf)
        y.backward(grad.to(dtype).contiguous(memory_format=layout))
        assert y.is_contiguous(memory_format=layout)
        return {"y": y, "x": leaf.grad, "weight": bn.weight.grad, "bias": bn.bias.grad, **dict(bn.named_buffers())}

    exact = run(torch.float64, nn.BatchNorm2d, torch.contiguous_format)
    eager = run(torch.float32, nn.BatchNorm2d, torch.contiguous_format)
    found = run(torch.float32, BatchNorm2d, torch.channels_last)
    assert found.pop("num_batches_tracked") == 1
    for name in found:
        assert_as_good_as_eager(error(found[name], exact[name]), error(eager[name], exact[name]), name)


def test_strided_pointwise_convolution_in_channels_last_memory() -> None:
    conv = TemporalConv(6, 5, kernel_size=1, stride=2).conv.double()
    for T in (1, 4, 7):
        x = torch.randn(2, 6, T, 17, dtype=torch.float64)
        torch.testing.assert_close(conv(x.contiguous(memory_format=torch.channels_last)), conv(x))
        assert conv(x).shape == (2, 5, (T + 1) // 2, 17)
