"""Batch normalisation whose statistics the GPU's kernels gather, over CPU tensors: the numbers of the layers one by
one, and the layers themselves wherever it steps aside."""

import copy
from collections.abc import Callable

import pytest
import torch
from emulated import raw
from problems import PROBLEMS, Problem
from test_emulated import TENSOR_CORES
from test_fused_gpu import Recorder
from test_ops_torch import detached
from tolerance import FLOOR, deviation, error
from torch import Tensor, nn

from msg3d_fast import gpu_blocks
from msg3d_fast.modules import STMSGCN
from msg3d_fast.normalization import SyncBatchNorm

# Every kernel that gathers, its ragged edges, and how warps share what it gathers.
GATHERED = [
    *(problem for problem in PROBLEMS if problem.name in ("tiny", "odd_T", "one_joint", "ragged_panels")),
    *TENSOR_CORES,
    Problem("slices_in_turn", N=1, C=32, O=500, K=2, V=17, T=3),
    Problem("nodes_in_two_parts", N=2, C=32, O=48, K=1, V=25, T=5, window_size=7),
    Problem("few_channels", N=2, C=3, O=96, K=3, V=17, T=9, window_size=3),
    Problem("few_channels_idle_warps", N=2, C=3, O=144, K=3, V=17, T=9, window_size=3),
    Problem("few_channels_in_slices", N=1, C=3, O=432, K=1, V=5, T=9),
    Problem("128_nodes_a_warp", N=2, C=32, O=96, K=2, V=25, T=13, window_size=5),
]
pytestmark = pytest.mark.usefixtures("emulated_backend")


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        pytest.param(problem, kind, id=f"{problem.name}-{kind}")
        for problem in GATHERED
        for kind in ("f64", "f32", "tf32", "bf16", "f16")
        if problem in PROBLEMS or kind in ("tf32", "bf16")
    ],
)
def test_statistics(problem: Problem, kind: str) -> None:
    """Of y as it is stored, which is what it is without them."""
    types = {"f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
    arguments = (*detached(problem, types.get(kind, torch.float32)), *problem.window, kind == "tf32")
    raw.set_device(80, 1, 163 << 10)  # large tiles
    y, statistics = raw.ms_g3d_statistics(*arguments)
    assert torch.equal(y, raw.ms_g3d(*arguments))
    assert statistics.dtype == (torch.float64 if kind == "f64" else torch.float32)
    assert deviation(statistics, y) <= (1e-12 if kind == "f64" else 2e-6)
    assert torch.equal(statistics, raw.ms_g3d_statistics(*arguments)[1]), "bit for bit"


@pytest.mark.parametrize("problem", [GATHERED[0], *TENSOR_CORES[:3]], ids=lambda problem: problem.name)
def test_an_offset_keeps_its_variance(problem: Problem) -> None:
    """A mean of a thousand standard deviations: E[y^2] - E[y]^2 would have no digit left."""
    x, A, weight, bias = detached(problem)
    for tf32 in (False, True):
        y, statistics = raw.ms_g3d_statistics(x, A, weight, bias + 1000, *problem.window, tf32)
        assert deviation(statistics, y) <= 1e-4


@pytest.mark.parametrize("problem", [GATHERED[0], TENSOR_CORES[2]], ids=lambda problem: problem.name)
def test_opcheck(problem: Problem) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(raw.ms_g3d_statistics, (*detached(problem, dtype), *problem.window), test_utils=checks)


def test_no_clips() -> None:
    problem = Problem("none", N=0)
    with pytest.raises(RuntimeError, match=r"x has shape \(0, 4, 6, 5\); statistics need at least one clip"):
        raw.ms_g3d_statistics(*detached(problem), *problem.window)


# ---- the layer


def layer_of(C: int = 16, O: int = 48, window: tuple[int, int, int] = (3, 1, 1), act: bool = True) -> STMSGCN:  # noqa: E741
    torch.manual_seed(0)
    layer = STMSGCN(2, C, O, "coco", *window, act=act, backend="emulated")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return layer


def step(layer: STMSGCN, x: Tensor, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output, gradients and buffers after one training step."""
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **grads, **{name: buffer for name, buffer in layer.named_buffers()}}


def by_layers(layer: STMSGCN, x: Tensor, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_blocks, "takes", lambda *_: False)
        return step(layer, x, autocast)


@pytest.mark.parametrize("act", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("window", [(1, 1, 1), (3, 2, 1)], ids=str)
def test_a_step_is_that_of_the_layers(window: tuple[int, int, int], dtype: torch.dtype, act: bool) -> None:
    layer, x = layer_of(window=window, act=act).to(dtype), torch.randn(2, 16, 6, 17, dtype=dtype)
    assert gpu_blocks.takes(layer, x)
    found, expected = step(layer, x), by_layers(layer, x)
    assert not found.pop("mlp.layers.0.bias").any()
    assert expected.pop("mlp.layers.0.bias").abs().max() < 1e-4, "nothing but rounding"
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert error(found[name], tensor) <= (1e-10 if dtype == torch.float64 else 4 * FLOOR), name


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [(1, 1, 1), (3, 1, 1)], ids=str)
def test_autocast(window: tuple[int, int, int], autocast: torch.dtype) -> None:
    layer, x = layer_of(window=window), torch.randn(2, 16, 6, 17)
    exact = by_layers(layer.double(), x.double())
    found, theirs = step(layer.float(), x, autocast), by_layers(layer, x, autocast)
    assert found["y"].dtype == theirs["y"].dtype == autocast
    unit = 2.0**-8 if autocast == torch.bfloat16 else 2.0**-11
    for name in found.keys() - {"mlp.layers.0.bias", "mlp.layers.1.num_batches_tracked"}:
        assert found[name].dtype == theirs[name].dtype
        ours, eager = ((tensor[name].double() - exact[name]).norm() / exact[name].norm() for tensor in (found, theirs))
        assert ours <= 2 * eager + unit, f"{name}: error {ours:.2e}, the layers' {eager:.2e}"


def test_gradcheck() -> None:
    layer = layer_of(2, 3).double()
    x = torch.randn(1, 2, 3, 17, dtype=torch.float64, requires_grad=True)
    assert gpu_blocks.takes(layer, x)
    torch.autograd.gradcheck(
        lambda x, *_: layer(x), (x, layer.mlp.layers[1].weight, layer.mlp.layers[1].bias), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_what_it_saves(dtype: torch.dtype) -> None:
    """One small kernel more of ours, and no pass over y for its statistics, which is what native_batch_norm begins with
    (the pass that is left normalises); what the blocks leave for it is a few hundredths of y."""
    layer, x = layer_of(), torch.randn(2, 16, 6, 17)
    counted = {}
    for name, run in (("gathered", step), ("layers", by_layers)):
        with Recorder() as recorder:
            before = raw.launches()
            run(layer, x, dtype if dtype != torch.float32 else None)
            counted[name] = raw.launches() - before, recorder.calls
    ours, theirs = counted["gathered"], counted["layers"]
    assert ours[1]["msg3d_fast_emulated::ms_g3d_statistics"] == 1
    assert theirs[1]["msg3d_fast_emulated::ms_g3d_statistics"] == 0
    assert ours[0] - theirs[0] <= 1
    statistics_of_y = {"aten::mean.dim", "aten::var_mean.correction"}
    assert not statistics_of_y & set(ours[1])
    assert "aten::mean.dim" in theirs[1] or "aten::native_batch_norm" in theirs[1]


def frozen(layer: STMSGCN) -> None:
    layer.mlp.layers[1].eval()


def synchronised(layer: STMSGCN) -> None:
    layer.mlp.layers[1] = SyncBatchNorm(layer.out_channels)


def untracked(layer: STMSGCN) -> None:
    layer.mlp.layers[1] = nn.BatchNorm2d(layer.out_channels, track_running_stats=False)


def cumulative(layer: STMSGCN) -> None:
    layer.mlp.layers[1] = nn.BatchNorm2d(layer.out_channels, momentum=None)


def hooked(layer: STMSGCN) -> None:
    layer.mlp.layers[1].register_forward_hook(lambda *_: None)


def in_evaluation(layer: STMSGCN) -> None:
    layer.eval()


def by_the_reference(layer: STMSGCN) -> None:
    layer.backend = "reference"


@pytest.mark.parametrize(
    "change",
    [frozen, synchronised, untracked, cumulative, hooked, in_evaluation, by_the_reference],
    ids=lambda change: change.__name__,
)
def test_where_it_steps_aside(change: Callable[[STMSGCN], None]) -> None:
    layer, x = layer_of(), torch.randn(2, 16, 3, 17)
    change(layer)
    assert not gpu_blocks.takes(layer, x)
    with Recorder() as recorder:
        layer(x)
    assert recorder.calls["msg3d_fast_emulated::ms_g3d_statistics"] == 0


def test_one_value_a_channel_and_none() -> None:
    """What torch's layer says of them."""
    layer = STMSGCN(1, 4, 6, "coco", 1, backend="emulated")
    assert not gpu_blocks.takes(layer, torch.zeros(0, 4, 3, 17))
    assert layer(torch.zeros(0, 4, 3, 17)).shape == (0, 6, 3, 17)
    layer.A, layer.PA = layer.A[:, :1, :1], nn.Parameter(layer.PA[:, :1, :1])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(1, 4, 1, 1))


def test_a_compiled_step() -> None:
    layer, x = layer_of(), torch.randn(2, 16, 3, 17)
    expected = step(layer, x)
    twin = layer_of()
    twin.forward = torch.compile(twin.forward, backend="aot_eager", fullgraph=True)
    x = x.requires_grad_()
    y = twin(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(y.detach(), expected["y"])
    torch.testing.assert_close(x.grad, expected["x"])
    torch.testing.assert_close(twin.mlp.layers[1].running_var, expected["mlp.layers.1.running_var"])
