"""What may not be lost: a run killed at random moments, a disk that fills, a folder that cannot be written."""

import errno
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tiny import assert_same_run, config

from msg3d_fast import training
from msg3d_fast.checkpoint import load_file
from msg3d_fast.errors import UserError
from msg3d_fast.run_folder import RunFolder

SHORT = ("--train.save_every=1", "--train.repeat=1", "--test.num_clips=1")


@pytest.fixture(scope="module")
def straight(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    training.train(config(clips, *SHORT), folder)
    return folder


def assert_whole(folder: Path) -> None:
    """Every file that can be seen is complete."""
    for path in folder.glob("[!.]*"):
        content = path.read_bytes()
        if path.suffix == ".ckpt":
            load_file(path)
        elif path.suffix == ".png":
            assert content.endswith(b"IEND\xaeB`\x82"), path
        elif path.suffix in (".csv", ".json", ".yaml"):
            assert content.endswith(b"\n"), path


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(clips: Path, straight: Path, tmp_path: Path, kills: int) -> None:
    """Start, SIGKILL after a random time, start again: to the end, and anew until there were enough kills."""
    # Children of a server that has imported everything are there at once, and die where training is.
    context, moments = multiprocessing.get_context("forkserver"), random.Random(kills)
    context.set_forkserver_preload(["msg3d_fast.training"])
    run, done, longest = config(clips, *SHORT), 0, 2.0
    folder = tmp_path / "0"
    while done < kills:
        process = context.Process(target=training.train, args=(run, folder))
        began = time.monotonic()
        process.start()
        process.join(moments.uniform(0, longest))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            done += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        assert_whole(folder)
        if process.exitcode == 0:
            longest = max(0.2, time.monotonic() - began)
            assert_same_run(straight, folder)
            folder = tmp_path / str(done)
    training.train(run, folder)
    assert_same_run(straight, folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in straight.iterdir()}


def test_full_disk_in_training(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fsync, left = tmp_path / "run", os.fsync, [3]

    def full(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as error:
        training.train(config(clips, *SHORT), folder)
    assert "\n" not in str(error.value)
    assert_whole(folder)
    assert not list(folder.glob(".*part*"))
    monkeypatch.undo()
    before = load_file(folder / "last.ckpt")["training"]["position"]
    assert before["step"] + before["epoch"] > 0
    training.train(config(clips, *SHORT), folder)


def test_read_only_folder(tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    read, write = os.pipe()
    child = os.fork()
    if not child:  # root may write anywhere: another user tries
        try:
            os.chdir(tmp_path)  # whose parents are not for others
            if os.geteuid() == 0:
                os.setuid(65534)
            with RunFolder("sealed"):
                message = "written to"
        except UserError as error:
            message = str(error)
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    message = os.read(read, 1 << 12).decode()
    os.close(read)
    assert "cannot be written to (Permission denied); choose another with --run-dir" in message
    assert not list(sealed.iterdir())
