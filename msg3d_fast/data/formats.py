"""One door to every kind of data set."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .annotations import read_annotations
from .clips import ClipSet
from .npz import read_npz
from .store import open_store
from .synthetic import synthetic

EMBEDDED = Path(__file__).parent / "embedded" / "pck_body25.npz"


def open_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    layout: str | Layout | Mapping[str, Any] | None = None,
    channels: str | None = None,
    skipped: list[str] | None = None,
    labelled: bool = True,
) -> ClipSet:
    """Open a data set by path or name; the kind is told from the content.

    Args:
        path: an annotation pickle, a ragged `.npz`, the folder of a store, "embedded" (665 clips of 20 held postures,
            OpenPose BODY_25, splits block_train and block_test) or "synthetic" (splits train and val).
        split: keep only the clips of this split.
        layout: the skeleton, where the file does not tell it.
        channels: "xy", "xys" (with confidence) or "xyz", where the file does not tell.
        skipped: receives one line for each clip of a pickle that cannot be used; without it such a clip is an error.
        labelled: whether a `.npz` must say the clips' classes.

    Raises:
        UserError: no such file, not one of these kinds, damaged, or clips that do not fit together.
    """
    clips = _open(path, layout, channels, skipped, labelled)
    if twins := len(clips) - len(np.unique(clips.frame_dir)):
        note = f"{twins} clips have the id of another one: test works, ensemble cannot join them; prepare drops them"
        clips = replace(clips, notes=(*clips.notes, note))
    return clips if split is None else clips.subset(split)


def is_clip_set(path: str | Path) -> bool:
    """Whether `open_dataset` opens it without loading poses, or holds it in memory by its nature."""
    path = Path(path)
    return str(path) in ("embedded", "synthetic") or (path / "meta.json").exists() or _is_npz(path)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return path.suffix == ".npz"
    return path.suffix == ".npz" or all(name.endswith(".npy") for name in names)


def _open(
    path: str | Path,
    layout: str | Layout | Mapping[str, Any] | None,
    channels: str | None,
    skipped: list[str] | None,
    labelled: bool,
) -> ClipSet:
    if path == "embedded":
        return read_npz(EMBEDDED)
    if path == "synthetic":
        return synthetic(layout or "coco")
    path = Path(path)
    if path.is_dir():
        return open_store(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}; give a .pkl, an .npz, the folder of a store, "
            "embedded or synthetic"
        ) from None
    if start[:2] == b"PK":
        return read_npz(path, layout=layout, channels=channels, labelled=labelled)
    if start[:1] in (b"\x80", b"(", b"]", b"}"):  # binary protocols, and what a list or dict starts with in older ones
        return read_annotations(path, layout=layout, channels=channels, skipped=skipped)
    found = f"starts with {start!r}" if start else "is empty"
    raise UserError(f"{path}: {found}, expected an annotation pickle or a ragged .npz; fetch or write it again")
