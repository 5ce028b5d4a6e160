"""What `bench` compares, and when it refuses to."""

from pathlib import Path

import pytest
import torch
from tiny import fails

from msg3d_fast import _library, bench
from msg3d_fast.cli import main
from msg3d_fast.model import Recognizer

pytestmark = pytest.mark.skipif(not _library.available(), reason="the native library is what is measured")
TINY = {"layout": "coco", "num_classes": 3, "base_channels": 6, "num_gcn_scales": 2, "num_g3d_scales": 1}


def test_a_networks_rows() -> None:
    model = Recognizer(**TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = bench.compare(model, clips=2, frames=8, rounds=1)
    assert [(one.name, one.clips) for one in found] == [
        ("inference", 2),
        ("inference, 1 person of 2", 2),
        ("training step", 2),
    ]
    assert all(one.plain > 0 and one.ours > 0 and one.ratio == one.plain / one.ours for one in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = bench.compare(Recognizer(**TINY, num_person=1), frames=8, rounds=1)
    assert [one.name for one in alone] == ["inference", "training step"]


def test_table() -> None:
    assert bench.table([bench.Comparison("inference", 2, 0.2, 0.05)]).splitlines() == [
        "ms            PyTorch  msg3d_fast   ratio   clips/s",
        "inference       200.0        50.0    4.00      40.0",
    ]


def test_no_ratio_of_unequal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "fuse", lambda model: lambda x: model(x) + 0.1)
    with pytest.raises(RuntimeError, match="logits differ"):
        bench.compare(Recognizer(**TINY), frames=8, rounds=1)


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model.base_channels=6", "--model.num_gcn_scales=1", "--model.num_g3d_scales=1"]
    assert main(["bench", "--config", "ntu60_xsub_2d", *small, "--frames", "8", "--rounds", "1"]) == 0
    text = capsys.readouterr().out
    assert "1 clip(s) of 8 frames, medians of 1 rounds" in text
    assert text.count("\n") == 6
    assert "clips is 0, expected at least 1" in fails(capsys, "bench", "--config", "ntu60_xsub_2d", "--clips", "0")
    assert "bench: give a run folder, a checkpoint or --config NAME" in fails(capsys, "bench")
