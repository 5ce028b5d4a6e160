"""From the files that one has to the store that training reads: parallel, resumable, checked, every bad file named."""

import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout, get_layout
from .clips import CHANNELS, ClipSet
from .formats import is_clip_set, open_dataset
from .readers import Job, Options, choose_format, read_pieces
from .readers.clip_set import open_clips
from .store import SKIPPED, Progress, check_dtype, check_store, read_meta
from .store_writer import Batch, StoreWriter
from .tree import Tree

_READERS_VERSION = 1  # a store half written by other readers is begun again
_PIECES = 32  # that a worker reads at a time
_SHOWN = 10  # skipped files that notes name
_WORTH_WORKERS = 8 * _PIECES  # fewer pieces are read before workers have started


def prepare(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str = "float16",
    format: str | None = None,
    layout: str | Layout | Mapping[str, Any] | None = None,
    channels: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> ClipSet:
    """Convert a data set to a store and check what was written.

    Clips that cannot be used are left out and named in the store's skipped.txt. A call that was interrupted goes on
    where it was; a store of the same source and options that is already there is checked and kept; any other is never
    overwritten.

    Args:
        source: files of a known format, or "embedded" or "synthetic".
        destination: folder of the store.
        dtype: "float16" or "float32" of the keypoints.
        format: a name of `readers.FORMATS`; by default told from the files.
        layout: the skeleton, where the files do not tell it.
        channels: "xy", "xys" or "xyz", where the files do not tell.
        workers: processes that read; with more than one, the calling script needs its `if __name__ == "__main__"`.
        progress: called with the files read so far and the files in all.
        options: further fields of `readers.Options`, such as semantics="pyskl" or missing=FILE.

    Returns:
        the opened store; its `notes` name what was skipped, cleaned or absent.

    Raises:
        UserError: nothing that can be read, options that do not fit, a place that holds something else or cannot be
            written.
    """
    place, stored = Path(destination), check_dtype(dtype)
    if channels is not None and channels not in CHANNELS:
        raise UserError(f"channels are {channels!r}, expected one of {', '.join(CHANNELS)}")
    if workers < 1:
        raise UserError(f"workers is {workers}, expected 1 or more")
    if place.exists() and not (place / "meta.json").exists():
        raise UserError(f"{place}: exists and is no store; choose another destination, the folder of a new store")
    given = Options(layout=None if layout is None else get_layout(layout), channels=channels, **options)
    skipped: list[str] = []
    job = _open(source, format, given, skipped)
    identity = _identity(source, job, given, stored)
    if not place.exists():
        _write(source, place, job, identity, stored, workers, progress, skipped)
    elif read_meta(place)["job"] != identity:
        raise UserError(
            f"{place}: holds other clips than {source} with these options; choose another destination, or "
            "remove it first"
        )
    clips = check_store(place)
    return replace(clips, notes=tuple(read_meta(place)["notes"]))


def _open(source: str | Path, format: str | None, options: Options, skipped: list[str]) -> Job:
    if format is None and is_clip_set(source):
        named = source in ("embedded", "synthetic")
        stamp = [str(source)] if named else [(one.name, one.size, one.stamp) for one in Tree(source).entries]
        return open_clips(open_dataset(source, layout=options.layout, channels=options.channels), stamp)
    tree = Tree(source)
    return choose_format(tree, format, options).open(tree, options)


def _identity(source: str | Path, job: Job, options: Options, dtype: np.dtype) -> str:
    """Stands for the source and everything that decides what becomes of it; the place of the source does not."""
    about = {key: str(value) for key, value in asdict(options).items() if key != "layout"}
    about |= {
        "layout": job.layout.to_hparam(),
        "channels": job.channels,
        "dtype": dtype.name,
        "kind": type(job).__name__,
    }
    for key in ("missing", "labels", "table"):  # by their content
        if (path := getattr(options, key)) is not None:
            about[key] = hashlib.sha256(_content(path)).hexdigest()
    whole = json.dumps([_READERS_VERSION, about, job.identity()], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _write(
    source: str | Path,
    place: Path,
    job: Job,
    identity: str,
    dtype: np.dtype,
    workers: int,
    progress: Progress | None,
    notes: list[str],
) -> None:
    with StoreWriter(place, dtype, (job.layout.num_joints, CHANNELS[job.channels]), identity) as writer:
        total = len(job.pieces)
        known = {record.name for record in writer.records}
        if progress:
            progress(min(writer.batches * _PIECES, total), total)
        starts = range(writer.batches * _PIECES, total, _PIECES)
        for batch in _batches(job, dtype, [job.pieces[i : i + _PIECES] for i in starts], workers):
            writer.append(_without_twins(batch, known, writer.row_size))
            if progress:
                progress(min(writer.batches * _PIECES, total), total)
        if not writer.records:
            writer.discard()
            reason = "; ".join(f"{name}: {reason}" for name, reason in writer.skipped[:1])
            raise UserError(f"{source}: none of its {total} files can be used: {reason or 'there are none'}")
        splits = job.splits(writer.records)
        found = [*job.notes, *job.remarks(splits, writer.records)]
        if writer.missing:
            found.insert(0, f"{writer.missing} joints held NaN or infinity and count as missing")
        shown = [f"skipped {name}: {reason}" for name, reason in writer.skipped[:_SHOWN]]
        if len(writer.skipped) > _SHOWN:
            shown.append(f"skipped {len(writer.skipped)} in all, named in {place / SKIPPED}")
        writer.finish(job.layout, job.channels, job.label_names(writer.records), splits, [*shown, *found])


def _without_twins(batch: Batch, known: set[str], row_size: int) -> Batch:
    """The batch without clips whose id there was before: scores are joined by id."""
    if len({record.name for record in batch.records} - known) == len(batch.records):
        known.update(record.name for record in batch.records)
        return batch
    kept, rows, place = [], [], 0
    for record in batch.records:
        size = record.num_person * record.total_frames * row_size
        if record.name in known:
            batch.skipped.append((record.name, "there was a clip of this name before"))
        else:
            kept.append(record)
            rows.append(batch.rows[place : place + size])
            known.add(record.name)
        place += size
    return Batch(kept, b"".join(rows), batch.skipped, batch.missing)


def _batches(job: Job, dtype: np.dtype, parts: Sequence[Sequence[Any]], workers: int) -> Iterator[Batch]:
    """The parts read, in order."""
    if workers < 2 or not job.parallel or sum(map(len, parts)) < _WORTH_WORKERS:
        for pieces in parts:
            yield read_pieces(job, dtype, pieces)
        return
    # A server that forks has no threads which a fork would leave half dead, and imports NumPy and torch once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with _interrupts_wait():
        resource_tracker.ensure_running()  # which unblocks SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for the server and the workers, too
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    pool = ProcessPoolExecutor(min(workers, len(parts)), context, initializer=_start, initargs=(job.without(), dtype))
    try:
        waiting: deque[Any] = deque()
        for pieces in parts:
            with _interrupts_wait():
                waiting.append(pool.submit(_work, pieces))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a process that reads files ended of itself or was killed, perhaps for want of memory; the same command "
            "goes on, with fewer --workers if need be"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hears of Ctrl-C at the end only: processes that are half started then would say so at length."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of it
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard and callable(before):
        before(signal.SIGINT, None)


_JOB: tuple[Job, np.dtype] | None = None  # of a worker process


def _start(job: Job, dtype: np.dtype) -> None:
    global _JOB
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _JOB = job, dtype


def _end_with_parent() -> None:
    """A worker whose main process was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _work(pieces: Sequence[Any]) -> Batch:
    return read_pieces(*_JOB, pieces)


def default_workers() -> int:
    """As many processes as there are processors for this one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
