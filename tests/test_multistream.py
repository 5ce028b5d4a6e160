"""train --streams: a run folder for each stream, trained in turn or side by side, and their fusion."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import assert_same_run, fails, settings

from msg3d_fast import distributed, multistream
from msg3d_fast.cli import main
from msg3d_fast.errors import UserError
from msg3d_fast.multistream import parse_streams, train_streams

SHORT = ("--train.epochs=1", "--train.repeat=1", "--test.num_clips=1")


@pytest.fixture(scope="module")
def fused(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "three"
    arguments = ["--config", "custom", "--run-dir", str(folder), "--streams", "j,b,jm", *settings(clips, *SHORT)]
    assert main(["train", *arguments]) == 0
    return folder


def test_each_stream_is_a_run_and_their_fusion_a_report(fused: Path) -> None:
    metrics = json.loads((fused / "metrics.json").read_text())
    assert [(one["stream"], one["weight"]) for one in metrics["members"]] == [("j", 2), ("b", 2), ("jm", 1)]
    parts = [np.load(fused / stream / "scores.npz")["scores"].astype(np.float64) for stream in ("j", "b", "jm")]
    expected = (2 * parts[0] + 2 * parts[1] + parts[2]) / 5
    with np.load(fused / "scores.npz") as scores:
        np.testing.assert_allclose(scores["scores"], expected, atol=1e-6)
        assert (scores["scores"].argmax(1) == scores["labels"]).mean() == pytest.approx(metrics["top1"])
    for stream, one in zip(("j", "b", "jm"), metrics["members"], strict=True):
        assert f"stream: {stream}\n" in (fused / stream / "config.yaml").read_text()
        assert one["top1"] == json.loads((fused / stream / "metrics.json").read_text())["top1"]
    assert not np.array_equal(parts[0], parts[1])


def test_devices_train_side_by_side(
    clips: Path, fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "devices", lambda _: ["cpu", "cpu"])
    metrics = train_streams("custom", settings(clips, *SHORT), ["j", "b", "jm"], tmp_path / "three")
    output = capfd.readouterr().out
    assert metrics["top1"] == json.loads((fused / "metrics.json").read_text())["top1"]
    for stream in ("j", "b", "jm"):
        assert_same_run(tmp_path / "three" / stream, fused / stream)
        assert f"{stream}: test: 9 samples" in output


def test_the_stream_that_fails_is_named(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = settings(clips, "--data.val_split=nowhere")
    with pytest.raises(UserError, match=r"stream j: .*no split 'nowhere'"):
        train_streams("custom", bad, ["j", "b"], tmp_path / "one")
    monkeypatch.setattr(distributed, "devices", lambda _: ["cpu", "cpu"])
    with pytest.raises(UserError, match=r"stream [jb] on cpu: .*no split 'nowhere'"):
        train_streams("custom", bad, ["j", "b"], tmp_path / "two")
    assert not (tmp_path / "two" / "metrics.json").exists()


def test_all_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multistream.distributed.torch.cuda, "device_count", lambda: 3)
    assert distributed.devices("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert distributed.devices("cuda:1") == ["cuda:1"]
    assert distributed.devices("cpu") == ["cpu"]


@pytest.mark.parametrize("text", ["j", "j,j", "j,x", "", "j b"])
def test_streams_that_make_no_fusion(text: str) -> None:
    with pytest.raises(UserError, match="expected two or more of j,b,jm,bm, each once"):
        parse_streams(text)


def test_what_cannot_go_together(clips: Path, fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", "--config", "custom", "--streams", "j,b", *settings(clips)]
    assert "--data.stream" in fails(capsys, *base, "--data.stream=b", "--run-dir", str(fused))
    assert "one stream" in fails(capsys, *base, "--run-dir", str(fused / "j"))
