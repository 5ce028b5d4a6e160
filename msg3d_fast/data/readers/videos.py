"""Videos: poses by an estimator (`video`), persons followed, class and split from folders or a list (`labels`).

Files are read one after the other: an estimator uses every core by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ...errors import UserError
from ...graph import get_layout
from ..tree import Entry, Tree
from ..video import SUFFIXES, Estimator, VideoSource, estimator_for, is_video, require_decoder
from .job import UNLABELLED, Bad, Clip, Format, Job, Options, check_semantics, left_out
from .labels import Labels, open_labels


def _matches(tree: Tree) -> bool:
    return any(is_video(entry.base) for entry in tree.entries)


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "videos")
    entries, _ = left_out([entry for entry in tree.entries if is_video(entry.base)], options)
    if not entries:
        raise UserError(f"{tree.root}: has no videos ({', '.join(SUFFIXES)})")
    layout, channels = options.layout or get_layout("coco"), options.channels or "xys"
    require_decoder()
    return Videos(
        pieces=entries,
        layout=layout,
        channels=channels,
        parallel=False,
        estimator=estimator_for(layout, channels),
        labels=open_labels(options),
        max_person=options.max_person or 2,
    )


@dataclass(kw_only=True)
class Videos(Job):
    estimator: Estimator
    labels: Labels = field(default_factory=Labels)
    max_person: int = 2

    def identity(self) -> list[Any]:
        return [*super().identity(), self.layout.name, self.channels, self.max_person]

    def read(self, piece: Entry) -> Iterator[Clip]:
        if piece.member is not None:
            raise Bad("lies in a zip, which a video cannot be played from; unpack it")
        name = str(PurePosixPath(piece.name).with_suffix(""))
        label, split = self.labels.of(name) if self.labelled else (UNLABELLED, None)
        try:
            source = VideoSource(
                piece.path, self.layout, self.channels, estimator=self.estimator, max_person=self.max_person
            )
            ((_, found),) = source
        except UserError as error:
            raise Bad(str(error).removeprefix(f"{piece.path}: ")) from None
        if found is None:
            raise Bad(source.skipped[0][1])
        yield Clip(name, label, found.clip(0), tuple(found.img_shape[0].tolist()), split)


FORMATS = (Format("videos", "videos (PyAV and a pose estimator): [split/]class/clip.mp4", _matches, _open),)
