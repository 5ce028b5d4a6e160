"""The whole network: what it can be built for, what it refuses, and that it survives what people do to models."""

import copy
import io
import json
import pickle

import pytest
import torch
from torch import Tensor, nn

from msg3d_fast import Layout, Recognizer, UserError, ops
from msg3d_fast.graph import layout_names

SMALL = {"num_classes": 5, "base_channels": 6, "num_gcn_scales": 3, "num_g3d_scales": 2}


def build(**arguments: object) -> Recognizer:
    return Recognizer(**{**SMALL, **arguments})


def clips(model: Recognizer, N: int = 2, T: int = 9) -> Tensor:
    """(N, M, T, V, C)."""
    M, V, C = model.backbone.num_person, model.layout.num_joints, model.backbone.in_channels
    return torch.randn(N, M, T, V, C)


@pytest.mark.parametrize(
    ("arguments", "backbone", "total"),
    [
        ({"layout": "coco", "num_classes": 60}, 2_952_663, 2_975_763),
        ({"layout": "coco", "num_classes": 120}, 2_952_663, 2_998_863),
        ({"layout": "nturgb+d", "num_classes": 60}, 3_171_495, 3_194_595),
        ({"layout": "nturgb+d", "num_classes": 120, "flavour": "original"}, 3_171_495, 3_217_695),
        ({"layout": "openpose", "num_classes": 60}, 2_975_460, 2_998_560),
        (
            {"layout": "openpose", "num_classes": 400, "num_gcn_scales": 8, "num_g3d_scales": 8, "flavour": "original"},
            3_144_328 - 385 * 400,
            3_144_328,
        ),
    ],
    ids=["coco60", "coco120", "ntu60", "authors_ntu120", "openpose60", "authors_kinetics400"],
)
def test_parameter_counts_are_the_published_ones(arguments: dict, backbone: int, total: int) -> None:
    model = Recognizer(**arguments)
    assert sum(p.numel() for p in model.backbone.parameters()) == backbone
    assert sum(p.numel() for p in model.parameters()) == total


def test_parameter_counts_by_child() -> None:
    children = dict(Recognizer("coco").backbone.named_children())
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in children.items()}
    assert counts == {
        **{"data_bn": 204, "gcn3d1": 137_292, "sgcn1": 33_389, "tcn1": 12_800, "gcn3d2": 318_732, "sgcn2": 224_781},
        **{"tcn2": 50_176, "gcn3d3": 1_094_604, "sgcn3": 882_029, "tcn3": 198_656},
    }


@pytest.mark.parametrize(
    "arguments",
    [
        *({"layout": name} for name in layout_names()),
        {"layout": {"num_node": 5, "inward": [(1, 0), (2, 0), (3, 0), (4, 0)], "center": 0}},
        {"layout": Layout(("only",), (), 0)},
        {"in_channels": 1},
        {"in_channels": 2},
        {"in_channels": 6},
        {"num_person": 1},
        {"num_person": 4},
        {"base_channels": 7},
        {"base_channels": 13},
        {"num_gcn_scales": 1, "num_g3d_scales": 1},
        {"flavour": "original", "layout": "nturgb+d"},
        {"flavour": "pyskl", "tcn_dropout": 0.2, "head_dropout": 0.5},
    ],
    ids=str,
)
def test_any_network_trains_and_both_backends_agree(arguments: dict) -> None:
    model = build(**arguments)
    x = clips(model)
    model(x).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.double().eval()
    found = {}
    for model.backend in ("native", "reference"):
        found[model.backend] = model(x.double())
    assert found["native"].shape == (2, 5)
    torch.testing.assert_close(found["native"], found["reference"], rtol=1e-9, atol=1e-12)
    json.dumps(model.hparams)
    again = Recognizer(**json.loads(json.dumps(model.hparams)))
    assert again.hparams == model.hparams
    assert again.layout == model.layout
    assert list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 16])
def test_any_number_of_frames(T: int) -> None:
    model = build()
    features = model.eval().backbone(clips(model, T=T))
    assert features.shape == (2, 2, 24, (T + 3) // 4, 17)
    assert model.train()(clips(model, T=T)).isfinite().all()


def test_logits_are_the_mean_over_persons_frames_and_joints() -> None:
    model = build().eval()
    x = clips(model)
    features = model.backbone(x)
    by_hand = torch.stack([model.cls_head.fc(clip.mean((0, 2, 3))) for clip in features])
    torch.testing.assert_close(model(x), by_hand)


def test_one_stage_is_the_first_by_its_place() -> None:
    """Upstream widens wherever there are three channels, which width 3 would hit by accident, and nowhere else."""
    for in_channels in (2, 3, 6):
        backbone = build(in_channels=in_channels, base_channels=12).backbone
        widths = [getattr(backbone, f"gcn3d{s}").gcn3d[0].gcn3d[1].out_channels for s in (1, 2, 3)]
        assert widths == [12, 12, 24]


def test_native_works_in_channels_last_after_one_conversion_at_the_door() -> None:
    model = build(backend="native", base_channels=12)  # a branch of one channel would lie in either format
    before = ops.format_conversions()
    model(clips(model)).sum().backward()
    with torch.no_grad():
        model.eval()(clips(model))
    assert ops.format_conversions() == before


def test_reference_works_in_upstreams_memory_format() -> None:
    model = build(backend="reference", base_channels=12).eval()
    seen = []
    for module in (model.backbone.sgcn1, model.backbone.tcn1, model.backbone.gcn3d3):
        module.register_forward_hook(lambda _module, args, y: seen.extend([args[0], y]))
    model(clips(model))
    assert len(seen) == 6
    assert all(tensor.is_contiguous() for tensor in seen)


def test_backend_by_argument_environment_and_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSG3D_BACKEND", "reference")
    model = build()
    assert model.backend == model.backbone.sgcn1[0].backend == "reference"
    assert build(backend="native").backend == "native"
    monkeypatch.delenv("MSG3D_BACKEND")
    assert build().backend == "native"
    model.backend = "native"
    convolutions = [module for module in model.modules() if hasattr(module, "window_stride")]
    assert len(convolutions) == 9
    assert {module.backend for module in convolutions} == {"native"}
    with pytest.raises(UserError, match="backend is 'cudnn'"):
        model.backend = "cudnn"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 9, 17, 3), r"input has 17 joints \(coco\?\), this model was built for nturgb\+d with 25"),
        ((2, 2, 9, 24, 3), "input has 24 joints, this model was built for nturgb"),
        ((2, 2, 9, 25, 2), "input has 2 channels, this model was built for 3"),
        ((2, 1, 9, 25, 3), "input has 1 persons, this model was built for num_person=2"),
        ((2, 9, 25, 3), r"input has shape \(2, 9, 25, 3\), expected \(clips, persons, frames, joints, channels\)"),
        ((2, 2, 0, 25, 3), "input has no frames"),
    ],
)
def test_clips_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(layout="nturgb+d")(torch.randn(shape))
    assert "\n" not in str(error.value)


def test_types_and_batches_that_do_not_fit() -> None:
    model = build()
    x = clips(model)
    for wrong in (x.double(), x.long(), x.half()):
        with pytest.raises(UserError, match=f"input is {wrong.dtype}, this model is torch.float32; convert"):
            model(wrong)
    with pytest.raises(UserError, match="input is a ndarray, expected a tensor"):
        model(x.numpy())
    with pytest.raises(UserError, match="one clip of one frame has no statistics to train"):
        model(x[:1, :, :1])
    assert model.eval()(x[:1, :, :1]).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_channels": 5}, "base_channels is 5, expected at least 6"),
        ({"base_channels": 9, "flavour": "original"}, "base_channels is 9, expected a multiple of 6"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"num_person": 0}, "num_person is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_gcn_scales": 0}, "num_scales 0"),
        ({"layout": "kinect"}, "unknown layout 'kinect'"),
        ({"flavour": "ctrgcn"}, "unknown flavour 'ctrgcn'"),
        ({"layout": {"num_node": 3, "inward": [], "center": 0}}, "the graph has no edges"),
    ],
)
def test_networks_that_cannot_be_built(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**arguments)


def test_classifier_starts_as_upstreams() -> None:
    for flavour in ("mmaction2", "pyskl"):
        fc = build(num_classes=400, base_channels=48, flavour=flavour).cls_head.fc
        assert abs(fc.weight.std().item() / 0.01 - 1) < 0.03
        assert fc.weight.abs().max() > 0.03
        assert not fc.bias.any()
    fc = build(num_classes=400, base_channels=48, flavour="original").cls_head.fc
    bound = 192**-0.5
    assert 0.95 * bound < fc.weight.abs().max() <= bound
    assert fc.bias.any()


def test_a_seed_fixes_the_start() -> None:
    def start(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build().state_dict()

    one, same, other = start(1), start(1), start(2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["backbone.tcn1.branches.0.0.weight"], other["backbone.tcn1.branches.0.0.weight"])


def test_copies_compute_the_same() -> None:
    model = build(layout={"num_node": 3, "inward": [(1, 0), (2, 1)], "center": 0}).eval()
    x = clips(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = Recognizer(**model.hparams).eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_clip_full_of_nan_leaves_the_others_alone(backend: str) -> None:
    model = build(backend=backend, base_channels=12).eval()
    x = clips(model, N=5, T=11)
    with torch.no_grad():
        clean = model(x)
        x[2] = torch.nan
        x[3, 1, 4] = torch.inf
        dirty = model(x)
    untouched = [0, 1, 4]
    assert torch.equal(dirty[untouched], clean[untouched])
    assert dirty[2].isnan().all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_clip_computes_the_same_alone_and_in_a_batch(backend: str) -> None:
    model = build(backend=backend).double().eval()
    x = clips(model, N=4).double()
    torch.testing.assert_close(torch.cat([model(clip[None]) for clip in x]), model(x), rtol=1e-10, atol=1e-12)


def test_statistics_move_in_training_only() -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())
    model.eval()(clips(model))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.train()(clips(model))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    assert moved == {
        key for key in before if key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_export_of_the_reference_network_with_any_batch() -> None:
    model = build(backend="reference").eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (clips(model, 3),), dynamic_shapes=({0: batch},))
    for N in (3, 5):
        x = clips(model, N)
        torch.testing.assert_close(program.module()(x), model(x))


def test_reference_network_compiles_in_one_graph() -> None:
    model = build(backend="reference").eval()
    x = clips(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_syncbn_conversion_keeps_the_state_dict() -> None:
    model = build()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert list(converted.state_dict()) == list(model.state_dict())
