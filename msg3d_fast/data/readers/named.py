"""Data sets of one Kinect, one person and one file per clip, whose name says action, subject and take.

Joints are put into the order of `kinect20`, so that a network can go from one of these sets to another.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import UserError
from ..store_writer import Record
from ..tree import Entry, Tree
from .job import UNLABELLED, Bad, Clip, Job, Options, check_semantics, fixed_layout, left_out

JOINTS = 20
# Where each joint of kinect20 stands in the order of the Kinect SDK, and in that of MSR-Action3D.
SDK_ORDER = (3, 2, 1, 0, *range(4, 20))
MSR_ORDER = (19, 2, 3, 6, 0, 7, 9, 11, 1, 8, 10, 12, 4, 13, 15, 17, 5, 14, 16, 18)


@dataclass(kw_only=True)
class NamedClips(Job):
    """Clips whose files have names with numbers in them.

    Args:
        pattern: of a whole stem, with a group for each number.
        classes: names of the classes, or the action numbers in the order of the classes.
    """

    pattern: str
    classes: tuple[str, ...]
    actions: tuple[int, ...] = field(default=())

    def numbers(self, stem: str) -> tuple[int, ...]:
        """The numbers in a name; the first is the action."""
        found = re.fullmatch(self.pattern, stem, re.IGNORECASE)
        if found is None:
            raise Bad(f"its name does not say action, subject and take as {self.pattern} does")
        return tuple(map(int, found.groups()))

    def label(self, stem: str) -> int:
        if not self.labelled:
            return UNLABELLED
        action = self.numbers(stem)[0]
        actions = self.actions or range(1, len(self.classes) + 1)
        if action not in actions:
            expected = ", ".join(map(str, self.actions)) or f"1 to {len(self.classes)}"
            raise Bad(f"its name says action {action}, expected {expected}")
        return tuple(actions).index(action)

    def label_names(self, records: Sequence[Record]) -> Sequence[str]:
        return self.classes

    def numbers_of(self, name: str) -> tuple[int, ...]:
        """The numbers in the id of a clip."""
        return tuple(int(n) for n in re.findall(r"\d+", name))


class NamedPoses(NamedClips):
    """Files that hold a pose and nothing else; the protocol is `xsub`: train on odd subjects, test on even ones."""

    @abstractmethod
    def pose(self, data: bytes) -> np.ndarray:
        """float (M, T, V, C) of one file."""

    @abstractmethod
    def id(self, stem: str) -> str:
        """The clip's id."""

    def read(self, piece: Entry) -> Iterator[Clip]:
        label = self.label(piece.stem)
        pose = self.pose(piece.read())
        if not np.nan_to_num(pose).any():
            raise Bad("every joint is 0 in all of its frames")
        yield Clip(self.id(piece.stem), label, pose)

    def splits(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        train = np.array([self.numbers_of(record.name)[1] % 2 == 1 for record in records], bool)
        return {"xsub_train": train, "xsub_test": ~train}


def open_named(
    kind: type[NamedClips], pattern: str, suffix: str, what: str, tree: Tree, options: Options, **settings: object
) -> Job:
    """A job of the files whose stems match."""
    check_semantics(options, what)
    entries, _ = left_out([e for e in tree.entries if e.base.lower().endswith(suffix)], options)
    if not entries:
        raise UserError(f"{tree.root}: has no {suffix} files of {what}")
    layout = fixed_layout(options, "kinect20", f"the skeleton of {what}")
    return kind(pieces=entries, layout=layout, channels="xyz", pattern=pattern, **settings)
