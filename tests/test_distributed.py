"""Two processes over gloo: the gradients of one, batch statistics, every test sample once, a worker that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT, assert_same_run, config, settings

from msg3d_fast import training
from msg3d_fast.checkpoint import load_file
from msg3d_fast.errors import UserError
from msg3d_fast.run_folder import RunFolder

# What each of two processes does: one step, with batch norm frozen or synchronised, then its own statistics, which are
# averaged.
STEP = """
import os, sys
import numpy as np, torch
from tiny import config
from msg3d_fast import distributed, training
from msg3d_fast.run_folder import RunFolder
data, folder, *more = sys.argv[1:]
distributed.start(torch.device("cpu"))
with RunFolder(folder, writes=distributed.rank() == 0) as run:
    trainer = training.Trainer(config(data, *more), run, torch.device("cpu"))
    trainer.replica.train(trainer.config.train.sync_bn)
    trainer._step(trainer._load(np.arange(8)), np.arange(8))
    mean = trainer.model.backbone.data_bn.running_mean.fill_(distributed.rank())
    trainer._gather()
    if run.writes:
        gradients = [p.grad for p in trainer.model.parameters()]
        statistics = [norm.running_var for norm in trainer.model.modules() if hasattr(norm, "running_var")]
        torch.save([gradients, trainer.position.sums, mean, statistics], folder + "/step.pt")
distributed.stop()
os._exit(0)  # the step is what is tested; now and then a thread of torch aborts while the interpreter winds down
"""


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | more


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TWO, *command], cwd=ROOT, env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2' in the environment and RANK, MASTER_ADDR, MASTER_PORT not; start"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "WORLD_SIZE is 'two' in the"),
    ],
    ids=["alone", "no_number"],
)
def test_variables_that_torchrun_did_not_set(
    variables: dict[str, str], words: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        training.train(config(clips), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sync", [False, pytest.param(True, marks=pytest.mark.distributed)], ids=["frozen", "sync_bn"])
def test_two_processes_make_the_gradient_of_one(clips: Path, tmp_path: Path, sync: bool) -> None:
    step, folder = tmp_path / "step.py", tmp_path / "two"
    step.write_text(STEP)
    more = ["--train.micro_batch=4", "--model.tcn_dropout=0", "--train.lr=0"]
    done = torchrun(str(step), str(clips), str(folder), *more, f"--train.sync_bn={str(sync).lower()}")
    assert done.returncode == 0, done.stderr
    theirs, sums, mean, statistics = torch.load(folder / "step.pt")
    assert (mean == 0.5).all()
    with RunFolder(tmp_path / "one") as run:
        trainer = training.Trainer(config(clips, *more, "--train.micro_batch=8"), run, torch.device("cpu"))
        trainer.model.train(sync)
        trainer._step(trainer._load(np.arange(8)), np.arange(8))
        trainer._gather()
    assert sums == pytest.approx(trainer.position.sums, rel=1e-5)
    largest = max(float(p.grad.abs().max()) for p in trainer.model.parameters())
    tolerance = {"rtol": 1e-3, "atol": 1e-5 * largest} if sync else {"rtol": 1e-4, "atol": 1e-6}
    for gradient, parameter in zip(theirs, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, **tolerance)
    ours = [norm.running_var for norm in trainer.model.modules() if hasattr(norm, "running_var")]
    for one, two in zip(ours, statistics, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


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


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_started_again_and_goes_on_bit_for_bit(clips: Path, tmp_path: Path, rank: int) -> None:
    folders = tmp_path / "straight", tmp_path / "killed"
    straight, killed = (
        ["scripts/train.py", "--config", "custom", "--run-dir", str(f), *settings(clips)] for f in folders
    )
    done = torchrun(*straight)
    assert done.returncode == 0, done.stderr
    launcher = [*TWO, "--max-restarts", "1", *killed]
    process = subprocess.Popen(
        launcher, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    checkpoint = folders[1] / "last.ckpt"
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.kill(worker(process.pid, rank), signal.SIGKILL)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "going on from epoch 1, step" in output
    assert_same_run(*folders)
    one, two = (np.load(folder / "scores.npz")["scores"] for folder in folders)
    assert (one == two).all()


def worker(launcher: int, rank: int) -> int:
    """The process id of the worker with this rank."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != launcher:
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # of another user, or gone
                continue
            if parent == launcher and f"RANK={rank}".encode() in variables:
                return int(entry.name)
    raise AssertionError(f"no worker of rank {rank}")


@pytest.mark.distributed
@pytest.mark.parametrize("script", ["slurm_node.sh", "slurm_nodes.sh"])
def test_slurm_templates(clips: Path, tmp_path: Path, script: str) -> None:
    """Two processes on a cluster whose srun and scontrol are two lines each: one node with two, or two with one."""
    nodes = 2 if script == "slurm_nodes.sh" else 1
    tools = tmp_path / "bin"
    tools.mkdir()
    srun = 'pids=()\nfor node in $(seq "$SLURM_NNODES"); do "$@" & pids+=($!); done\n'
    srun += 'for pid in "${pids[@]}"; do wait "$pid"; done\n'
    for name, text in (("srun", srun), ("scontrol", "echo localhost\n")):
        (tools / name).write_text("#!/usr/bin/env bash\nset -e\n" + text)
        (tools / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "run"
    variables = environment(
        PATH=f"{tools}:{os.environ['PATH']}",
        PYTHON=sys.executable,
        SLURM_NNODES=str(nodes),
        SLURM_GPUS_ON_NODE=str(2 // nodes),
        SLURM_CPUS_PER_TASK="2",
        SLURM_JOB_ID="7",
        SLURM_JOB_NODELIST="localhost",
        MASTER_PORT=str(port),
    )
    arguments = ["--config", "custom", "--run-dir", str(folder), *settings(clips, "--train.epochs=1")]
    done = subprocess.run(
        ["bash", f"scripts/{script}", *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert done.stdout.count("wrote ") == 1
    assert json.loads((folder / "metrics.json").read_text())["num_samples"] == 9
