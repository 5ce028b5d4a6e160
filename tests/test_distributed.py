"""Two processes over gloo: the gradients of one, shared batch-norm statistics, every test sample once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT, config, settings, write_clips

from msg3d_fast import training
from msg3d_fast.checkpoint import load_file
from msg3d_fast.run_folder import RunFolder

# What each of two processes does: one step with batch norm frozen, then its own statistics, which are averaged.
STEP = """
import sys
import numpy as np, torch
from tiny import config
from msg3d_fast import distributed, training
from msg3d_fast.run_folder import RunFolder
data, folder, *more = sys.argv[1:]
distributed.start(torch.device("cpu"))
with RunFolder(folder, writes=distributed.rank() == 0) as run:
    trainer = training.Trainer(config(data, *more), run, torch.device("cpu"))
    trainer.replica.eval()
    trainer._step(trainer._load(np.arange(8)), np.arange(8))
    mean = trainer.model.backbone.data_bn.running_mean.fill_(distributed.rank())
    trainer._gather()
    if run.writes:
        gradients = [p.grad for p in trainer.model.parameters()]
        torch.save([gradients, trainer.position.sums, mean], folder + "/step.pt")
distributed.stop()
"""


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data") / "clips.npz")


def test_two_processes_make_the_gradient_of_one(clips: Path, tmp_path: Path) -> None:
    step, folder = tmp_path / "step.py", tmp_path / "two"
    step.write_text(STEP)
    more = ["--train.micro_batch=2", "--model.tcn_dropout=0", "--train.lr=0"]
    done = torchrun(str(step), str(clips), str(folder), *more)
    assert done.returncode == 0, done.stderr
    theirs, sums, mean = torch.load(folder / "step.pt")
    assert (mean == 0.5).all()
    with RunFolder(tmp_path / "one") as run:
        trainer = training.Trainer(config(clips, *more, "--train.micro_batch=8"), run, torch.device("cpu"))
        trainer.model.eval()
        trainer._step(trainer._load(np.arange(8)), np.arange(8))
        trainer._gather()
    assert sums == pytest.approx(trainer.position.sums, rel=1e-5)
    for gradient, parameter in zip(theirs, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.distributed
def test_run_on_two_processes(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--config", "custom", "--run-dir", str(folder), *settings(clips)]
    done = torchrun("scripts/train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    state = load_file(folder / "last.ckpt")
    history = state["training"]["position"]["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_samples"] == 9  # an odd number: padding to equal shares would count one twice
    two = dict(np.load(folder / "scores.npz"))
    assert len(set(two["ids"].tolist())) == 9

    done = torchrun("scripts/test.py", "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    again = np.load(folder / "scores.npz")["scores"]
    np.testing.assert_allclose(again, two["scores"], rtol=1e-5, atol=1e-6)

    training.train(config(clips), folder)  # alone: nothing left to train, the same scores
    one = dict(np.load(folder / "scores.npz"))
    assert (one["ids"] == two["ids"]).all()
    np.testing.assert_allclose(one["scores"], two["scores"], rtol=1e-5, atol=1e-6)


@pytest.mark.distributed
def test_batch_that_does_not_divide(clips: Path, tmp_path: Path) -> None:
    arguments = ["--config", "custom", "--run-dir", str(tmp_path / "run"), *settings(clips, "--train.batch_size=7")]
    done = torchrun("scripts/train.py", *arguments)
    assert done.returncode != 0
    assert "msg3d-fast: train.batch_size is 7, expected a multiple of 2" in done.stderr
    assert not (tmp_path / "run" / "last.ckpt").exists()
