"""The training loop: schedule, order, shares, exact resume, and what may not be lost."""

import copy
import csv
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import assert_same_run, config, same_state, settings, start, write_clips

from msg3d_fast import training
from msg3d_fast.checkpoint import load_checkpoint, load_file
from msg3d_fast.errors import UserError
from msg3d_fast.model import Recognizer
from msg3d_fast.run_folder import RunFolder
from msg3d_fast.schedule import cosine_lr

FILES = {
    "config.yaml",
    "log.csv",
    "last.ckpt",
    "best.ckpt",
    "metrics.json",
    "scores.npz",
    "curves.png",
    "confusion.png",
    "per_class.csv",
    "worst_clips.csv",
}


@pytest.fixture(scope="module")
def finished(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    training.train(config(clips), folder)
    return folder


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_a_batch_without_overlap(world_size: int) -> None:
    batch = np.random.default_rng(0).permutation(32)
    shares = [training.micro_batches(batch, rank, world_size, 4) for rank in range(world_size)]
    assert (np.concatenate([part for share in shares for part in share]) == batch).all()
    assert {len(part) for share in shares for part in share} == {4}
    assert [len(part) for part in training.micro_batches(np.arange(10), 0, 1, 4)] == [4, 3, 3]


def test_run_folder_is_complete(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES | {".lock"}
    rows = list(csv.DictReader((finished / "log.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert all(0 <= float(row["val_top1"]) <= 1 for row in rows)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["num_samples"] == 9
    assert metrics["num_clips"] == 3
    assert {"top1", "top5", "mean_class", "backend", "seconds"} <= metrics.keys()
    with np.load(finished / "scores.npz") as scores:
        assert scores["ids"].tolist() == [f"clip{i:02d}" for i in range(0, 26, 3)]
        np.testing.assert_allclose(scores["scores"].sum(1), 1, rtol=1e-5)
        assert (scores["scores"].argmax(1) == scores["labels"]).mean() == pytest.approx(metrics["top1"])
    for name in ("curves.png", "confusion.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_learning_rates_are_those_of_the_schedule(finished: Path) -> None:
    steps = 3 * 5  # 17 clips twice in batches of 8
    rows = list(csv.DictReader((finished / "log.csv").open()))
    expected = [cosine_lr(0.1, step, steps) for step in (4, 9, 14)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(expected, rel=1e-12)


def test_accumulated_gradients_are_those_of_the_whole_batch(clips: Path, tmp_path: Path) -> None:
    gradients = []
    for micro_batch in (8, 3):
        run = config(clips, f"--train.micro_batch={micro_batch}", "--model.tcn_dropout=0", "--train.lr=0")
        with RunFolder(tmp_path / str(micro_batch)) as folder:
            trainer = training.Trainer(run, folder, torch.device("cpu"))
            trainer.model.eval()  # batch statistics would differ
            trainer._step(trainer._load(np.arange(8)), np.arange(8))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_compile_compiles_what_trains(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Compiled(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return self.net(x)

    monkeypatch.setattr(torch, "compile", Compiled)
    run = ("--train.epochs=1", "--train.repeat=1", "--data.val_split=null", "--test.num_clips=1")
    training.train(config(clips, *run), tmp_path / "plain")
    assert not calls
    training.train(config(clips, *run, "--train.compile=true"), tmp_path / "compiled")
    assert sum(calls) >= 17  # every training clip; the test runs without it
    one, other = (load_file(tmp_path / name / "last.ckpt")["state_dict"] for name in ("plain", "compiled"))
    assert same_state(one, other)


@pytest.mark.slow
def test_a_compiled_step_is_the_uncompiled_one() -> None:
    """In float64, where nothing else can hide: loss, gradients and statistics of two batches of different sizes."""
    torch.manual_seed(0)
    model = Recognizer(num_classes=4, base_channels=6, num_gcn_scales=2, num_g3d_scales=2, backend="native").double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model.train(), fullgraph=True)
    for number in (4, 3):
        x, label = torch.randn(number, 2, 8, 17, 3, dtype=torch.float64), torch.arange(number)
        x[0, 1] = 0  # absent
        losses = [torch.nn.functional.cross_entropy(net(x), label) for net in (compiled, twin.train())]
        losses[0].backward()
        losses[1].backward()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-10)
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-9 * max(1, other.grad.abs().max()), name
    for (name, one), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def test_compiling_without_a_compiler_is_one_line(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(UserError, match="no-such-compiler is not there"):
        training.train(config(clips, "--train.compile=true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_same_seed_same_run(clips: Path, finished: Path, tmp_path: Path) -> None:
    training.train(config(clips), tmp_path / "again")
    assert_same_run(finished, tmp_path / "again")


def test_killed_run_goes_on_bit_for_bit(clips: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    arguments = ["train", "--config", "custom", "--run-dir", str(folder), *settings(clips)]
    process = start(*arguments)
    while not (folder / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    position = load_file(folder / "last.ckpt")["training"]["position"]
    assert (position["epoch"], position["step"]) < (3, 0), "the run ended before it was killed"
    training.train(config(clips), folder)
    assert_same_run(finished, folder)


def test_finished_run_is_only_tested(clips: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "last.ckpt").read_bytes()
    monkeypatch.setattr(training.Trainer, "_step", lambda *_: pytest.fail("trained again"))
    training.train(config(clips, "--test.num_clips=1"), finished)
    assert (finished / "last.ckpt").read_bytes() == before
    assert json.loads((finished / "metrics.json").read_text())["num_clips"] == 1


def test_best_is_replaced_by_better_only(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tops = iter([0.5, 0.5, 0.4])
    saved = []
    monkeypatch.setattr(training.evaluation, "metrics_of", lambda *_: {"top1": next(tops)})
    monkeypatch.setattr(training, "save_checkpoint", lambda model, path, **_: saved.append(path.name))
    with RunFolder(tmp_path / "run") as folder:
        training.Trainer(config(clips), folder, torch.device("cpu")).run()
    assert saved.count("best.ckpt") == 1
    assert saved.index("best.ckpt") < 5  # in the first epoch


def test_resuming_asks_for_the_same_settings_and_data(clips: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr=0\.1, now train\.lr=0\.2"):
        training.train(config(clips, "--train.lr=0.2"), finished)
    with pytest.raises(UserError, match=r"model\.base_channels=6, now model\.base_channels=12"):
        training.train(config(clips, "--model.base_channels=12"), finished)
    other = write_clips(tmp_path / "other.npz", label=(np.arange(26) + 1) % 4)
    with pytest.raises(UserError, match="fingerprint"):
        training.train(config(other), finished)


def test_one_run_at_a_time(clips: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(UserError, match="another run is writing"):
        training.train(config(clips), tmp_path / "run")
    with RunFolder(tmp_path / "run"):
        pass  # the lock is gone with its holder


@pytest.mark.parametrize("stages", [1, 3])
def test_frozen_stages_stay_as_they_are(clips: Path, finished: Path, tmp_path: Path, stages: int) -> None:
    run = (f"--train.freeze={stages}", "--train.epochs=1", "--train.repeat=1", "--test.num_clips=1")
    source = finished / "last.ckpt"
    training.train(config(clips, *run, f"--model.checkpoint={source}"), tmp_path / "run")
    before, after = (load_file(path)["state_dict"] for path in (source, tmp_path / "run" / "last.ckpt"))
    frozen = [f"backbone.{part}{stage}." for stage in range(1, stages + 1) for part in ("gcn3d", "sgcn", "tcn")]
    kept = {key for key in before if key.startswith((*frozen, "backbone.data_bn."))}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert not kept & changed
    rest = before.keys() - kept - {key for key in before if key.split(".")[-1] == "A"}
    assert rest - changed <= {key for key in rest if key.endswith(".bias")}  # before a batch normalisation, zero still
    assert "cls_head.fc.weight" in changed
    with pytest.raises(UserError, match=r"set --model\.checkpoint"):
        training.train(config(clips, *run), tmp_path / "other")


def test_fine_tuning_starts_from_a_checkpoint(clips: Path, finished: Path, tmp_path: Path) -> None:
    trained = load_checkpoint(finished / "best.ckpt").state_dict()
    run = config(clips, f"--model.checkpoint={finished / 'best.ckpt'}")
    with RunFolder(tmp_path / "same") as folder:
        trainer = training.Trainer(run, folder, torch.device("cpu"))
    assert same_state(dict(trainer.model.state_dict()), dict(trained))
    with RunFolder(tmp_path / "more") as folder:
        wider = replace(run, model=replace(run.model, num_classes=7))
        trainer = training.Trainer(wider, folder, torch.device("cpu"))
    assert trainer.model.cls_head.fc.out_features == 7
    assert torch.equal(trainer.model.backbone.data_bn.weight, trained["backbone.data_bn.weight"])
    wrong = replace(run, model=replace(run.model, base_channels=12))
    with pytest.raises(UserError, match=r"base_channels 6, model\.base_channels is 12"):
        training.train(wrong, tmp_path / "wider")
