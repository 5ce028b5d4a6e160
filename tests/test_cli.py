"""The command line: help, exit statuses, and one line for every wrong input."""

import ctypes
import errno
import functools
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT, fails, settings, start

from msg3d_fast import _library, cli
from msg3d_fast.checkpoint import load_checkpoint, load_file, save_checkpoint
from msg3d_fast.errors import UserError
from msg3d_fast.model import Recognizer

VERBS = ["quickstart", "train", "test", "predict", "ensemble", "reproduce", "export", "flops", "bench"]
VERBS += ["view", "prepare", "checkpoint", "doctor"]


@pytest.fixture(scope="module")
def trained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert (
        cli.main(["train", "--config", "custom", "--run-dir", str(folder), *settings(clips, "--train.epochs=1")]) == 0
    )
    return folder


def train(folder: Path, clips: Path, *more: str) -> list[str]:
    return ["train", "--config", "custom", "--run-dir", str(folder), *settings(clips, *more)]


@pytest.mark.parametrize("verb", [*VERBS, "checkpoint info", "checkpoint convert"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([*verb.split(), "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert f"msg3d-fast {verb}" in text.split("example:")[1]


def test_missing_library_is_one_line(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_library, "_reason", "the native library is missing: no compiler")
    line = fails(capsys, *train(tmp_path / "run", clips, "--model.backend=native"))
    assert "no compiler" in line


def test_help_lists_the_verbs_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_training_then_testing(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((trained / "metrics.json").read_text())
    scores = np.load(trained / "scores.npz")["scores"]
    for batch_size in (1, 7, 64):
        assert cli.main(["test", "--run-dir", str(trained), f"--test.batch_size={batch_size}"]) == 0
        np.testing.assert_allclose(np.load(trained / "scores.npz")["scores"], scores, rtol=1e-4, atol=1e-6)
    assert json.loads((trained / "metrics.json").read_text())["top1"] == before["top1"]
    assert "top-1" in capsys.readouterr().out
    elsewhere = ["test", "--config", str(trained / "config.yaml"), "--run-dir", str(tmp_path / "other")]
    assert cli.main([*elsewhere, "--checkpoint", str(trained / "best.ckpt")]) == 0
    assert (tmp_path / "other" / "confusion.png").exists()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_features_are_what_the_classifier_saw(trained: Path, tmp_path: Path, backend: str) -> None:
    if backend == "native" and not _library.available():
        pytest.skip("no native library here")
    run, checkpoint = tmp_path / "run", str(trained / "last.ckpt")
    test = ["test", "--config", str(trained / "config.yaml"), "--checkpoint", checkpoint, "--run-dir", str(run)]
    assert cli.main([*test, "--features", "--test.average=score", f"--model.backend={backend}"]) == 0
    with np.load(run / "features.npz") as found, np.load(run / "scores.npz") as tested:
        assert found["features"].shape == (len(tested["ids"]), 24)
        assert all(np.array_equal(found[key], tested[key]) for key in ("ids", "labels", "label_names", "stream"))
        fc = load_checkpoint(checkpoint).cls_head.fc
        logits = fc(torch.from_numpy(found["features"])).detach()  # the mean over the clips: a linear layer commutes
        np.testing.assert_allclose(logits.softmax(1), tested["scores"], rtol=1e-5, atol=1e-7)


def test_prepared_store_trains_the_same(clips: Path, trained: Path, tmp_path: Path) -> None:
    store, run = str(tmp_path / "store"), tmp_path / "run"
    assert cli.main(["prepare", str(clips), store, "--dtype=float32"]) == 0
    assert cli.main(["prepare", str(clips), store, "--dtype=float32"]) == 0
    assert cli.main(train(run, Path(store), "--train.epochs=1")) == 0
    ours, theirs = (load_file(folder / "last.ckpt")["state_dict"] for folder in (run, trained))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_checkpoint_verbs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", "info", str(trained / "last.ckpt")]) == 0
    text = capsys.readouterr().out
    assert "base_channels" in text
    assert "epoch" in text
    theirs = str(tmp_path / "theirs.pth")
    assert cli.main(["checkpoint", "convert", str(trained / "best.ckpt"), theirs, "--format", "mmaction2"]) == 0
    assert cli.main(["checkpoint", "info", theirs]) == 0
    assert "mmaction2" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    assert "native" in text
    assert cli.main(["doctor", "--plan"]) == 0
    assert "sgcn1" in capsys.readouterr().out

    def missing() -> None:
        raise UserError("the native library is not there; install a compiler")

    monkeypatch.setattr(_library, "require", missing)
    assert cli.main(["doctor"]) == 0
    assert "the native library is not there; install a compiler" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["'trian'", "did you mean 'train'"]),
        (["predict"], ["source"]),
        (["train"], ["--config"]),
        (["train", "--config", "quickstart", "--train.epoch=1"], ["'train.epoch'", "did you mean 'epochs'"]),
        (["train", "--config", "quikstart"], ["'quikstart'", "did you mean 'quickstart'"]),
        (["train", "--config", "quickstart", "--epochs", "3"], ["--epochs"]),
        (["train", "--config", "quickstart", "3"], ["'3'"]),
        (["train", "--config", "custom"], ["--data.path"]),
        (["train", "--config", "quickstart", "--data.stream=joint"], ["data.stream", "j, b, jm, bm"]),
        (["train", "--config", "quickstart", "--model.backend=cudnn"], ["'cudnn'", "reference"]),
        (["train", "--config", "quickstart", "--model.layout=openpose26"], ["'openpose26'", "openpose25"]),
        (["train", "--config", "quickstart", "--model.layout=coco"], ["25 joints", "17"]),
        (["train", "--config", "quickstart", "--model.num_classes=5"], ["label", "num_classes"]),
        (
            ["train", "--config", "quickstart", "--model.in_channels=2"],
            ["has 3 channels (xys)", "model.in_channels is 2"],
        ),
        (["train", "--config", "custom", "--data.path=" + 300 * "x"], ["xxx: File name too long"]),
        (["train", "--config", "quickstart", "--device=cuda:99"], ["cuda:99"]),
        (["train", "--config", "quickstart", "--device=abacus"], ["'abacus'"]),
        (["train", "--config", "quickstart", "--data.train_split=xsub"], ["'xsub'", "block_train"]),
        (["train", "--config", "custom", "--data.path=absent.npz"], ["absent.npz"]),
        (["test"], ["--run-dir"]),
        (["test", "--run-dir", "absent"], ["absent"]),
        (["test", "--config", "quickstart", "--checkpoint", "absent.ckpt"], ["absent.ckpt"]),
        (["prepare", "absent.pkl", "store"], ["absent.pkl"]),
        (["prepare", "absent.pkl"], ["destination"]),
        (["checkpoint", "info", "absent.ckpt"], ["absent.ckpt"]),
        (["checkpoint", "convert", "a", "b", "--format", "onnx"], ["onnx"]),
        (["doctor", "--plans"], ["--plans"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_wrong_arguments(
    argv: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, *argv)
    assert all(word in line for word in words), line


class Smuggled:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch smuggled",)


def test_wrong_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    annotation = {"frame_dir": "a", "label": 0, "total_frames": 4, "keypoint": np.ones((1, 4, 25, 3), np.float32)}
    good = {"split": {"train": ["a"], "val": ["a"]}, "annotations": [annotation]}
    content = pickle.dumps(good)
    for name, data, words in (
        ("truncated.pkl", content[: len(content) // 2], ["truncated.pkl"]),
        ("malicious.pkl", pickle.dumps({**good, "more": Smuggled()}), ["malicious.pkl", "system"]),
        ("empty.pkl", b"", ["empty.pkl"]),
        ("no_split.pkl", pickle.dumps({**good, "split": {"train": ["a"], "val": []}}), ["no_split.pkl", "val"]),
        (
            "joints.pkl",
            pickle.dumps({**good, "annotations": [{**annotation, "keypoint": np.ones((1, 4, 24, 3), np.float32)}]}),
            ["joints.pkl", "24", "25"],
        ),
        ("label.pkl", pickle.dumps({**good, "annotations": [{**annotation, "label": 60}]}), ["label.pkl", "60"]),
    ):
        Path(name).write_bytes(data)
        run = [
            "train",
            "--config",
            "ntu60_xsub_3d",
            "--run-dir",
            "run",
            f"--data.path={name}",
            "--model.base_channels=6",
        ]
        line = fails(capsys, *run)
        assert all(word in line for word in words), line
    assert not Path("smuggled").exists()
    assert not any(Path("run").glob("*.ckpt"))


def test_wrong_checkpoints(clips: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = str(trained / "best.ckpt")
    line = fails(capsys, *train(tmp_path / "wide", clips, "--model.base_channels=12", f"--model.checkpoint={wide}"))
    assert "base_channels 6" in line
    other = tmp_path / "other.pth"
    save_checkpoint(Recognizer("coco", 4, base_channels=6, num_gcn_scales=3, num_g3d_scales=2), other)
    line = fails(capsys, *train(tmp_path / "wide", clips, f"--model.checkpoint={other}"))
    assert "its network has layout coco, model.layout is custom with 5 joints; set" in line
    line = fails(capsys, *train(trained, clips, "--train.epochs=1", "--model.base_channels=12"))
    assert "model.base_channels=6" in line
    line = fails(capsys, "test", "--config", "quickstart", "--checkpoint", wide, "--run-dir", str(tmp_path / "other"))
    assert f"has 25 joints (openpose25), the network of {wide} has layout custom with 5; choose other data" in line
    line = fails(capsys, "test", "--run-dir", str(trained), "--data.path=synthetic")
    assert f"has label 4, expected 0 to 3 (200 such clips), the network of {trained / 'last.ckpt'} has" in line
    line = fails(capsys, "test", "--run-dir", str(trained), "--model.base_channels=12")
    assert "its network has base_channels 6, model.base_channels is 12" in line
    assert not (tmp_path / "wide").exists()
    assert not (tmp_path / "other").exists()
    torn = tmp_path / "torn"
    shutil.copytree(trained, torn)
    whole = (torn / "last.ckpt").read_bytes()
    (torn / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    line = fails(capsys, *train(torn, clips, "--train.epochs=1"))
    assert "last.ckpt" in line
    assert len((torn / "last.ckpt").read_bytes()) == len(whole) // 2


def test_scores_that_are_not_finite_are_not_reported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = load_file(trained / "last.ckpt")
    content["state_dict"]["backbone.data_bn.running_var"].fill_(-1)
    torch.save(content, tmp_path / "bad.ckpt")
    run = tmp_path / "run"
    test = ["test", "--config", str(trained / "config.yaml"), "--run-dir", str(run)]
    line = fails(capsys, *test, "--checkpoint", str(tmp_path / "bad.ckpt"))
    assert "the scores of clip clip00 are not finite (9 such clips)" in line
    assert not run.exists()


def test_full_disk_keeps_the_checkpoint(clips: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    size = (trained / "last.ckpt").stat().st_size // 2

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = start(*train(folder, clips, "--train.save_every=1", "--no-resume"), preexec_fn=limit)
    _, errors = done.communicate()
    assert done.returncode == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert "ckpt" in errors
    assert (folder / "last.ckpt").read_bytes() == before["last.ckpt"]
    assert {path.name for path in folder.iterdir()} == before.keys()


def test_folder_that_takes_no_files(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = fails(capsys, *train(tmp_path / "file" / "run", clips))
    assert "--run-dir" in line
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o555)
    if not os.access(sealed, os.W_OK):  # root may write anywhere
        assert "--run-dir" in fails(capsys, *train(sealed, clips))


def test_our_faults_have_a_traceback(clips: Path, tmp_path: Path) -> None:
    code = "import sys, msg3d_fast.cli as c; c._train = lambda _: 1 / 0; sys.exit(c.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--config", "custom"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 8.00 TiB"), "out of memory: Unable to allocate 8.00 TiB; ask for less"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB\nGPU 0 has"),
            "Tried to allocate 3 GiB; ask",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "a smaller train.micro_batch"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "data/a.npz"), "data/a.npz: Permission denied"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_machine_does_not_allow_is_one_line(
    error: Exception, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_train", fail)
    assert words in fails(capsys, "train", "--config", "custom")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--config", "custom"], "; the same command goes on from the last checkpoint"),
        (
            ["train", "--config", "custom", "--no-resume"],
            "; the same command without --no-resume goes on from the last",
        ),
        (["prepare", "a", "b"], "; the same command goes on from what it has read"),
        (["doctor"], "interrupted\n"),
        ([], "interrupted\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_goes_on_after_an_interrupt(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, f"_{argv[0]}" if argv else "_run", interrupt)
    assert cli.main(argv) == 130
    assert words in capsys.readouterr().err


def test_interrupt_is_clean(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # A suite that runs in a shell's background ignores SIGINT, and its children would inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = start(*train(folder, clips, "--train.epochs=500", "--train.save_every=1"), preexec_fn=heed)
    while not (folder / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not list(folder.glob(".*part*"))
    load_file(folder / "last.ckpt")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_what_a_training_step_frees_serves_the_next() -> None:
    # Pages that a step touches anew, from the thresholds that glibc starts with; it may raise them by itself.
    script = """
import ctypes, resource, sys, torch
from msg3d_fast import cli
for option in (-3, -1):
    ctypes.CDLL(None).mallopt(option, 128 << 10)
if sys.argv[1] == "train":
    cli.keep_freed_memory()
for step in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    saved = [torch.ones(2 << 20) for _ in range(8)]  # 8 MB each
    del saved
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        verb: int(subprocess.run([sys.executable, "-c", script, verb], capture_output=True, check=True).stdout)
        for verb in ("train", "none")
    }
    assert faults["train"] < 100
    assert faults["none"] > 10_000
