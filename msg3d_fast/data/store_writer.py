"""Writing a store clip by clip, with a journal from which a killed run goes on.

A store grows in the folder PLACE.partial: keypoints are appended to keypoint.npy, and once they are on the disk a line
in journal.jsonl says which clips they belong to. Whatever lies beyond the last line is cut off when work goes on. At
the end the small arrays are written and the folder gets its name, so that a store is there completely or not at all.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .clips import ClipSet, label_array, pose_digest
from .store import FORMAT, SKIPPED, VERSION, Progress, check_dtype, file_digest, meta_checksum

JOURNAL = "journal.jsonl"
_SYNC_SECONDS = 2.0  # a killed run loses at most about that much work


@dataclass(frozen=True)
class Record:
    """What the journal says of one clip: `digest` is the hex of its pose's sha256."""

    name: str
    label: int | list[int] | str
    num_person: int
    total_frames: int
    digest: str
    img_shape: list[int] | None = None
    split: str | None = None


@dataclass
class Batch:
    """The next clips of a store: their records, and their rows one after another in the store's float type."""

    records: list[Record] = field(default_factory=list)
    rows: bytes = b""
    skipped: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    missing: int = 0


class StoreWriter:
    """Appends batches to a store that is not there yet. A context: what was appended outlives an error.

    Args:
        place: folder of the store; must not exist.
        dtype: float type of the keypoints.
        shape: (V, C).
        job: stands for the source and every option; a half-written store of another job is begun again.
        keep: leave what was written for the next call, if this one fails; else remove it.

    Raises:
        UserError: the place is taken or cannot be written, or another process is writing it.
    """

    def __init__(self, place: Path, dtype: np.dtype, shape: tuple[int, int], job: str, *, keep: bool = True) -> None:
        self.place, self.partial = place, place.with_name(f"{place.name}.partial")
        self.dtype, self.shape, self.job, self._keep = dtype.newbyteorder("<"), shape, job, keep
        self.batches = 0
        self.records: list[Record] = []
        self.skipped: list[tuple[str, str]] = []
        self.missing = self.rows = 0
        self._pending: list[str] = []
        self._synced = time.monotonic()
        self._journal: BinaryIO | None = None
        self._keypoint: BinaryIO | None = None
        if place.exists():
            raise UserError(f"{place}: exists already; choose another place or remove it first")

    def __enter__(self) -> "StoreWriter":
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._journal = (self.partial / JOURNAL).open("a+b")
            self._lock()
            self._resume()
        except OSError as error:
            self._leave(failed=True)
            raise self._failed(error) from None
        except BaseException:
            self._leave(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(failed=kind is not None)
        if isinstance(value, OSError):
            raise self._failed(value) from None

    def _leave(self, failed: bool) -> None:
        if self._journal is None:  # another process has it, or the folder could not be made
            return
        kept = self._keep and self.batches > 0
        with contextlib.suppress(OSError):  # the journal vouches for what came before
            if failed and kept:
                self._sync()
        for file in (self._keypoint, self._journal):
            with contextlib.suppress(OSError):  # what a full disk does not take any more
                if file is not None:
                    file.close()
        if failed and not kept:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _failed(self, error: OSError) -> UserError:
        kept = "nothing was left there"
        if self._keep and self.batches:
            kept = f"what was read is kept in {self.partial}: free space and call again, or remove it"
        return UserError(f"{self.place}: cannot be written: {error.strerror or error}; {kept}")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._journal.close()
            self._journal = None
            raise UserError(f"{self.place}: another process is preparing it; wait for it, or choose another") from None

    def _resume(self) -> None:
        """Take over what the journal vouches for, or begin."""
        lines, whole = _journal_lines(self.partial / JOURNAL)
        path = self.partial / "keypoint.npy"
        head = {"job": self.job, "dtype": self.dtype.str, "shape": list(self.shape)}
        if not lines or lines[0] != head or not path.exists():
            for other in self.partial.iterdir():
                if other.name != JOURNAL:
                    other.unlink()
            self._journal.truncate(0)
            self._journal.write(json.dumps(head).encode() + b"\n")
            self._keypoint = path.open("w+b")
            self._write_header(0)
            self._data = self._keypoint.tell()
            self._sync()
            return
        self._keypoint = path.open("r+b")
        self._keypoint.seek(0, os.SEEK_END)
        size = self._keypoint.tell()
        self._write_header(0)
        self._data = self._keypoint.tell()
        for line in lines[1:]:
            if self._data + line["rows"] * self.row_size > size:
                break
            whole = line["end"]
            self._take(Batch([Record(*one) for one in line["clips"]], b"", line["skipped"], line["missing"]))
            self.rows = line["rows"]
        self._journal.truncate(whole)
        self._keypoint.truncate(self._data + self.rows * self.row_size)
        self._keypoint.seek(0, os.SEEK_END)

    @property
    def row_size(self) -> int:
        """Bytes of one skeleton."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def _write_header(self, rows: int) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        self._keypoint.seek(0)
        # NumPy leaves room for the number of rows to grow, so that the header keeps its length.
        np.lib.format.write_array_header_1_0(
            self._keypoint, {"descr": descr, "fortran_order": False, "shape": (rows, *self.shape)}
        )

    def _take(self, batch: Batch) -> None:
        self.batches += 1
        self.records += batch.records
        self.skipped += [(name, reason) for name, reason in batch.skipped]
        self.missing += batch.missing

    def append(self, batch: Batch) -> None:
        """Add clips; they are on the disk when a later batch or the end says so."""
        # Written, not mapped: a full disk is then an error, where a mapped page would kill the process.
        self._keypoint.write(batch.rows)
        self._take(batch)
        self.rows += len(batch.rows) // self.row_size
        clips = [list(vars(record).values()) for record in batch.records]
        line = {"rows": self.rows, "clips": clips, "skipped": batch.skipped, "missing": batch.missing}
        self._pending.append(json.dumps(line))
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def discard(self) -> None:
        """Leave nothing behind, whatever happens."""
        self._keep = False

    def _sync(self) -> None:
        flush(self._keypoint)
        self._journal.write("".join(f"{line}\n" for line in self._pending).encode())
        flush(self._journal)
        self._pending.clear()
        self._synced = time.monotonic()

    def finish(
        self,
        layout: Layout,
        channels: str,
        label_names: Sequence[str],
        splits: Mapping[str, np.ndarray],
        notes: Sequence[str] = (),
    ) -> Path:
        """Complete the store and give it its name.

        Args:
            splits: bool (N,) masks over the clips in the order in which they were appended.
            notes: what whoever opens it is told.
        """
        self._sync()
        self._write_header(self.rows)
        flush(self._keypoint)
        mapped = np.memmap(self.partial / "keypoint.npy", self.dtype, "r", self._data, (self.rows, *self.shape))
        images = [record.img_shape for record in self.records]
        clips = ClipSet(
            keypoint=mapped,
            num_person=np.array([record.num_person for record in self.records], np.int64),
            total_frames=np.array([record.total_frames for record in self.records], np.int64),
            label=label_array([_number(record.label, label_names) for record in self.records], len(label_names)),
            frame_dir=np.array([record.name for record in self.records], str),
            label_names=tuple(label_names),
            layout=layout,
            splits=splits,
            channels=channels,
            img_shape=np.array(images, np.int64) if images and None not in images else None,
            digest=np.array([list(bytes.fromhex(record.digest)) for record in self.records], np.uint8).reshape(-1, 32),
            missing=self.missing,
            name=str(self.place),
        )
        fingerprint = clips.fingerprint()  # from the disk: it must be what was meant to be written
        arrays = {name: getattr(clips, name) for name in ("num_person", "total_frames", "label", "frame_dir", "digest")}
        arrays["splits"] = np.array([splits[name] for name in splits], bool).reshape(-1, len(clips))
        if clips.img_shape is not None:
            arrays["img_shape"] = clips.img_shape
        for name, array in arrays.items():
            with (self.partial / f"{name}.npy").open("wb") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
                flush(file)
        with (self.partial / SKIPPED).open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{name}\t{reason}\n" for name, reason in self.skipped)
            flush(file)
        names = [*(f"{name}.npy" for name in arrays), "keypoint.npy", SKIPPED]
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "layout": layout.to_hparam(),
            "label_names": list(label_names),
            "splits": list(splits),
            "channels": channels,
            "missing": self.missing,
            "fingerprint": fingerprint,
            "notes": list(notes),
            "job": self.job,
            "sha256": {name: file_digest(self.partial / name) for name in sorted(names)},
        }
        with (self.partial / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta | {"checksum": meta_checksum(json.loads(json.dumps(meta)))}, file, indent=1)
            flush(file)
        self.partial.rename(self.place)
        (self.place / JOURNAL).unlink()
        self._keep = False
        return self.place


def _number(label: int | list[int] | str, names: Sequence[str]) -> int | list[int]:
    return (
        names.index(label)
        if isinstance(label, str) and label in names
        else int(label)
        if isinstance(label, str)
        else label
    )


def _journal_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a journal, each with the place where it ends, and where the first of them ends."""
    lines: list[dict[str, Any]] = []
    first = place = 0
    with path.open("rb") as file:
        for line in file:
            place += len(line)
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                break
            if not lines:
                first = place
            else:
                entry["end"] = place
            lines.append(entry)
    return lines, first


def flush(file: Any) -> None:
    """Have the disk hold what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def stored_rows(pose: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A pose in the float type of a store.

    Raises:
        OverflowError: its coordinates do not fit.
    """
    largest = float(np.abs(pose).max(initial=0))
    if not largest <= float(np.finfo(dtype).max):
        use = "use dtype float32" if dtype == np.float16 else "divide them by a thousand"
        raise OverflowError(f"coordinates up to {largest:.3g} do not fit {dtype.name}; {use}")
    return np.ascontiguousarray(pose, dtype.newbyteorder("<"))


def write_store(
    clips: ClipSet, directory: str | Path, dtype: str = "float16", *, progress: Progress | None = None
) -> Path:
    """Write clips as a store; nothing is left behind if that fails.

    Args:
        clips: what to write.
        directory: where; must not exist.
        dtype: "float16" or "float32" of the keypoints.
        progress: called with the clips written so far and the clips in all.

    Returns:
        the directory.

    Raises:
        UserError: the place is taken, values that do not fit the dtype, a disk that is full or cannot be written.
    """
    stored = check_dtype(dtype)
    with StoreWriter(Path(directory), stored, clips.keypoint.shape[1:], "clips", keep=False) as writer:
        for batch in _batches(clips, stored):
            writer.append(batch)
            if progress:
                progress(len(writer.records), len(clips))
        writer.missing = clips.missing
        return writer.finish(clips.layout, clips.channels, clips.label_names, clips.splits, clips.notes)


def _batches(clips: ClipSet, dtype: np.dtype) -> Iterator[Batch]:
    for part in clips.chunks():
        batch, rows = Batch(), []
        for i in part.tolist():
            label = np.flatnonzero(clips.label[i]).tolist() if clips.multi_label else int(clips.label[i])
            image = None if clips.img_shape is None else [int(size) for size in clips.img_shape[i]]
            try:
                pose = stored_rows(clips.clip(i), dtype)
            except OverflowError as error:
                raise UserError(f"{clips.name}: {error}") from None
            num_person, total_frames = pose.shape[:2]
            digest = pose_digest(pose.reshape(-1, *pose.shape[2:]), total_frames, dtype).hex()
            batch.records.append(Record(str(clips.frame_dir[i]), label, num_person, total_frames, digest, image))
            rows.append(pose.tobytes())
        batch.rows = b"".join(rows)
        yield batch
