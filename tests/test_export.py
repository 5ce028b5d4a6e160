"""Export: files that give the model's logits for any number of clips and frames, or no file at all."""

import copy
import json
import re
from importlib import util
from pathlib import Path

import pytest
import torch
from networks import build
from tiny import fails
from tolerance import assert_as_good_as_eager, error
from torch import Tensor, nn

import msg3d_fast
from msg3d_fast import export
from msg3d_fast.checkpoint import save_checkpoint
from msg3d_fast.cli import main
from msg3d_fast.config import Config
from msg3d_fast.errors import UserError
from msg3d_fast.experiment import Trained
from msg3d_fast.model import Recognizer
from msg3d_fast.preprocessing import Preprocessing

needs_onnx = pytest.mark.skipif(
    any(util.find_spec(name) is None for name in export.PACKAGES), reason="the extra `export` is not installed"
)
SHAPES = ((1, 8), (4, 5), (2, 21))


@pytest.fixture(scope="module")
def model() -> Recognizer:
    torch.manual_seed(0)
    return build(layout="coco", base_channels=6, num_gcn_scales=2, num_g3d_scales=2)


@torch.no_grad()
def assert_same_logits(model: Recognizer, run: object) -> None:
    for N, T in SHAPES:
        x = torch.randn(N, 2, T, 17, 3)
        x[0, 1] = 0
        exact = model.double()(x.double())
        assert_as_good_as_eager(error(run(x), exact), error(model.float()(x), exact), f"{N} clips of {T} frames")


@pytest.mark.slow
def test_pt2(model: Recognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(model, tmp_path / "net.ckpt")
    assert main(["export", str(tmp_path / "net.ckpt"), str(tmp_path / "net.pt2")]) == 0
    assert "clips (N, 2, T, 17, 3) -> logits (N, 7)" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.ckpt", "net.pt2"]
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    about = json.loads(extra["metadata.json"])
    assert about["layout"] == "coco"
    assert json.loads(about["joint_names"])[0] == "nose"
    assert not any("msg3d" in str(node.target) for node in program.graph.nodes)
    assert_same_logits(model, program.module())


@pytest.mark.slow
@needs_onnx
def test_onnx(model: Recognizer, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "net.onnx"
    model.backend = "reference"
    trained = Trained(model, path, Config(name="run"), tuple("abcdefg"))
    assert msg3d_fast.export_model(model, path, frames=12, metadata=export.describe(trained)) < 1e-5
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} <= {""}
    assert str(Path(msg3d_fast.__file__).parent).encode() not in path.read_bytes()
    dims = [dim.dim_param or dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["clips", 2, "frames", 17, 3]
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["class_names"]) == list("abcdefg")
    assert (about["stream"], about["clip_len"], about["num_person"]) == ("j", "100", "2")
    assert_same_logits(model, export.onnx_session(path.read_bytes(), threads=1))


def test_what_a_file_says_of_its_clips(model: Recognizer) -> None:
    other = copy.deepcopy(model)
    about = export.describe(Trained(other, Path("net.ckpt")))
    assert about["class_names"] == "[]"
    assert not {"stream", "clip_len"} & about.keys()  # nobody knows
    other.preprocessing = Preprocessing(channels="xys", label_names=tuple("abcdefg"), stream="bm", clip_len=64).plain()
    about = export.describe(Trained(other, Path("net.ckpt"), Config()))
    assert json.loads(about["class_names"]) == list("abcdefg")
    assert (about["stream"], about["clip_len"], about["channels"]) == ("bm", "64", "xys")
    assert "img_shape" not in about


class Runs(nn.Module):
    """Stands for a runtime that computes `wrong(logits)`."""

    def __init__(self, model: Recognizer, wrong: object) -> None:
        super().__init__()
        self.model, self.wrong = model, wrong

    def forward(self, x: Tensor) -> Tensor:
        return self.wrong(self.model(x))

    def module(self) -> "Runs":
        return self


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda y: y + 2e-5 * y.abs().max(), "off by"),
        (lambda y: y * float("nan"), "off by nan"),
        (lambda y: y.flip(1), "off by"),
        (lambda y: y[:, 1:], "(3, 6)"),
    ],
    ids=["slightly off", "nan", "classes turned round", "a class short"],
)
def test_mismatch_leaves_no_file(
    model: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: object, words: str
) -> None:
    monkeypatch.setattr(export, "_trace", lambda model: model)
    monkeypatch.setattr(export, "_pt2_file", lambda program, metadata: b"content")
    right = lambda y: y  # noqa: E731
    monkeypatch.setattr(torch.export, "load", lambda file: Runs(model, right))
    export.export_model(model, tmp_path / "right.pt2", frames=5)
    monkeypatch.setattr(torch.export, "load", lambda file: Runs(model, wrong))
    with pytest.raises(UserError, match=re.escape(words)):
        export.export_model(model, tmp_path / "wrong.pt2", frames=5)
    assert [path.name for path in tmp_path.iterdir()] == ["right.pt2"]


def test_wrong_arguments(model: Recognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(model, tmp_path / "net.ckpt")
    source = str(tmp_path / "net.ckpt")
    assert ".onnx and .pt2" in fails(capsys, "export", source, str(tmp_path / "net.trt"))
    assert "no folder" in fails(capsys, "export", source, str(tmp_path / "absent" / "net.pt2"))
    assert "absent.ckpt" in fails(capsys, "export", str(tmp_path / "absent.ckpt"), str(tmp_path / "net.pt2"))
    assert "no run folder; give one" in fails(capsys, "export", str(tmp_path), str(tmp_path / "net.pt2"))
    with pytest.raises(UserError, match="takes a Recognizer"):
        export.export_model(nn.Linear(1, 1), tmp_path / "net.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["net.ckpt"]


def test_missing_packages(
    model: Recognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PACKAGES", ("onnx_that_is_not_here", "json"))
    save_checkpoint(model, tmp_path / "net.ckpt")
    line = fails(capsys, "export", str(tmp_path / "net.ckpt"), str(tmp_path / "net.onnx"))
    assert "pip install onnx_that_is_not_here" in line
    assert "json" not in line.split(":")[1]
    assert not (tmp_path / "net.onnx").exists()
