"""The run of `prepare`: killed and gone on with, in several processes, refused, and its command line."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import raw_files
from tiny import fails, start

from msg3d_fast.cli import main
from msg3d_fast.data import check_store, open_dataset, prepare, store_writer
from msg3d_fast.data import prepare as prepare_function
from msg3d_fast.data.readers import msr_action3d
from msg3d_fast.errors import UserError


def many(folder: Path, count: int = 400) -> Path:
    """Small MSR-Action3D clips, two of them damaged."""
    rng = np.random.default_rng(0)
    for i in range(count):
        x = raw_files.moving(rng, 2, 20, 3)
        lines = "\n".join(f"{a} {b} {c} 1" for a, b, c in x.reshape(-1, 3))
        name = f"a{i % 20 + 1:02d}_s{i // 20 % 10 + 1:02d}_e{i // 200 + 1:02d}_skeleton3D.txt"
        raw_files.write(folder / name, "damaged" if i in (7, 150) else lines)
    return folder


def test_processes_read_the_same(tmp_path: Path) -> None:
    source = many(tmp_path / "raw")
    alone = prepare(source, tmp_path / "alone")
    several = prepare(source, tmp_path / "several", workers=2)
    assert len(alone) == 398
    assert several.frame_dir.tolist() == alone.frame_dir.tolist()
    for name in ("keypoint.npy", "digest.npy", "skipped.txt"):
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert (tmp_path / "alone/skipped.txt").read_text().splitlines() == [
        "a08_s01_e01_skeleton3D.txt\tits first line has 1 numbers, expected x y z and perhaps a confidence",
        "a11_s08_e01_skeleton3D.txt\tits first line has 1 numbers, expected x y z and perhaps a confidence",
    ]


def test_a_run_stopped_anywhere_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every batch, and with whatever a killed process leaves behind the last whole line of the journal."""
    source = many(tmp_path / "raw", 200)
    whole = prepare(source, tmp_path / "whole")
    monkeypatch.setattr(store_writer, "_SYNC_SECONDS", -1.0)
    read = []
    honest = msr_action3d.MSRAction3D.pose
    monkeypatch.setattr(msr_action3d.MSRAction3D, "pose", lambda self, data: read.append(1) or honest(self, data))

    for batches in range(1, 8):
        place, partial = tmp_path / f"s{batches}", tmp_path / f"s{batches}.partial"

        def stop(done: int, total: int, last: int = 32 * batches) -> None:
            if done >= min(last, 200):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(source, place, progress=stop)
        assert not place.exists()
        if batches % 2:
            with (partial / "keypoint.npy").open("ab") as file:
                file.write(b"half a pose")
            with (partial / "journal.jsonl").open("ab") as file:
                file.write(b'{"rows": 9999, "cli')
        elif batches == 2:
            os.truncate(partial / "keypoint.npy", (partial / "keypoint.npy").stat().st_size - 1)
        read.clear()
        again = prepare(source, place)
        again_read = 200 - 32 * (batches - (batches == 2)) if batches < 7 else 0
        assert len(read) == again_read
        assert again.fingerprint() == whole.fingerprint()
        assert (place / "keypoint.npy").read_bytes() == (tmp_path / "whole/keypoint.npy").read_bytes()
        assert sorted(p.name for p in place.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())
        assert not partial.exists()


def test_another_job_does_not_go_on(tmp_path: Path) -> None:
    source = many(tmp_path / "raw", 100)

    def stop(done: int, total: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "s", progress=stop)
    raw_files.write(source / "a01_s01_e03_skeleton3D.txt", "1 2 3 1\n" * 40)
    assert len(prepare(source, tmp_path / "s", dtype="float32")) == 100
    with pytest.raises(UserError, match="holds other clips than"):
        prepare(source, tmp_path / "s")
    raw_files.write(source / "a01_s01_e03_skeleton3D.txt", "1 2 4 1\n" * 40)
    with pytest.raises(UserError, match="holds other clips than"):
        prepare(source, tmp_path / "s", dtype="float32")


def test_killed_at_random(tmp_path: Path) -> None:
    """kill -9 of the main process while two others read: no store is there before it is whole, and no process stays."""
    source = many(tmp_path / "raw", 1200)
    expected = prepare(source, tmp_path / "whole")
    rng = np.random.default_rng(0)
    place = tmp_path / "s"
    for _ in range(3):
        with start("prepare", str(source), str(place), "--workers", "2", start_new_session=True) as process:
            deadline = time.monotonic() + 60
            while not (tmp_path / "s.partial/journal.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(float(rng.uniform(0, 1.5)))
            process.send_signal(signal.SIGKILL)
            process.wait()
            for pipe in (process.stdout, process.stderr):
                pipe.read()  # ends when the last worker has ended
        assert not place.exists() or check_store(place).fingerprint() == expected.fingerprint()
    assert main(["prepare", str(source), str(place), "--workers", "1"]) == 0
    assert check_store(place).fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("moment", [0.3, 3.0])  # while the server of the workers imports torch, and while they read
def test_an_interrupt_is_one_line(tmp_path: Path, moment: float) -> None:
    """Of the whole group, as a terminal sends it."""
    source, place = many(tmp_path / "raw", 6000), tmp_path / "s"
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = ("prepare", str(source), str(place), "--workers", "2")
    with start(*command, start_new_session=True, preexec_fn=heed) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "s.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 or place.exists()  # it was quicker
    assert place.exists() or errors == "\nmsg3d-fast: interrupted; the same command goes on from what it has read\n"


def test_two_at_once_and_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, place = many(tmp_path / "raw", 60), tmp_path / "s"
    with store_writer.StoreWriter(place, np.dtype("float16"), (20, 3), "other"):
        line = fails(capsys, "prepare", str(source), str(place))
    assert "another process is preparing it" in line
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(capsys, "prepare", str(source), str(tmp_path / "file/s"))
    for taken in ("file", "raw"):
        assert f"{taken}: exists and is no store" in fails(capsys, "prepare", str(source), str(tmp_path / taken))
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "cannot be written: Permission denied" in fails(
            capsys, "prepare", str(source), str(tmp_path / "locked/s")
        )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--workers", "-1"], "workers is -1, expected 1 or more"),
        (["--max-person", "0"], "max_person is 0, expected 1 or more"),
        (["--valid-ratio", "nan"], "valid_ratio is nan, expected 0 to 1"),
        (["--box-thr", "7"], "box_thr is 7.0, expected 0 to 1"),
        (["--img-shape", "0", "5"], "img_shape is (0, 5), expected height and width"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_numbers_that_make_no_sense(
    option: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(capsys, "prepare", "synthetic", str(tmp_path / "s"), *option)


def test_a_full_disk_keeps_what_was_read(tmp_path: Path) -> None:
    """The file may grow to a limit, so that the operating system refuses a write as a full disk does."""
    source = many(tmp_path / "raw", 200)
    code = (
        "import resource, sys; from msg3d_fast.cli import main; from msg3d_fast.data import store_writer as s\n"
        "s._SYNC_SECONDS = -1.0; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "prepare", str(source), str(tmp_path / "s"), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(
        r"s: cannot be written: File too large; what was read is kept in .*s\.partial: free space", done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "s").exists()
    assert len(prepare(source, tmp_path / "s")) == 198


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, place = many(tmp_path / "raw", 60), tmp_path / "s"
    assert main(["prepare", str(source), str(place), "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert "skipped a08_s01_e01_skeleton3D.txt: its first line has 1 numbers" in out
    assert "MSR-Action3D: counts differ from the published ones: clips 59 (published 557)" in out
    assert (
        f"wrote {place}: 59 clips, 20 classes, layout kinect20, channels xyz, splits xsub_train 39, xsub_test 20" in out
    )
    assert main(["prepare", "--check", str(place)]) == 0
    assert f"checked {place}: 59 clips" in capsys.readouterr().out
    data = bytearray((place / "keypoint.npy").read_bytes())
    data[-1] ^= 4
    (place / "keypoint.npy").write_bytes(data)
    assert f"the pose of clip {open_dataset(place).frame_dir[-1]} is not what was" in fails(
        capsys, "prepare", "--check", str(place)
    )
    assert "--check" in fails(capsys, "prepare", str(source))
    assert "takes no source" in fails(capsys, "prepare", str(source), "--check", str(place))
    assert "No such file" in fails(capsys, "prepare", str(tmp_path / "none"), str(tmp_path / "t"))
    shutil.rmtree(source)
    raw_files.write(source / "a01_s01_e01_skeleton3D.txt", "x")
    assert "none of its 1 files can be used: a01_s01_e01_skeleton3D.txt" in fails(
        capsys, "prepare", str(source), str(tmp_path / "u")
    )
    assert not list(tmp_path.glob("u*"))
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = capsys.readouterr().out
    assert "raw NTU RGB+D: .skeleton files in folders or zips" in text
    assert prepare_function is prepare


def test_a_folder_may_move(tmp_path: Path) -> None:
    """What stands for a source are its files, not the place where they lie; zips count by their content."""
    many(tmp_path / "raw", 40)
    raw_files.zipped(tmp_path / "raw", tmp_path / "a.zip")
    prepare(tmp_path / "raw", tmp_path / "s")
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    before = (tmp_path / "s/keypoint.npy").stat().st_mtime_ns
    prepare(tmp_path / "elsewhere", tmp_path / "s")
    assert (tmp_path / "s/keypoint.npy").stat().st_mtime_ns == before
    prepare(tmp_path / "a.zip", tmp_path / "z")
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes())
    prepare(tmp_path / "b.zip", tmp_path / "z")
    meta = json.loads((tmp_path / "z/meta.json").read_text())
    assert meta["fingerprint"] == open_dataset(tmp_path / "s").fingerprint()
