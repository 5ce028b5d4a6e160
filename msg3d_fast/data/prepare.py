"""From the file that one has to the store that training reads."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..graph import Layout
from .clips import ClipSet
from .formats import open_dataset
from .store import Progress, check_dtype, check_store
from .store_writer import write_store


def prepare(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str = "float16",
    layout: str | Layout | Mapping[str, Any] | None = None,
    channels: str | None = None,
    progress: Progress | None = None,
) -> ClipSet:
    """Convert a data set to a store and check what was written.

    Clips that cannot be used are left out and named. A store of the same clips that is already there is checked and
    kept; a different one is never overwritten.

    Args:
        source: annotation pickle, ragged `.npz`, another store, "embedded" or "synthetic".
        destination: folder of the store.
        dtype: "float16" or "float32" of the keypoints.
        layout: the skeleton, where the file does not tell it.
        channels: "xy", "xys" or "xyz", where the file does not tell.
        progress: called with the rows written so far and the rows in all.

    Returns:
        the opened store; its `notes` name what was skipped, cleaned or absent.

    Raises:
        UserError: as of `open_dataset` and `write_store`, or the place holds something else.
    """
    place = Path(destination)
    skipped: list[str] = []
    clips = open_dataset(source, layout=layout, channels=channels, skipped=skipped)
    wanted = clips.fingerprint(check_dtype(dtype))
    if place.exists():
        if check_store(place).fingerprint() != wanted:
            raise UserError(f"{place}: holds other clips than {source}; choose another destination or remove it first")
    else:
        write_store(clips, place, dtype, progress=progress)
    stored = check_store(place)
    if stored.fingerprint() != wanted:
        raise UserError(f"{place}: reads back differently from what was written; check the disk and prepare it again")
    notes = [f"skipped {line}" for line in skipped]
    if clips.missing:
        notes.append(f"{clips.missing} joints held NaN or infinity and count as missing")
    return replace(stored, notes=(*notes, *clips.notes))
