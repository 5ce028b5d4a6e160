"""The memory-mapped store: a folder of plain `.npy` files that opens at once, whatever its size.

    meta.json                                   skeleton, names, counts, sha256 of every other file
    keypoint.npy (sum of M*T, V, C)             float16 or float32, memory-mapped when opened
    num_person.npy total_frames.npy label.npy frame_dir.npy splits.npy (S, N) [img_shape.npy]

It is written to a folder beside its place and renamed when it is whole, so a store is there completely or not at all.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import get_layout
from .clips import ClipSet

FORMAT, VERSION = "msg3d_fast store", 1
DTYPES = ("float16", "float32")
_FIELDS = ("layout", "label_names", "splits", "channels", "missing", "fingerprint", "sha256")

Progress = Callable[[int, int], None]  # rows done, rows in all


def check_dtype(dtype: str) -> np.dtype:
    """The dtype, if a store can have it."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r} for a store; expected {' or '.join(DTYPES)}")
    return np.dtype(dtype)


def write_store(
    clips: ClipSet, directory: str | Path, dtype: str = "float16", *, progress: Progress | None = None
) -> Path:
    """Write clips as a store; nothing is left behind if that fails.

    Args:
        clips: what to write.
        directory: where; must not exist.
        dtype: "float16" or "float32" of the keypoints.
        progress: called with the rows written so far and the rows in all.

    Returns:
        the directory.

    Raises:
        UserError: the place is taken, values that do not fit the dtype, a disk that is full or cannot be written.
    """
    place, stored = Path(directory), check_dtype(dtype)
    if place.exists():
        raise UserError(f"{place}: exists already; choose another place or remove it first")
    partial = place.with_name(f"{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        _write_files(clips, partial, stored, progress)
        partial.rename(place)
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error.strerror or error}; nothing was left there") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _write_files(clips: ClipSet, folder: Path, dtype: np.dtype, progress: Progress | None) -> None:
    arrays: dict[str, np.ndarray] = {
        "num_person": clips.num_person,
        "total_frames": clips.total_frames,
        "label": clips.label,
        "frame_dir": clips.frame_dir,
        "splits": np.array([clips.splits[name] for name in clips.splits], bool).reshape(-1, len(clips)),
    }
    if clips.img_shape is not None:
        arrays["img_shape"] = np.asarray(clips.img_shape, np.int64)
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)
            _flush(file)
    _write_keypoint(clips, folder / "keypoint.npy", dtype, progress)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "layout": clips.layout.to_hparam(),
        "label_names": list(clips.label_names),
        "splits": list(clips.splits),
        "channels": clips.channels,
        "missing": clips.missing,
        "fingerprint": clips.fingerprint(dtype),
        "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    with (folder / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)
        _flush(file)


def _write_keypoint(clips: ClipSet, path: Path, dtype: np.dtype, progress: Progress | None) -> None:
    rows = int(clips.num_rows.sum())
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (rows, *clips.keypoint.shape[1:]),
    }
    done, limit = 0, np.finfo(dtype).max
    # Written, not mapped: a full disk is then an error, where a mapped page would kill the process.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for run in clips.row_runs():
            part = np.asarray(clips.keypoint[run])
            if part.size and not (largest := np.abs(part).max()) <= limit:
                raise UserError(f"{clips.name}: coordinates up to {largest:.3g} do not fit {dtype}; use dtype float32")
            file.write(part.astype(dtype, copy=False).tobytes())
            done += len(part)
            if progress:
                progress(done, rows)
        _flush(file)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def open_store(directory: str | Path) -> ClipSet:
    """Open a store; keypoints stay on disk until they are used.

    Raises:
        UserError: not a store, of a newer version, or with a file that is missing or cut off.
    """
    place = Path(directory)
    meta = _meta(place)
    try:
        return _clip_set(place, meta)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        raise UserError(f"{place}: meta.json does not fit the arrays beside it; prepare the store again") from None


def _clip_set(place: Path, meta: dict[str, Any]) -> ClipSet:
    def load(name: str, mapped: bool = False) -> np.ndarray:
        try:
            return np.load(place / f"{name}.npy", mmap_mode="r" if mapped else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{place}: {name}.npy is missing, cut off or damaged ({reason:.80}); prepare it again"
            ) from None

    masks = load("splits")
    return ClipSet(
        keypoint=load("keypoint", mapped=True),
        num_person=load("num_person"),
        total_frames=load("total_frames"),
        label=load("label"),
        frame_dir=load("frame_dir"),
        label_names=tuple(meta["label_names"]),
        layout=get_layout(meta["layout"]),
        splits=dict(zip(meta["splits"], masks, strict=False)),
        channels=meta["channels"],
        img_shape=load("img_shape") if "img_shape.npy" in meta["sha256"] else None,
        missing=meta["missing"],
        name=str(place),
    )


def _meta(place: Path) -> dict[str, Any]:
    try:
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{place}: not a store: meta.json: {reason}; make one with prepare") from None
    except ValueError:
        raise UserError(f"{place}: meta.json is damaged; prepare the store again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{place}: meta.json does not describe a store of clips; make one with prepare")
    if meta.get("version") != VERSION:
        raise UserError(f"{place}: store version {meta.get('version')}, this program reads {VERSION}; update it")
    if absent := [name for name in _FIELDS if name not in meta]:
        raise UserError(f"{place}: meta.json lacks {', '.join(absent)}; prepare the store again")
    return meta


def check_store(directory: str | Path) -> ClipSet:
    """Open a store and read every byte of it against its checksums.

    Raises:
        UserError: a file that is missing or differs from what was written.
    """
    place = Path(directory)
    clips = open_store(place)
    for name, expected in _meta(place)["sha256"].items():
        if (found := _sha256(place / name)) != expected:
            raise UserError(
                f"{place}: {name} has sha256 {found[:12]}, expected {expected[:12]}; prepare the store again"
            )
    return clips
