"""`fuse` for a GPU on the emulator: the same logits, at most 60 launches, and nothing that waits for the device."""

import copy
import pickle
from collections import Counter

import emulated
import pytest
import temporal_kernels
import torch
from emulated import raw
from networks import MODELS, build, clips, in_double, scramble
from test_inference import CHANGES
from tolerance import assert_as_good_as_eager, error
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from msg3d_fast import fuse, ops
from msg3d_fast.errors import UserError
from msg3d_fast.inference import FusedRecognizer
from msg3d_fast.model import Recognizer
from msg3d_fast.modules import MWMSG3DBlock

SHORT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # and one unit of their rounding
SMALL = {name: MODELS[name] for name in ("coco", "remainder_widths", "narrow")}
SMALL["authors"] = MODELS["authors"] | {"num_gcn_scales": 2, "num_g3d_scales": 3}
WIDE = {"layout": "coco", "base_channels": 96, "num_gcn_scales": 2, "num_g3d_scales": 1, "num_person": 1}
pytestmark = pytest.mark.usefixtures("emulated_backend")


def on_gpu(model: Recognizer, **options: object) -> FusedRecognizer:
    twin = copy.deepcopy(model)
    twin.backend = "emulated"
    return fuse(twin, **options)


@torch.no_grad()
def assert_parity(model: Recognizer, x: Tensor, what: str = "") -> None:
    """In the model's type: as good as eager, in 16 bits up to one more rounding of the largest logit."""
    dtype = x.dtype
    exact = in_double(model)(x.double())
    ours, theirs = error(on_gpu(model)(x), exact), error(model(x), exact)
    if dtype == torch.float64:
        assert ours <= 1e-12, what
    else:
        assert_as_good_as_eager(ours - SHORT.get(dtype, 0), theirs, f"{what} {dtype}")


@pytest.mark.parametrize("name", SMALL)
def test_every_shape_of_network(name: str) -> None:
    model = build(**{"num_gcn_scales": 2, "num_g3d_scales": 2} | SMALL[name])
    assert_parity(model, clips(model, 2, 5))
    assert_parity(in_double(model), clips(model, 1, 1).double())


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("device", ["A100", "T4"])
@pytest.mark.parametrize("arguments", [SMALL["authors"], {**WIDE, "layout": "nturgb+d"}], ids=["narrow", "wide"])
def test_sixteen_bits(arguments: dict, device: str, dtype: torch.dtype) -> None:
    """The tensor cores' path at the published width, multiply-adds on what has none."""
    if device == "T4" and arguments.get("base_channels") == 96:
        pytest.skip("slow on the emulator, and the narrow one takes the same kernels")
    raw.set_device(*emulated.DEVICES[device])
    model = build(**arguments).to(dtype)
    assert_parity(model, clips(model, 1, 6).to(dtype))


@pytest.mark.parametrize("windows", [((1, 3, 9), (1, 2, 1)), ((2, 5), (2, 3))], ids=str)
def test_other_windows(windows: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    model = build(num_gcn_scales=2)
    arguments = {"layout": "coco", "num_scales": 2, "window_sizes": windows[0], "window_dilations": windows[1]}
    arguments["backend"] = "reference"
    model.backbone.gcn3d1 = MWMSG3DBlock(3, 12, **arguments, expand=True)
    model.backbone.gcn3d2 = MWMSG3DBlock(12, 24, **arguments, window_stride=2)
    model.backbone.gcn3d3 = MWMSG3DBlock(24, 48, **arguments, window_stride=2)
    scramble(model)
    assert_parity(model, clips(model, 1, 11))


# ---- launches

# Kernels that an operation of ATen launches on a GPU. addmm takes its bias, and its ReLU, as cuBLASLt's epilogue;
# clone and copy_ are one copy. Whatever is not here fails the test: above all what waits for the device.
LAUNCHES = {
    "aten::addcmul": 1,
    "aten::addmm": 1,
    "aten::_addmm_activation": 1,
    "aten::clone": 1,
    "aten::convolution": 1,
    "aten::add_.Tensor": 1,
    "aten::relu_": 1,
    "aten::mean.dim": 1,
}
# For float64 cuBLASLt may have no epilogues: then a copy of the bias, the product and the ReLU are three.
LAUNCHES_OF_DOUBLE = {**LAUNCHES, "aten::mm": 1, "aten::addmm": 2, "aten::_addmm_activation": 3}
VIEWS = {"aten::view", "aten::permute", "aten::slice.Tensor", "aten::t", "aten::transpose.int", "aten::expand"}
VIEWS |= {"aten::detach", "aten::unsqueeze", "aten::_unsafe_view", "aten::alias", "aten::reshape"}


class Recorder(TorchDispatchMode):
    """Counts the operations below it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.calls[op.name()] += 1
        return op(*args, **(kwargs or {}))


def launches(fused: FusedRecognizer, x: Tensor) -> tuple[int, Counter[str]]:
    """Kernels that one call launches, ours as the binding counts them and ATen's; it launches nothing unknown."""
    with Recorder() as recorder, torch.no_grad():
        before = raw.launches()
        fused(x)
        ours = raw.launches() - before
    aten = {name: n for name, n in recorder.calls.items() if name.startswith("aten::") and name not in VIEWS}
    known = LAUNCHES_OF_DOUBLE if x.dtype == torch.float64 else LAUNCHES
    assert set(aten) <= set(known), f"launches or waits not accounted for: {set(aten) - set(known)}"
    return ours + sum(n * known[name] for name, n in aten.items()), recorder.calls


def test_at_most_60_launches_in_16_bits() -> None:
    model = build(**WIDE).bfloat16()
    fused, x = on_gpu(model), clips(model, 1, 8).bfloat16()
    count, _ = launches(fused, x)
    assert count == 50, "the first call packs the weights of 9 graph convolutions"
    count, calls = launches(fused, x)
    assert calls["msg3d_fast_emulated::ms_g3d_collapse"] == 6
    assert calls["msg3d_fast_emulated::mstcn_folded"] == 9
    assert calls["aten::convolution"] == 0
    assert count == 41  # the door, 9 graph convolutions, 9 MSTCNs of 3 and 2 strided copies, mean and classifier


def test_weights_are_packed_once_for_each_order() -> None:
    arguments = SMALL["authors"] | {"base_channels": 24}
    model = build(**arguments).bfloat16()
    x, fused = clips(model, 1, 6).bfloat16(), on_gpu(model)
    expected = fused(x)

    def packs(twin: FusedRecognizer, given: Tensor) -> int:
        _, calls = launches(twin, given)
        return calls["msg3d_fast_emulated::ms_g3d_pack"]

    assert packs(fused, x) == 0
    assert packs(fused, torch.cat([x, x])) == 0, "the same tiles"
    twin = copy.deepcopy(fused)
    assert packs(twin, x) == 9, "copies stand alone"
    assert torch.equal(twin(x), expected)
    for tile in ("3 frames of 17", "1 frame of 24"):
        raw.ms_g3d_set_cuda_plan(tile)
        torch.testing.assert_close(fused(x), expected, msg="what is packed for another tile is not used")
    raw.ms_g3d_set_cuda_plan("auto")
    other = on_gpu(build(**arguments).bfloat16())
    fused.load_state_dict(other.state_dict())
    assert torch.equal(fused(x), other(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_at_most_60_launches_by_multiply_adds(dtype: torch.dtype) -> None:
    if dtype == torch.float16:
        raw.set_device(*emulated.DEVICES["T4"])
    model = build().to(dtype)
    count, calls = launches(on_gpu(model), clips(model, 2, 8).to(dtype))
    assert calls["msg3d_fast_emulated::ms_g3d_collapse"] == 0
    assert 50 < count <= 60


def test_no_activation_changes_its_memory_format() -> None:
    model = build()
    fused, x = on_gpu(model), clips(model, 2, 8)
    before = raw.format_conversions()
    fused(x)
    assert raw.format_conversions() == before


# ---- what a fused model promises


@pytest.mark.parametrize("absent", [[], [(0, 1), (1, 1)], [(n, m) for n in range(3) for m in range(2)]], ids=str)
def test_absent_persons(absent: list[tuple[int, int]]) -> None:
    model = in_double(build())
    x = clips(model, 3, 6).double()
    for slot in absent:
        x[slot] = 0
    padded, merged = on_gpu(model), on_gpu(model, skip_absent=True)
    assert not padded.skip_absent, "to know who is there a GPU's host must wait"
    with torch.no_grad():
        exact = model(x)
        assert error(padded(x), exact) <= 1e-12
        assert error(merged(x), exact) <= 1e-12


def test_no_clips_and_features() -> None:
    model = build()
    fused = on_gpu(model)
    assert fused(clips(model, 0, 5)).shape == (0, 7)
    x = clips(model, 2, 5)
    with torch.no_grad():
        torch.testing.assert_close(fused.features(x), model.features(x))


def test_strided_clips() -> None:
    model = build()
    x, fused = clips(model, 2, 6), on_gpu(model)
    turned = x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.equal(fused(turned), fused(x))


def test_runs_repeat_and_copies_stand_alone() -> None:
    model = build()
    model.backend = "emulated"
    x, fused = clips(model, 1, 5), fuse(model)
    expected = fused(x)
    copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
    assert torch.equal(fused(x), expected)
    model.load_state_dict(build().state_dict())
    assert all(torch.equal(twin(x), expected) for twin in copies)


@pytest.mark.parametrize("change", ["in_place", "statistics", "state"])
def test_changed_weights_are_noticed(change: str) -> None:
    model = build()
    model.backend = "emulated"
    x, fused = clips(model, 1, 5), fuse(model)
    with torch.no_grad():
        CHANGES[change](model)
    with pytest.raises(UserError, match="weights changed since it was fused; call fuse"):
        fused(x)


def test_autocast_changes_nothing() -> None:
    model = build()
    x, fused = clips(model, 1, 5), on_gpu(model)
    expected = fused(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled(dtype: torch.dtype) -> None:
    model = build(**SMALL["authors"]).to(dtype)
    fused, x = on_gpu(model), clips(model, 1, 4).to(dtype)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), fused(x))


def half_in_double() -> Recognizer:
    model = build()
    model.cls_head.double()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: on_gpu(half_in_double()), "fuse needs one float type on one device: use model.float"),
        (lambda: on_gpu(build())(torch.randn(1, 2, 4, 17, 3, device="meta")), "input is on meta, this model on cpu"),
        (lambda: on_gpu(build())(torch.randn(1, 2, 4, 17, 3).bfloat16()), "input is torch.bfloat16, this model"),
    ],
)
def test_what_it_refuses(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# ---- the two operators that only `fuse` calls


TEMPORAL = {  # N, T, V, channels of a branch, of the last one; frames from one output to the next
    "widths_16": (2, 9, 5, 16, 16, 1),
    "widths_32_stride_2": (1, 12, 17, 32, 32, 2),
    "widths_64": (1, 5, 25, 64, 64, 1),
    "odd_widths": (2, 7, 3, 7, 9, 1),
    "plain_40_stride_2": (1, 8, 6, 40, 44, 2),
    "one_frame": (3, 1, 4, 16, 16, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *SHORT], ids=str)
@pytest.mark.parametrize("case", TEMPORAL)
def test_temporal_branches(case: str, dtype: torch.dtype) -> None:
    *_, stride = sizes = TEMPORAL[case]
    for relu in (False, True):
        given = temporal_kernels.inputs(*sizes, dtype)
        exact, eager = (temporal_kernels.expected(given, stride, relu, type) for type in (torch.float64, dtype))
        given["out"] = given["out"].clone()
        raw.mstcn_folded(*given.values(), [1, 2, 3, 4], stride, relu)
        floor = SHORT.get(dtype, 2.0**-42 if dtype == torch.float64 else 2.0**-21)
        assert error(given["out"], exact) <= 2 * error(eager, exact) + floor


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_temporal_branches_of_products_without_epilogues(dtype: torch.dtype, relu: bool) -> None:
    *_, stride = sizes = TEMPORAL["odd_widths" if dtype == torch.float64 else "widths_16"]
    given = temporal_kernels.inputs(*sizes, dtype)
    biases = [torch.randn(given[name].shape[1]).to(dtype) for name in ("h", "out")]
    h_bias, out_bias = (bias.view(-1, 1, 1) for bias in biases)
    done = {**given, "h": (given["h"].double() + h_bias).relu(), "out": given["out"].double() + out_bias}
    exact = temporal_kernels.expected(done, stride, relu, torch.float64)
    eager = temporal_kernels.expected({name: value.to(dtype) for name, value in done.items()}, stride, relu, dtype)
    raw.mstcn_folded(*given.values(), [1, 2, 3, 4], stride, relu, *biases)
    assert error(given["out"], exact) <= 2 * error(eager, exact) + SHORT.get(dtype, 2.0**-42)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_broken_frame_stays_where_it_is_read(dtype: torch.dtype) -> None:
    given = temporal_kernels.inputs(2, 12, 5, 16, 16, 1, dtype)
    given["h"][0, :, 6, 2] = torch.nan
    expected = temporal_kernels.expected(given, 1, False, torch.float64)
    raw.mstcn_folded(*given.values(), [1, 2, 3, 4], 1, True)
    assert torch.isnan(expected).any()
    assert torch.equal(torch.isnan(given["out"]), torch.isnan(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 2, 16, 16)}, r"weight has shape \(4, 2, 16, 16\); expected \(4, taps, w, w\)"),
        ({"scale": torch.zeros(15)}, r"scale has shape \(15,\); expected \(16,\)"),
        ({"out": torch.zeros(2, 96, 8, 5)}, r"out has shape \(2, 96, 8, 5\); expected \(2, at least 80, 9, 5\)"),
        ({"h": torch.zeros(2, 80, 9, 5)}, r"h has shape \(2, 80, 9, 5\); expected .* channels_last"),
        ({"scale": torch.zeros(16).double()}, "weight, scale and out must have the type and the device of h"),
    ],
    ids=["even_taps", "scale", "out", "h", "types"],
)
def test_temporal_errors(change: dict[str, Tensor], message: str) -> None:
    given = temporal_kernels.inputs(2, 9, 5, 16, 16, 1, torch.float32) | change
    with pytest.raises(RuntimeError, match="mstcn_folded: " + message):
        raw.mstcn_folded(*given.values(), [1, 2, 3, 4], 1, True)


@pytest.mark.parametrize("biases", [(torch.zeros(80), None), (torch.zeros(80), torch.zeros(80))], ids=["one", "size"])
def test_temporal_biases_come_together(biases: tuple) -> None:
    given = temporal_kernels.inputs(2, 9, 5, 16, 16, 1, torch.float32)
    with pytest.raises(RuntimeError, match=r"mstcn_folded: expected h_bias \(80,\) and out_bias \(96,\), contiguous"):
        raw.mstcn_folded(*given.values(), [1, 2, 3, 4], 1, True, *biases)


def g3d(C: int, E: int, O: int, window: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: E741
    draw = torch.Generator().manual_seed(0)
    N, T, V, K, tau = 2, 9, 17, 2, window[0]

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=draw) * scale).to(dtype)

    T_out = (T - 1) // window[1] + 1
    return {
        "x": normal(N, C, T, V).contiguous(memory_format=torch.channels_last),
        "A": normal(K, tau * V, tau * V, scale=(tau * V) ** -0.5),
        "weight": normal(E, K, C, scale=(K * C) ** -0.5),
        "bias": normal(E),
        "fold": normal(O, E, tau, scale=(E * tau) ** -0.5),
        "fold_bias": normal(O),
        "out": normal(N, O, T_out, V).contiguous(memory_format=torch.channels_last),
    }


def collapsed(given: dict[str, Tensor], window: tuple[int, int, int], accumulate: bool, relu: bool, dtype) -> Tensor:
    x, A, weight, bias, fold, fold_bias, out = (tensor.to(dtype) for tensor in given.values())
    y = ops.ms_g3d(x, A, weight, bias, *window, backend="reference").relu().unflatten(3, (window[0], -1))
    y = F.conv3d(y, fold[:, :, None, :, None], fold_bias).squeeze(3)
    y = y + out if accumulate else y
    return y.relu() if relu else y


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("accumulate", [False, True], ids=["written", "added"])
@pytest.mark.parametrize(
    ("channels", "window"), [((3, 48, 48), (3, 1, 1)), ((48, 48, 96), (3, 2, 1)), ((16, 64, 40), (5, 1, 1))], ids=str
)
def test_collapse(channels: tuple, window: tuple, accumulate: bool, dtype: torch.dtype) -> None:
    given = g3d(*channels, window, dtype)
    exact, eager = (collapsed(given, window, accumulate, accumulate, type) for type in (torch.float64, dtype))
    before = raw.launches()
    raw.ms_g3d_collapse(*given.values(), accumulate, accumulate, *window)
    assert raw.launches() - before == 2, "packing, and one kernel for everything else"
    assert error(given["out"], exact) <= 2 * error(eager, exact) + SHORT[dtype]


def test_the_same_sizes_without_the_collapse_have_a_plan_of_their_own() -> None:
    window, given = (3, 2, 1), g3d(48, 48, 96, (3, 2, 1), torch.bfloat16)
    raw.ms_g3d_collapse(*given.values(), False, False, *window)
    inputs = list(given.values())[:4]
    exact, eager = (
        ops.ms_g3d(*(tensor.to(dtype) for tensor in inputs), *window, backend="reference")
        for dtype in (torch.float64, torch.bfloat16)
    )
    found = raw.ms_g3d(*inputs, *window)
    assert error(found, exact) <= 2 * error(eager, exact) + SHORT[torch.bfloat16]


def test_collapse_says_where_there_is_no_kernel() -> None:
    given = g3d(16, 48, 48, (3, 1, 1), torch.float32)
    with pytest.raises(RuntimeError, match="no kernel does the collapse too: float32 runs in full precision; ms_g3d"):
        raw.ms_g3d_collapse(*given.values(), True, True, 3, 1, 1)


def test_operators_that_write_in_place_check() -> None:
    checks = {"test_utils": ("test_schema", "test_faketensor", "test_aot_dispatch_static")}
    given = temporal_kernels.inputs(1, 3, 4, 6, 6, 1, torch.float32)
    torch.library.opcheck(raw.mstcn_folded, (*given.values(), [1, 2, 3, 4], 1, True), **checks)
    given = g3d(3, 48, 48, (3, 1, 1), torch.bfloat16)
    torch.library.opcheck(raw.ms_g3d_collapse, (*given.values(), True, False, 3, 1, 1), **checks)
