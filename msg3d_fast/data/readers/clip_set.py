"""Sources that open as a whole: a store, a ragged `.npz`, and the names "embedded" and "synthetic"."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..clips import ClipSet
from ..store_writer import Record
from .job import Clip, Job


@dataclass(kw_only=True)
class Clips(Job):
    """Clips of a `ClipSet`, one piece each."""

    clips: ClipSet
    stamp: list[Any]

    def read(self, piece: int) -> Iterator[Clip]:
        clips = self.clips
        label = np.flatnonzero(clips.label[piece]).tolist() if clips.multi_label else int(clips.label[piece])
        image = None if clips.img_shape is None else tuple(clips.img_shape[piece].tolist())
        yield Clip(str(clips.frame_dir[piece]), label, clips.clip(piece), image)

    def name(self, piece: int) -> str:
        return str(self.clips.frame_dir[piece])

    def identity(self) -> list[Any]:
        return self.stamp

    def label_names(self, records: Sequence[Record]) -> Sequence[str]:
        return self.clips.label_names

    def splits(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        place = {name: i for i, name in enumerate(self.clips.frame_dir.tolist())}
        which = np.array([place[record.name] for record in records], np.int64)
        return {name: mask[which] for name, mask in self.clips.splits.items()}


def open_clips(clips: ClipSet, stamp: list[Any]) -> Job:
    """A job of clips that are open already."""
    layout, channels = clips.layout, clips.channels
    return Clips(pieces=range(len(clips)), layout=layout, channels=channels, parallel=False, clips=clips, stamp=stamp)
