"""Damaged files of every format: a clip that fits together, a bad file that is named, or one line; and nothing else.

Whatever happens to one file, clips that lie in others are read as before. The marked suite takes 1,400 mutations of
each of 18 kinds of source, 25,200 in all.
"""

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import raw_files
from clip_sets import annotations, npz_arrays, small, write_pickle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_prepare_formats import index, write_table

from msg3d_fast.data import check_store, open_dataset, write_store
from msg3d_fast.data.clips import CHANNELS
from msg3d_fast.data.prepare import _open
from msg3d_fast.data.readers import Options, read_pieces
from msg3d_fast.errors import UserError

Source = tuple[Path, Options]


def raw(name: str, zipped: bool = False) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        if not zipped:
            raw_files.WRITERS[name](folder / "raw")
            return folder / "raw", Options()
        raw_files.WRITERS[name](folder / "unpacked")
        (folder / "raw").mkdir()
        raw_files.zipped(folder / "unpacked", folder / "raw/a.zip")
        return folder / "raw", Options()

    return make


def pickled(protocol: int) -> Callable[[Path], Source]:
    return lambda folder: (write_pickle(folder / "raw.pkl", annotations(2), protocol), Options())


def k400(folder: Path) -> Source:
    index(folder / "raw", pyskl=True)
    return folder / "raw/k400.pkl", Options(skeletons=folder / "raw/skeletons")


def table(folder: Path) -> Source:
    write_table(folder / "raw")
    return folder / "raw/clips.csv", Options(table=folder / "raw/table.yaml")


def arrays(folder: Path) -> Source:
    (folder / "raw").mkdir()
    x = raw_files.moving(np.random.default_rng(0), 4, 5, 17, 2)
    np.savez(folder / "raw/a.npz", x=x, y=[0, 1, 0, 1])
    raw_files.write(folder / "t.yaml", "layout: coco\narray: x\naxes: NTVC\nlabel: y\n")
    return folder / "raw", Options(table=folder / "t.yaml")


def labelled(folder: Path) -> Source:
    raw_files.openpose(folder / "unpacked")
    raw_files.write(folder / "raw/l.csv", "id,label,split\na,sit,one\ntrain/jump/b,stand,two\nval/wave/c,sit,one\n")
    return folder / "unpacked", Options(labels=folder / "raw/l.csv")


def missing(folder: Path) -> Source:
    raw_files.ntu(folder / "unpacked", frames=2)
    raw_files.write(folder / "raw/missing.txt", "a header\nS001C001P001R001A001\nS009C001P001R001A001.skeleton\n")
    return folder / "unpacked", Options(missing=folder / "raw/missing.txt")


SOURCES: dict[str, Callable[[Path], Source]] = {
    **{name: raw(name) for name in raw_files.WRITERS},
    "zip": raw("nw_ucla", zipped=True),
    "pickle 2": pickled(2),
    "pickle 5": pickled(5),
    "index": k400,
    "table": table,
    "arrays": arrays,
    "labels": labelled,
    "missing": missing,
}
CHANGES = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "repeat", "cut", "swap"]),
    st.integers(0, 1 << 30),
    st.integers(1, 40),
    st.one_of(
        st.binary(min_size=1, max_size=6),
        st.sampled_from([b"9", b"-", b"nan", b"1e999", b"\n", b" ", b"]", b"{}", b"0x"]),
    ),
)


def mutated(data: bytes, kind: str, place: int, length: int, new: bytes) -> bytes:
    place %= len(data) + 1
    end = place + length
    return {
        "replace": data[:place] + new + data[place + len(new) :],
        "insert": data[:place] + new + data[place:],
        "delete": data[:place] + data[end:],
        "repeat": data[:end] + data[place:],
        "cut": data[:place],
        "swap": data[:place] + data[end : end + length] + data[place:end] + data[end + length :],
    }[kind]


@contextlib.contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """What computes for longer hangs, however busy the machine. (An AssertionError would be taken for a bad file.)"""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def one_line(error: UserError) -> dict[str, str]:
    assert "\n" not in str(error)
    return {}


def read(source: Source) -> dict[str, str]:
    """The digest of each clip by its id; {} for an error in one line. Whatever else happens is a failure."""
    path, options = source
    try:
        with in_time(20):
            job = _open(path, "table" if options.table else None, options, [])
            batch = read_pieces(job, np.dtype("float32"), list(job.pieces))
            if batch.records:
                assert len(job.label_names(batch.records)) > 0
                for mask in job.splits(batch.records).values():
                    assert mask.shape == (len(batch.records),)
    except UserError as error:
        return one_line(error)
    rows = np.frombuffer(batch.rows, "<f4").reshape(-1, job.layout.num_joints, CHANNELS[job.channels])
    assert np.isfinite(rows).all()
    assert len(rows) == sum(record.num_person * record.total_frames for record in batch.records)
    assert all("\n" not in reason for _, reason in batch.skipped)
    return {record.name: f"{record.label} {record.digest}" for record in batch.records}


class Whole:
    """A source as it was written, and what is in each of its files."""

    def __init__(self, name: str, folder: Path) -> None:
        self.source = SOURCES[name](folder)
        place = folder / "raw" if (folder / "raw").is_dir() else folder
        self.files = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
        self.clips = read(self.source)
        assert self.clips

    def damage(self, which: int, change: tuple[str, int, int, bytes]) -> None:
        path = list(self.files)[which % len(self.files)]
        try:
            path.write_bytes(mutated(self.files[path], *change))
            found = read(self.source)
            if path.suffix in (".skeleton", ".mat") or path.name.endswith(("skeleton3D.txt", "_v01.json", "_v03.json")):
                others = {name: digest for name, digest in self.clips.items() if not path.stem.startswith(name)}
                assert others.items() <= found.items()
        finally:
            path.write_bytes(self.files[path])


BUSY = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
WHICH = st.integers(0, 1 << 16)


@pytest.fixture
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Whole:
    return Whole(request.param, tmp_path)


@pytest.mark.parametrize("whole", SOURCES, indirect=True)
@settings(max_examples=25, derandomize=True, **BUSY)
@given(which=WHICH, change=CHANGES)
def test_damaged_files(whole: Whole, which: int, change: tuple[str, int, int, bytes]) -> None:
    whole.damage(which, change)


@pytest.mark.slow
@pytest.mark.parametrize("whole", SOURCES, indirect=True)
@settings(max_examples=1400, **BUSY)
@given(which=WHICH, change=CHANGES)
def test_damaged_files_at_length(whole: Whole, which: int, change: tuple[str, int, int, bytes]) -> None:
    whole.damage(which, change)


def damaged_store(folder: Path, which: int, change: tuple[str, int, int, bytes]) -> None:
    """A store is what was written, or the file that is not is named."""
    if not (folder / "whole").exists():
        write_store(small(num_clips=4), folder / "whole")
        np.savez(folder / "ragged.npz", **npz_arrays(small(num_clips=4)))
    place = folder / "s"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "whole", place)
    path = sorted(place.iterdir())[which % len(list(place.iterdir()))]
    data = path.read_bytes()
    path.write_bytes(mutated(data, *change))
    with in_time(20):
        try:
            found = check_store(place)
        except UserError as error:
            one_line(error)
            assert path.read_bytes() != data
        else:
            assert found.fingerprint() == open_dataset(folder / "whole").fingerprint()
        ragged = (folder / "ragged.npz").read_bytes()
        (folder / "r.npz").write_bytes(mutated(ragged, *change))
        with contextlib.suppress(UserError):
            assert np.isfinite(open_dataset(folder / "r.npz").keypoint).all()


@settings(max_examples=25, derandomize=True, **BUSY)
@given(which=WHICH, change=CHANGES)
def test_damaged_stores(tmp_path: Path, which: int, change: tuple[str, int, int, bytes]) -> None:
    damaged_store(tmp_path, which, change)


@pytest.mark.slow
@settings(max_examples=1400, **BUSY)
@given(which=WHICH, change=CHANGES)
def test_damaged_stores_at_length(tmp_path: Path, which: int, change: tuple[str, int, int, bytes]) -> None:
    damaged_store(tmp_path, which, change)
