"""Clips of any source that the readers know, without their classes: what prediction starts from.

Clips come in sets of a few, each read when it is asked for, so that a source of any size takes little memory.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .clips import ClipSet
from .formats import is_clip_set, open_dataset
from .readers import Job, Options, choose_format, read_pieces
from .readers.clip_set import open_clips
from .store_writer import Batch
from .tree import Tree

_PIECES = 32  # that are read at a time


class PoseSource:
    """The clips of a source, read in parts.

    Args:
        path: files of a known format, a store, a ragged `.npz`, "embedded" or "synthetic".
        layout: the skeleton of the network that the poses are for; a source whose files tell no skeleton has it.
        channels: likewise.
        format: a name of `readers.FORMATS`; by default told from the files.
        options: what else is known about the source; a layout in it is taken as it is.
        dtype: float type to read in; a store or `.npz` keeps its own.

    Attributes:
        skipped: (name, reason) of what could not be used, so far.
        missing: joints that held NaN or infinity and count as missing, so far.
        fps: frames per second; pose files do not say.

    Raises:
        UserError: nothing that can be read, or poses of another skeleton.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        channels: str,
        *,
        format: str | None = None,
        options: Options | None = None,
        dtype: str = "float32",
    ) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.skipped: list[tuple[str, str]] = []
        self.missing = 0
        self.fps: float | None = None
        self.job = self._open(format, options or Options(), layout, channels)
        self.job.labelled = False
        self.channels = self.job.channels
        check_skeleton(self.job.layout, layout, str(path))

    def __len__(self) -> int:
        """Files, or clips where one file holds them all."""
        return len(self.job.pieces)

    def __iter__(self) -> Iterator[tuple[int, ClipSet | None]]:
        """How many of the pieces were read, and their clips, or None where none can be used."""
        for first in range(0, len(self.job.pieces), _PIECES):
            pieces = self.job.pieces[first : first + _PIECES]
            batch = read_pieces(self.job, self.dtype, pieces)
            self.skipped += batch.skipped
            self.missing += batch.missing
            yield len(pieces), self._clips(batch) if batch.records else None

    def _open(self, format: str | None, options: Options, layout: Layout, channels: str) -> Job:
        whole = format is None and options.table is None and is_clip_set(self.path)
        if options.layout is not None:
            return self._job(format, options, whole)
        fitting = replace(options, layout=layout)
        # A store, an .npz or a table may tell its own skeleton; elsewhere the network's tells what the numbers are,
        # except of data sets that have one skeleton only.
        told = options.table is not None or whole
        if told:
            first, second = options, fitting
        else:
            first, second = replace(fitting, channels=options.channels or channels), options
        try:
            return self._job(format, first, whole)
        except UserError as error:
            try:
                return self._job(format, second, whole)
            except UserError as other:
                raise (other if told else error) from None

    def _job(self, format: str | None, options: Options, whole: bool) -> Job:
        if whole:
            clips = open_dataset(self.path, layout=options.layout, channels=options.channels, labelled=False)
            self.dtype = clips.keypoint.dtype.newbyteorder("=")
            self.missing = clips.missing
            return open_clips(clips, [])
        tree = Tree(self.path)
        return choose_format(tree, format, options).open(tree, options)

    def _clips(self, batch: Batch) -> ClipSet:
        records = batch.records
        images = [record.img_shape for record in records]
        joints, width = self.job.layout.num_joints, {"xy": 2}.get(self.channels, 3)
        return ClipSet(
            keypoint=np.frombuffer(batch.rows, self.dtype).reshape(-1, joints, width),
            num_person=np.array([record.num_person for record in records]),
            total_frames=np.array([record.total_frames for record in records]),
            label=np.zeros(len(records), np.int64),
            frame_dir=np.array([record.name for record in records], str),
            label_names=("unlabelled",),
            layout=self.job.layout,
            channels=self.channels,
            img_shape=None if None in images else np.array(images),
            name=str(self.path),
        )


def check_skeleton(found: Layout, wanted: Layout, what: str) -> None:
    """Raise UserError unless poses of one skeleton are poses of the other: as many joints, joined by the same edges."""
    if found.num_joints != wanted.num_joints:
        raise UserError(
            f"{what}: has {found.num_joints} joints ({found.name}), the network was trained on {wanted.num_joints} "
            f"({wanted.name}); give poses of that skeleton"
        )
    ours, theirs = ({frozenset(edge) for edge in layout.inward} for layout in (found, wanted))
    if ours != theirs:
        raise UserError(
            f"{what}: its skeleton {found.name} joins other joints than {wanted.name}, which the network was trained "
            "on; give poses of that skeleton, or say with --layout what they are"
        )
