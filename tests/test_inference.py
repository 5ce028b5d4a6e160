"""The folded network: equal to the model in eval mode, whatever its shape and whoever calls it."""

import copy
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import MODELS, build, clips, in_double, scramble
from tolerance import assert_as_good_as_eager, error
from torch import Tensor, nn

from msg3d_fast import _library
from msg3d_fast.errors import UserError
from msg3d_fast.graph import Layout
from msg3d_fast.inference import fuse
from msg3d_fast.model import Recognizer
from msg3d_fast.modules import MWMSG3DBlock
from msg3d_fast.watch import Watch

pytestmark = pytest.mark.skipif(
    not _library.available(), reason="folded kernels are native code, and there is none here"
)

run = getattr(torch.ops.msg3d_fast, "folded_network", None)
ONE_JOINT = Layout(("dot",), (), 0)


@torch.no_grad()
def assert_parity(model: Recognizer, x: Tensor, what: str = "") -> None:
    exact = in_double(model)(x.double())
    assert_as_good_as_eager(error(fuse(model)(x), exact), error(model(x), exact), what)
    assert error(fuse(in_double(model))(x.double()), exact) <= 1e-12, what


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_model(name: str) -> None:
    model = build(**MODELS[name])
    long = {"coco": 100, "published_width": 9}.get(name, 21)
    for T, N in [(1, 3), (2, 1), (3, 1), (7, 1), (long, 1)]:
        assert_parity(model, clips(model, N, T), f"T={T}")


@torch.no_grad()
def test_features_are_the_classifiers_input() -> None:
    model = build(layout="coco", base_channels=20)
    x = clips(model, 3, 9)
    x[0, 1] = 0
    features, fc = fuse(model).features(x), model.cls_head.fc
    exact = in_double(model).features(x.double())
    assert features.shape == (3, 80)
    assert_as_good_as_eager(error(features, exact), error(model.features(x), exact))
    assert torch.equal(fc(model.features(x)), model(x))
    assert_as_good_as_eager(error(fc(features), fuse(model)(x)), error(model(x), in_double(model)(x.double())))


def test_one_joint() -> None:
    model = build(layout=ONE_JOINT, num_gcn_scales=2, num_g3d_scales=2)
    assert_parity(model, clips(model, 2, 9))


@pytest.mark.parametrize("windows", [((7,), (1,)), ((1, 3, 9), (1, 2, 1)), ((2, 5), (2, 3))], ids=str)
def test_other_windows(windows: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    model = build()
    sizes, dilations = windows
    arguments = {
        "layout": "coco",
        "num_scales": 2,
        "window_sizes": sizes,
        "window_dilations": dilations,
        "backend": "reference",
    }
    model.backbone.gcn3d1 = MWMSG3DBlock(3, 12, **arguments, expand=True)
    model.backbone.gcn3d2 = MWMSG3DBlock(12, 24, **arguments, window_stride=2)
    model.backbone.gcn3d3 = MWMSG3DBlock(24, 48, **arguments, window_stride=2)
    scramble(model)
    for T in (1, 22):
        assert_parity(model, clips(model, 1, T), f"T={T}")


def test_no_clips() -> None:
    model = build()
    assert fuse(model)(clips(model, 0, 5)).shape == (0, 7)


def test_strided_input() -> None:
    model = build()
    x = clips(model, 2, 6)
    turned = x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    fused = fuse(model)
    assert not turned.is_contiguous()
    assert torch.equal(fused(turned), fused(x))


@pytest.mark.parametrize(
    "absent",
    [[], [(0, 1)], [(0, 0), (1, 1)], [(0, 1), (1, 1), (2, 1)], [(n, m) for n in range(3) for m in range(2)]],
    ids=str,
)
def test_absent_persons(absent: list[tuple[int, int]]) -> None:
    model = in_double(build())
    x = clips(model, 3, 11).double()
    for slot in absent:
        x[slot] = 0
    fused, padded = fuse(model), fuse(model, skip_absent=False)
    for _ in range(2):  # the second time from the cache
        assert torch.equal(fused(x), padded(x))
    with torch.no_grad():
        assert error(fused(x), model(x)) <= 1e-10
    packed = fused.sizes, fused.weights, fused.fc_weight, fused.fc_bias
    zero, known = torch.zeros(2, fused.fc_weight.shape[1]).double(), torch.randn(2, fused.fc_weight.shape[1]).double()
    of_present = run(x, *packed, True, zero)[1]
    _, features, computed = run(x, *packed, True)
    assert len(computed) == (2 if absent else 0)
    for table, found in ((known, run(x, *packed, True, known)[1]), (computed, features)):
        expected = of_present.clone()
        for n, slot in absent:
            expected[n] += table[slot] / 2
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_absent_in_some_frames_is_present() -> None:
    model = build()
    x = clips(model, 1, 12)
    x[0, 1, 1:] = 0
    fused = fuse(model)
    assert not len(run(x, fused.sizes, fused.weights, fused.fc_weight, fused.fc_bias, True)[2])
    assert_parity(model, x)


def test_absent_persons_of_other_lengths() -> None:
    model = build()
    fused, padded = fuse(model), fuse(model, skip_absent=False)
    for T in (4, 9, 4, 1):
        x = clips(model, 1, T)
        x[:, 1] = 0
        assert torch.equal(fused(x), padded(x))


def test_any_number_of_threads() -> None:
    model, threads = build(base_channels=20), torch.get_num_threads()
    x, fused = clips(model, 3, 40), fuse(model)
    try:
        results = []
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            results += [fused(x), fused(x[1:2])]
    finally:
        torch.set_num_threads(threads)
    for result in results[2::2]:
        assert torch.equal(result, results[0])
    for result in results[1::2]:
        assert torch.equal(result, results[1])


def test_several_python_threads() -> None:
    models = [build(), build(layout="nturgb+d", base_channels=20)]
    jobs = [(fuse(model), clips(model, 2, T)) for T in (5, 30, 64) for model in models]
    alone = [fused(x) for fused, x in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: job[0](job[1]), jobs * 4))
    for result, expected in zip(together, alone * 4, strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("isa", _library.info()["supported_isas"] if _library.available() else [])
def test_every_instruction_set(isa: str) -> None:
    model = build(layout="nturgb+d", base_channels=20)
    try:
        _library.set_isa(isa)
        assert_parity(model, clips(model, 2, 13))
    finally:
        _library.set_isa("auto")


CHANGES = {
    "in_place": lambda model: model.cls_head.fc.bias[:1].add_(1),
    "uncounted": lambda model: model.cls_head.fc.bias.data.add_(1),
    "statistics": lambda model: model.train()(clips(model, 2, 4)),
    "adjacency": lambda model: model.backbone.sgcn2[0].A.mul_(0.5),
    "state": lambda model: model.load_state_dict(build().state_dict()),
    "assigned_state": lambda model: model.load_state_dict(build().state_dict(), assign=True),
    "another_type": lambda model: model.double(),
    "another_parameter": lambda model: setattr(
        model.backbone.tcn1.branches[0][0], "weight", nn.Parameter(torch.ones(2, 12, 1, 1))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(change: str) -> None:
    model = build()
    x, fused = clips(model, 1, 5), fuse(model)
    x[:, 1] = 0
    fused(x)
    with torch.no_grad():
        CHANGES[change](model)
    with pytest.raises(UserError, match="weights changed since it was fused; call fuse"):
        fused(x)
    model.eval()
    assert_parity(model.float(), x)


def test_unchanged_weights_are_not() -> None:
    model = build()
    x, fused = clips(model, 1, 5), fuse(model)
    expected = fused(x)
    model(x)
    x.add_(0)
    model.train().eval()
    assert torch.equal(fused(x), expected)


def test_a_model_that_is_gone_is_not_looked_at() -> None:
    model = build()
    x, fused = clips(model, 1, 5), fuse(model)
    expected, kept = fused(x), model.backbone.tcn2
    weight = weakref.ref(model.cls_head.fc.weight)
    del model
    assert torch.equal(fused(x), expected)
    assert weight() is None  # its memory is free
    with torch.no_grad():
        kept.branches[0][0].weight.add_(1)  # of what somebody still holds it notices
    with pytest.raises(UserError, match="weights changed"):
        fused(x)
    del kept
    assert torch.equal(fused(x), expected)


def test_training_mode() -> None:
    model = build()
    with pytest.raises(UserError, match=r"training mode.*model\.eval\(\)"):
        fuse(model.train())
    fused = fuse(model.eval())
    with pytest.raises(UserError, match="no training mode"):
        fused.train()
    assert not fused.eval().training


def test_gradients() -> None:
    model = build()
    fused, x = fuse(model), clips(model, 1, 4).requires_grad_()
    with pytest.raises(UserError, match="requires a gradient"):
        fused(x)
    with torch.no_grad():
        expected = fused(x)
    with torch.inference_mode():
        assert torch.equal(fused(x.detach()), expected)
    assert not fused(x.detach()).requires_grad
    assert not list(fused.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fuse(nn.Linear(2, 2).eval()), "fuse takes a Recognizer, found Linear"),
        (lambda: fuse(build().half()), r"torch.float16 on cpu; fuse needs float32 or float64"),
        (lambda: fuse(build().to("meta")), r"torch.float32 on meta; fuse needs"),
        (lambda: fuse(build(num_gcn_scales=65)), "a graph convolution of 65 scales.*fuse takes up to 64"),
        (lambda: fuse(build())(torch.randn(1, 2, 4, 25, 3)), "input has 25 joints .nturgb"),
        (lambda: fuse(build())(torch.randn(1, 1, 4, 17, 3)), "input has 1 persons"),
        (lambda: fuse(build())([[1, 2]]), "input is a list, expected a tensor"),
        (
            lambda: fuse(build())(torch.randn(1, 2, 4, 17, 3).double()),
            "input is torch.float64, this model is torch.float32",
        ),
        (lambda: fuse(build())(torch.randn(1, 2, 0, 17, 3)), "input has no frames"),
    ],
)
def test_what_it_refuses(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sizes_and_weights_must_belong_together() -> None:
    model = build()
    fused, x = fuse(model), clips(model, 1, 4)
    classifier = fused.fc_weight, fused.fc_bias
    wrong = [(fused.sizes, fused.weights[:-16]), (fused.sizes[:-1], fused.weights), (fused.sizes + 1, fused.weights)]
    wrong += [(-fused.sizes, fused.weights), (fused.sizes[:0], fused.weights[:0])]
    for sizes, weights in wrong:
        with pytest.raises(RuntimeError, match="do not belong together"):
            run(x, sizes, weights, *classifier, True)
    packed = fused.sizes, fused.weights
    with pytest.raises(RuntimeError, match="fc_weight has shape"):
        run(x, *packed, fused.fc_weight[:, 1:], fused.fc_bias, True)
    with pytest.raises(RuntimeError, match="fc_weight has shape"):
        run(x, *packed, fused.fc_weight, fused.fc_bias[1:], True)
    with pytest.raises(RuntimeError, match="fc_weight is Double"):
        run(x, *packed, fused.fc_weight.double(), fused.fc_bias, True)
    with pytest.raises(RuntimeError, match="absent is Float"):
        run(x, *packed, *classifier, True, torch.zeros(2, fused.fc_weight.shape[1]))
    with pytest.raises(RuntimeError, match=r"absent has shape .*expected \(2, "):
        run(x, *packed, *classifier, True, torch.zeros(1, fused.fc_weight.shape[1]).double())


@pytest.mark.parametrize("absent", [False, True])
def test_fake_kernel(absent: bool) -> None:
    model = build()
    fused, x = fuse(model), clips(model, 2, 4)
    packed = x, fused.sizes, fused.weights, fused.fc_weight, fused.fc_bias
    x[0, 1] *= not absent
    for rest in ((False,), (True,), (True, torch.zeros(2, fused.fc_weight.shape[1]).double())):
        torch.library.opcheck(run.default, (*packed, *rest), test_utils=("test_schema", "test_faketensor"))


def test_weights_that_no_processor_can_read_are_watched_by_their_counters() -> None:
    linear = nn.Linear(3, 2, device="meta")  # as on a GPU
    watch = Watch(linear)
    assert not watch.changed()
    with torch.no_grad():
        linear.weight.add_(1)
    assert watch.changed()


def test_a_look_at_spread_values() -> None:
    values = torch.arange(100, dtype=torch.int16)
    places = torch.tensor([values[i:].data_ptr() for i in (3, 50, 99)])
    same = torch.ops.msg3d_fast.same_values
    expected, near = values[[3, 50, 99]], torch.tensor([values.data_ptr()])
    assert same(places, expected, near)
    values[50] = -1
    assert not same(places, expected, near)
    assert same(places[:0], expected[:0], near[:0])
    with pytest.raises(RuntimeError, match="expected has shape"):
        same(places, expected[1:], near)


def test_compiled() -> None:
    model = build()
    fused, x = fuse(model), clips(model, 2, 4)
    x[0, 1] = 0
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), fused(x))


def test_copies_stand_alone() -> None:
    model = build()
    x, fused = clips(model, 1, 5), fuse(model)
    expected = fused(x)
    copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
    model.load_state_dict(build().state_dict())
    for twin in copies:
        assert torch.equal(twin(x), expected)
