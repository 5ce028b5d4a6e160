"""UTKinect-Action3D: one text per sequence of ten actions, joints_sSS_eEE.txt, and actionLabel.txt says where they lie.

    joints   a frame number and 20 x (x, y, z) a line
    labels   s01_e01, then ten lines such as "walk: 252 390" (first and last frame; NaN where there is none)

Protocol `xsub`: train on odd subjects, test on even ones (Xia et al., CVPR workshops 2012, test on one sequence at a
time).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from ..store_writer import Record
from ..tree import Entry, Tree
from .job import Bad, Clip, Format, Job, Options, Skipped, check_semantics, fixed_layout, left_out, same_as, table
from .named import JOINTS, SDK_ORDER

_PATTERN = re.compile(r"joints_s(\d+)_e(\d+)", re.IGNORECASE)
_CLASSES = ("walk", "sitDown", "standUp", "pickUp", "carry", "throw", "push", "pull", "waveHands", "clapHands")
_LINE = re.compile(r"(\w+)\s*:\s*(\S+)\s+(\S+)")


def _matches(tree: Tree) -> bool:
    return any(_PATTERN.fullmatch(entry.stem) for entry in tree.matching(r"joints_.*\.txt"))


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "UTKinect")
    entries, _ = left_out([e for e in tree.matching(r"joints_.*\.txt") if _PATTERN.fullmatch(e.stem)], options)
    found = tree.matching(r"actionLabel\.txt")
    if not found:
        raise UserError(
            f"{tree.root}: has no actionLabel.txt, which says where the actions lie; put it beside the joints"
        )
    layout = fixed_layout(options, "kinect20", "the skeleton of UTKinect")
    spans = _spans(str(tree.root), found[0])
    return UTKinect(pieces=entries, layout=layout, channels="xyz", spans=spans)


def _spans(root: str, entry: Entry) -> dict[tuple[int, int], list[tuple[str, int, int]]]:
    """Of each sequence: action, first and last frame."""
    try:
        lines = entry.read().decode("utf-8").splitlines()
    except Exception as error:  # whatever damaged bytes lead to
        raise UserError(f"{root}: {entry.name} cannot be read ({str(error)[:80]}); fetch it again") from None
    spans: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
    here = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if sequence := re.fullmatch(r"s(\d+)_e(\d+)", line.strip()):
            here = spans.setdefault((int(sequence[1]), int(sequence[2])), [])
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None or here is None or found[1] not in _CLASSES:
            raise UserError(
                f"{root}: {entry.name} line {number} is {line.strip()!r:.40}, expected a sequence (s01_e01) or an "
                "action (walk: 252 390)"
            )
        if "nan" in (found[2].lower(), found[3].lower()):
            continue
        if not (found[2].isdigit() and found[3].isdigit()):
            raise UserError(f"{root}: {entry.name} line {number}: {line.strip()!r:.40} does not give two frame numbers")
        here.append((found[1], int(found[2]), int(found[3])))
    return spans


@dataclass(kw_only=True)
class UTKinect(Job):
    spans: dict[tuple[int, int], list[tuple[str, int, int]]]

    def identity(self) -> list[object]:
        return [*super().identity(), sorted(self.spans.items())]

    def read(self, piece: Entry) -> Iterator[Clip | Skipped]:
        found = _PATTERN.fullmatch(piece.stem)
        subject, take = int(found[1]), int(found[2])
        if (subject, take) not in self.spans:
            raise Bad("actionLabel.txt does not say where its actions lie")
        values = table(piece.read(), 1 + 3 * JOINTS, "its text")
        frame = values[:, 0]
        pose = values[:, 1:].reshape(-1, JOINTS, 3)[:, SDK_ORDER]
        for action, first, last in self.spans[subject, take]:
            name = f"s{subject:02d}_e{take:02d}_{action}"
            inside = (frame >= first) & (frame <= last)
            if not inside.any():
                yield Skipped(name, f"{piece.name} has no frame from {first} to {last}")
            elif not np.nan_to_num(pose[inside]).any():
                yield Skipped(name, "every joint is 0 in all of its frames")
            else:
                yield Clip(name, _CLASSES.index(action), pose[inside][None])

    def label_names(self, records: Sequence[Record]) -> Sequence[str]:
        return _CLASSES

    def splits(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        train = np.array([int(record.name[1:].split("_")[0]) % 2 == 1 for record in records], bool)
        return {"xsub_train": train, "xsub_test": ~train}

    def remarks(self, splits: dict[str, np.ndarray], records: Sequence[Record]) -> list[str]:
        return [f"UTKinect: {same_as({'clips': len(records)}, {'clips': 199})}"]


FORMATS = (Format("utkinect", "UTKinect: joints_sSS_eEE.txt and actionLabel.txt", _matches, _open),)
