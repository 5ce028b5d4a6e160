"""The memory-mapped store: a folder of plain `.npy` files that opens at once, whatever its size.

    meta.json                                   skeleton, names, counts, fingerprint, sha256 of every file and its own
    keypoint.npy (sum of M*T, V, C)             float16 or float32, memory-mapped when opened
    num_person.npy total_frames.npy label.npy frame_dir.npy splits.npy (S, N) [img_shape.npy]
    digest.npy (N, 32)                          sha256 of the pose of each clip, so that a changed byte names its clip
    skipped.txt                                 what could not be used, one line each: name, reason

`store_writer` writes it. Whatever is small is held against its checksum whenever a store is opened.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import get_layout
from .clips import ClipSet

FORMAT, VERSION = "msg3d_fast store", 2
DTYPES = ("float16", "float32")
SKIPPED = "skipped.txt"
_FIELDS = (
    "layout",
    "label_names",
    "splits",
    "channels",
    "missing",
    "fingerprint",
    "notes",
    "job",
    "sha256",
    "checksum",
)
_MAPPED = "keypoint.npy"

Progress = Callable[[int, int], None]  # files or rows done, and in all


def check_dtype(dtype: str) -> np.dtype:
    """The dtype, if a store can have it."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r} for a store; expected {' or '.join(DTYPES)}")
    return np.dtype(dtype)


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def meta_checksum(meta: dict[str, Any]) -> str:
    """sha256 (hex) of what meta.json says, apart from this checksum."""
    rest = {key: value for key, value in meta.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def open_store(directory: str | Path) -> ClipSet:
    """Open a store; keypoints stay on disk until they are used, everything else is held against its checksum.

    Raises:
        UserError: not a store, of another version, or with a file that is missing, cut off or damaged.
    """
    place = Path(directory)
    meta = read_meta(place)
    try:
        return _clip_set(place, meta)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        raise UserError(f"{place}: meta.json does not fit the arrays beside it; prepare the store again") from None


def _clip_set(place: Path, meta: dict[str, Any]) -> ClipSet:
    for name in meta["sha256"]:
        if name != _MAPPED:
            _check_file(place, name, meta)

    def load(name: str, mapped: bool = False) -> np.ndarray:
        try:
            return np.load(place / f"{name}.npy", mmap_mode="r" if mapped else None, allow_pickle=False)
        except Exception as error:  # whatever a damaged header leads to
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
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
        digest=load("digest"),
        missing=meta["missing"],
        name=str(place),
    )


def read_meta(place: Path) -> dict[str, Any]:
    """What meta.json of a store says.

    Raises:
        UserError: there is no such file, it is damaged, or of another version.
    """
    try:
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{place}: not a store: meta.json: {reason}; make one with prepare") from None
    except (ValueError, RecursionError):
        raise UserError(f"{place}: meta.json is damaged; prepare the store again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{place}: meta.json does not describe a store of clips; make one with prepare")
    version = meta.get("version")
    if not isinstance(version, int):
        raise UserError(f"{place}: meta.json is damaged; prepare the store again")
    if version != VERSION:
        what = "prepare the store again" if version < VERSION else "update the program"
        raise UserError(f"{place}: store version {version}, this program reads {VERSION}; {what}")
    if absent := [name for name in _FIELDS if name not in meta]:
        raise UserError(f"{place}: meta.json lacks {', '.join(absent)}; prepare the store again")
    if meta["checksum"] != meta_checksum(meta):
        raise UserError(f"{place}: meta.json is not what was written; prepare the store again")
    return meta


def _check_file(place: Path, name: str, meta: dict[str, Any]) -> None:
    try:
        found = file_digest(place / name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{place}: {name} is missing or cannot be read ({reason}); prepare the store again") from None
    if found != (expected := str(meta["sha256"][name])):
        raise UserError(
            f"{place}: {name} is damaged or cut off: it has sha256 {found[:12]}, expected {expected[:12]}; "
            "prepare the store again"
        )


def check_store(directory: str | Path) -> ClipSet:
    """Open a store and read every byte of it against its checksums.

    Raises:
        UserError: a file that is missing or differs from what was written; of the poses, the clip is named too.
    """
    place = Path(directory)
    clips = open_store(place)
    meta = read_meta(place)
    if clips.fingerprint() != meta["fingerprint"]:  # names the clip whose pose has changed
        raise UserError(f"{place}: the clips are not those that meta.json describes; prepare the store again")
    _check_file(place, _MAPPED, meta)
    return clips
