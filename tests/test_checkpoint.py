"""Checkpoints of all upstreams in and out, and every file that is none."""

import hashlib
import os
import pickle
import resource
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import msg3d_fast
from msg3d_fast import Layout, Recognizer, UserError, load_checkpoint, save_checkpoint
from msg3d_fast.checkpoint import convert_state_dict, load_file, load_weights, save_file
from msg3d_fast.cli import main
from msg3d_fast.graph import adjacency

SMALL = {"num_classes": 5, "base_channels": 12, "num_gcn_scales": 4, "num_g3d_scales": 2, "backend": "reference"}


def lived_in(**arguments: object) -> Recognizer:
    """A small model in eval mode whose every parameter and statistic differs from its start."""
    model = Recognizer(**{**SMALL, **arguments}).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 1:
            tensor.data.uniform_(0.5, 1.5)
    for name, tensor in model.named_parameters():
        if name.endswith("PA"):
            tensor.data.uniform_(-0.1, 0.1)
    return model


def clip(model: Recognizer) -> Tensor:
    return torch.randn(2, model.backbone.num_person, 8, model.layout.num_joints, model.backbone.in_channels)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"layout": "nturgb+d", "flavour": "original"},
        {"layout": "openpose25", "in_channels": 2, "num_person": 1, "base_channels": 7, "head_dropout": 0.5},
        {"layout": Layout(("a", "b", "c"), ((0, 1), (2, 1)), 1, ((0, 2),))},
    ],
    ids=["coco", "original", "remainder", "custom_layout"],
)
def test_our_file_builds_the_same_model(tmp_path: Path, arguments: dict) -> None:
    model = lived_in(**arguments)
    save_checkpoint(model, tmp_path / "a.ckpt", training={"epoch": 3})
    again = load_checkpoint(tmp_path / "a.ckpt", backend="reference")
    assert again.hparams == model.hparams
    assert again.layout == model.layout
    assert again.source == "msg3d_fast"
    assert not again.training
    assert same(again.state_dict(), model.state_dict())
    assert load_file(tmp_path / "a.ckpt")["training"] == {"epoch": 3}
    x = clip(model)
    assert torch.equal(again(x), model(x))


def test_a_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    model, path = lived_in(), tmp_path / "a.ckpt"
    save_checkpoint(model, path)
    whole, state = path.read_bytes(), model.state_dict()
    weights = state["cls_head.fc.weight"].numpy().tobytes()
    rng = np.random.default_rng(0)
    inside = whole.index(weights) + len(weights) // 2
    found = 0
    for position in (inside, *rng.integers(0, len(whole), 60).tolist()):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        message = damage(path, state)
        found += bool(message)
        assert not message or str(path) in message
        assert position != inside or "its record" in message
    assert found > 40


def damage(path: Path, state: dict[str, Tensor]) -> str:
    """What is said about the file, which must else hold `state`: its padding and its dates mean nothing."""
    try:
        again = load_file(path)["state_dict"]
    except UserError as error:
        return str(error)
    assert same(dict(again), dict(state))
    return ""


def test_double_precision_survives(tmp_path: Path) -> None:
    model = lived_in().double()
    save_checkpoint(model, tmp_path / "a.ckpt")
    assert same(load_checkpoint(tmp_path / "a.ckpt").state_dict(), model.state_dict())


@pytest.mark.parametrize("format", ["mmaction2", "pyskl"])
@pytest.mark.parametrize("flavour", ["mmaction2", "pyskl", "original"])
def test_round_trip_through_mmaction2_and_pyskl_is_exact(tmp_path: Path, format: str, flavour: str) -> None:
    model = lived_in(layout="nturgb+d", flavour=flavour, num_person=3)
    save_checkpoint(model, tmp_path / "a.pth", format=format)
    again = load_checkpoint(tmp_path / "a.pth", backend="reference")
    assert again.source == format
    assert again.hparams == {**model.hparams, "flavour": "original" if flavour == "original" else format}
    assert same(again.state_dict(), model.state_dict())
    head = {"mmaction2": "cls_head.fc.weight", "pyskl": "cls_head.fc_cls.weight"}[format]
    assert list(load_file(tmp_path / "a.pth")["state_dict"])[-2] == head


@pytest.mark.parametrize("layout", ["nturgb+d", "openpose"])
def test_round_trip_through_the_authors_form_is_exact_for_their_network(tmp_path: Path, layout: str) -> None:
    model = lived_in(layout=layout, flavour="original")
    save_checkpoint(model, tmp_path / "a.pt", format="original")
    again = load_checkpoint(tmp_path / "a.pt", backend="reference")
    assert again.source == "original"
    assert again.hparams == model.hparams
    assert same(again.state_dict(), model.state_dict())


def test_folding_a_foreign_adjacency_into_A_res_keeps_the_logits(tmp_path: Path) -> None:
    model = lived_in(layout="nturgb+d")
    save_checkpoint(model, tmp_path / "a.pt", format="original")
    again = load_checkpoint(tmp_path / "a.pt", backend="reference")
    assert not torch.equal(again.state_dict()["backbone.sgcn1.0.A"], model.state_dict()["backbone.sgcn1.0.A"])
    x = clip(model)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=2e-6 * model(x).abs().max().item())


def test_the_two_silent_mistakes_change_the_logits(tmp_path: Path) -> None:
    """Keeping MMAction2's A, or forgetting to transpose A_res, loads without an error in every upstream."""
    model = lived_in(layout="nturgb+d", flavour="original")
    x, state = clip(model), model.state_dict()
    kept_A, untransposed = ({key: value.clone() for key, value in state.items()} for _ in range(2))
    for key, value in state.items():
        if key.endswith(".A") and value.ndim == 3:
            kept_A[key] = adjacency("nturgb+d", len(value), value.shape[1] // 25)
        if key.endswith(".PA"):
            untransposed[key] = value.mT.clone()
    right = model(x)
    save_checkpoint(model, tmp_path / "a.pt", format="original")
    for wrong in (kept_A, untransposed):
        model.load_state_dict(wrong)
        assert (model(x) - right).abs().max() > 1e-3 * right.abs().max()
    assert torch.equal(load_checkpoint(tmp_path / "a.pt", backend="reference")(x), right)


def test_dataparallel_prefixes_and_bare_state_dicts(tmp_path: Path) -> None:
    model = lived_in(layout="openpose", flavour="original")
    theirs = convert_state_dict(model.state_dict(), "original")
    torch.save(OrderedDict((f"module.{key}", value) for key, value in theirs.items()), tmp_path / "a.pt")
    assert same(load_checkpoint(tmp_path / "a.pt").state_dict(), model.state_dict())
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "b.pth"
    )
    assert same(load_checkpoint(tmp_path / "b.pth").state_dict(), model.state_dict())


def test_authors_file_of_another_skeleton_needs_its_name(tmp_path: Path) -> None:
    model = lived_in(layout="kinect20", flavour="original")
    save_checkpoint(model, tmp_path / "a.pt", format="original")
    with pytest.raises(UserError, match="20 joints; name the layout, perhaps kinect20") as error:
        load_checkpoint(tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in one_line(error)
    assert same(load_checkpoint(tmp_path / "a.pt", layout="kinect20").state_dict(), model.state_dict())


def test_layout_is_recognised_by_its_graph(tmp_path: Path) -> None:
    for layout in ("openpose25", "nturgb+d"):
        save_checkpoint(lived_in(layout=layout), tmp_path / "a.pth", format="mmaction2")
        assert load_checkpoint(tmp_path / "a.pth").hparams["layout"] == layout
    with pytest.raises(UserError, match="its graph is that of nturgb\\+d, not that of openpose25"):
        load_checkpoint(tmp_path / "a.pth", layout="openpose25")
    with pytest.raises(UserError, match="layout coco has 17 joints"):
        load_checkpoint(tmp_path / "a.pth", layout="coco")
    unknown = lived_in(layout={"num_node": 4, "inward": [[1, 0], [2, 1], [3, 1]], "center": 0})
    save_checkpoint(unknown, tmp_path / "b.pth", format="mmaction2")
    again = load_checkpoint(tmp_path / "b.pth")
    assert again.hparams == unknown.hparams
    assert same(again.state_dict(), unknown.state_dict())


def test_another_number_of_classes_replaces_the_head_alone(tmp_path: Path) -> None:
    model = lived_in()
    save_checkpoint(model, tmp_path / "a.ckpt")
    tuned = load_checkpoint(tmp_path / "a.ckpt", num_classes=9)
    assert tuned.cls_head.fc.weight.shape == (9, 48)
    assert tuned.hparams["num_classes"] == 9
    assert same(tuned.backbone.state_dict(), model.backbone.state_dict())
    assert same(load_checkpoint(tmp_path / "a.ckpt", num_classes=5).state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"layout": "nturgb+d"}, r"backbone\.A is \(17, 17\) in the file and \(25, 25\) in the model: .*layout=coco"),
        (
            {"base_channels": 18},
            r"PA|layers\.0\.weight is \(12, .* and \(18, .*base_channels=12, the model base_channels=18",
        ),
        (
            {"num_classes": 6},
            r"fc\.weight is \(5, 48\) in the file and \(6, 48\).*num_classes=5, the model num_classes=6",
        ),
        ({"num_person": 1}, r"data_bn\.weight is \(102,\) in the file and \(51,\) in the model: .*num_person=2"),
    ],
    ids=["joints", "width", "classes", "persons"],
)
def test_weights_that_do_not_fit_a_model(tmp_path: Path, other: dict, named: str) -> None:
    save_checkpoint(lived_in(), tmp_path / "a.pth", format="mmaction2")
    model = lived_in(**other)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=named) as error:
        load_weights(model, tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in one_line(error)
    assert same(before, model.state_dict())


def test_weights_that_fit_a_model(tmp_path: Path) -> None:
    model, other = lived_in(layout="nturgb+d", flavour="original"), lived_in(layout="nturgb+d", flavour="original")
    save_checkpoint(model, tmp_path / "a.pt", format="original")
    assert load_weights(other, tmp_path / "a.pt") == other.source == "original"
    assert same(model.state_dict(), other.state_dict())


def test_upstreams_that_could_not_build_the_model(tmp_path: Path) -> None:
    for arguments, format in (({"in_channels": 2}, "mmaction2"), ({"base_channels": 7}, "original")):
        with pytest.raises(UserError, match="save as msg3d_fast"):
            save_checkpoint(lived_in(**arguments), tmp_path / "a.pth", format=format)
    with pytest.raises(UserError, match="expected one of msg3d_fast, mmaction2, pyskl, original"):
        save_checkpoint(lived_in(), tmp_path / "a.pth", format="onnx")
    with pytest.raises(UserError, match="no place for our training state"):
        save_checkpoint(lived_in(), tmp_path / "a.pth", format="pyskl", training={})
    with pytest.raises(UserError, match="a checkpoint holds a Recognizer, found Linear; give the model before fuse"):
        save_checkpoint(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


class Smuggler:
    def __reduce__(self) -> tuple:
        return os.system, ("touch smuggled",)


def write_empty(path: Path) -> None:
    path.touch()


def write_truncated(path: Path) -> None:
    save_checkpoint(lived_in(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_old_truncated(path: Path) -> None:
    torch.save(dict(lived_in().state_dict()), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_other(path: Path, key: str, change: Callable[[Tensor], Tensor]) -> None:
    """A bare state dict in which one tensor is another."""
    state = lived_in().state_dict()
    torch.save({**state, key: change(state[key])}, path)


FC = "cls_head.fc.weight"
BAD_FILES = {
    "absent": (lambda path: None, "No such file"),
    "folder": (Path.mkdir, "is a folder; give a file in it"),
    "empty": (write_empty, "is empty"),
    "truncated": (write_truncated, "is truncated"),
    "old_truncated": (write_old_truncated, "is truncated"),
    "text": (lambda path: path.write_text("epoch,loss\n1,0.5\n"), "no PyTorch file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=4)), "that torch.save did not write"),
    "smuggler": (lambda path: torch.save({"state_dict": Smuggler()}, path), r"asks for \w+\.system, which is no data"),
    "old_smuggler": (lambda path: path.write_bytes(pickle.dumps(Smuggler(), protocol=2)), r"asks for \w+\.system"),
    "foreign_smuggler": (lambda path: path.write_bytes(pickle.dumps(Smuggler())), "that torch.save did not write"),
    "list": (lambda path: torch.save([1, 2], path), "holds a list"),
    "tensors": (lambda path: torch.save({"conv1.weight": torch.ones(3)}, path), "no MS-G3D network"),
    "no_weights": (lambda path: torch.save({"epoch": 3, "optimizer": {}}, path), "no state dict in it"),
    "newer": (
        lambda path: torch.save({"format": "msg3d_fast", "version": 99, "state_dict": lived_in().state_dict()}, path),
        "it has version 99",
    ),
    "foreign_hparams": (
        lambda path: torch.save(
            {"format": "msg3d_fast", "version": 1, "hparams": {"depth": 9}, "state_dict": lived_in().state_dict()}, path
        ),
        "its hparams are not ours",
    ),
    "headless": (
        lambda path: torch.save({k: v for k, v in lived_in().state_dict().items() if "head" not in k}, path),
        "no MS-G3D network",
    ),
    "incomplete": (
        lambda path: torch.save({k: v for k, v in lived_in().state_dict().items() if "tcn2" not in k}, path),
        "it lacks backbone.tcn2",
    ),
    "flat_graph": (lambda path: write_other(path, "backbone.A", lambda A: A[0]), r"backbone.A is \(17,\), expected"),
    "not_finite": (lambda path: write_other(path, FC, lambda x: x / 0), f"{FC} holds NaN or infinity"),
    "sparse": (lambda path: write_other(path, FC, Tensor.to_sparse), f"{FC} is no array of plain numbers"),
    "complex": (lambda path: write_other(path, FC, lambda x: x + 0j), f"{FC} is no array of plain numbers"),
    "meta": (lambda path: write_other(path, FC, lambda x: x.to("meta")), f"{FC} is no array of plain numbers"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = BAD_FILES[name]
    path = tmp_path / "bad.ckpt"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in one_line(error)
    assert not (tmp_path / "smuggled").exists()


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_file({"epoch": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the write fails as it does on a full disk
    try:
        with pytest.raises(UserError, match="cannot be written") as error:
            save_file({"epoch": 2, "weights": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in one_line(error)
    assert load_file(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(("name", "format"), [("a.pth", "mmaction2"), ("a.safetensors", "msg3d_fast")])
def test_published_file_is_named_after_its_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, format: str
) -> None:
    model = lived_in()
    save_checkpoint(model, tmp_path / "last.ckpt", training={"epoch": 3, "optimizer": {"state": torch.ones(100)}})
    command = ["checkpoint", "convert", str(tmp_path / "last.ckpt"), str(tmp_path / name), "--format", format]
    for _ in range(2):  # the same content has the same name
        assert main([*command, "--publish"]) == 0
    (published,) = tmp_path.glob(f"a-*{Path(name).suffix}")
    assert published.stem == f"a-{hashlib.sha256(published.read_bytes()).hexdigest()[:8]}"
    assert str(published) in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["last.ckpt", published.name])
    assert not {"optimizer", "training"} & load_file(published).keys()
    assert same(load_checkpoint(published, backend="reference").state_dict(), model.state_dict())
    assert main([*command, "--publish", "--optimizer"]) == 2
    assert "leave out --optimizer" in capsys.readouterr().err
    command[3] = str(tmp_path / "absent" / name)
    assert main([*command, "--publish"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        save_file({}, tmp_path / "absent" / "last.ckpt")


def test_public_names() -> None:
    assert msg3d_fast.load_checkpoint is load_checkpoint
    assert msg3d_fast.save_checkpoint is save_checkpoint
