"""MSR-Action3D: one text per clip, named aAA_sSS_eEE_skeleton3D.txt (metres) or aAA_sSS_eEE_skeleton.txt (screen).

A line is (x, y, z, confidence) of one joint, 20 lines are a frame. Where a folder holds both, the metres are taken.
Protocol `xsub`: train on odd subjects, test on even ones (Li et al., CVPR workshops 2010).
"""

import re
from collections.abc import Sequence

import numpy as np

from ..store_writer import Record
from ..tree import Tree
from .job import Bad, Format, Job, Options, same_as, table
from .named import JOINTS, MSR_ORDER, NamedPoses, open_named

_PATTERN = r"a(\d+)_s(\d+)_e(\d+)_skeleton(?:3d)?"
_CLASSES = (
    "high arm wave", "horizontal arm wave", "hammer", "hand catch", "forward punch", "high throw", "draw x",
    "draw tick", "draw circle", "hand clap", "two hand wave", "side boxing", "bend", "forward kick", "side kick",
    "jogging", "tennis swing", "tennis serve", "golf swing", "pickup and throw",
)  # fmt: skip


def _matches(tree: Tree) -> bool:
    return bool(tree.matching(_PATTERN + r"\.txt"))


def _open(tree: Tree, options: Options) -> Job:
    real = any(entry.stem.lower().endswith("3d") for entry in tree.matching(_PATTERN + r"\.txt"))
    suffix = "skeleton3d.txt" if real else "skeleton.txt"
    return open_named(MSRAction3D, _PATTERN, suffix, "MSR-Action3D", tree, options, classes=_CLASSES)


class MSRAction3D(NamedPoses):
    def pose(self, data: bytes) -> np.ndarray:
        lines = data.split(b"\n", 1)
        width = len(lines[0].split())
        if width not in (3, 4):
            raise Bad(f"its first line has {width} numbers, expected x y z and perhaps a confidence")
        values = table(data, width, "its text")
        if len(values) % JOINTS:
            raise Bad(f"has {len(values)} lines, which are no whole frames of {JOINTS} joints: cut off")
        return values[:, :3].reshape(1, -1, JOINTS, 3)[:, :, MSR_ORDER]

    def id(self, stem: str) -> str:
        return re.sub(r"_skeleton(3d)?$", "", stem.lower())

    def remarks(self, splits: dict[str, np.ndarray], records: Sequence[Record]) -> list[str]:
        return [f"MSR-Action3D: {same_as({'clips': len(records)}, {'clips': 567 if len(records) > 557 else 557})}"]


FORMATS = (Format("msr_action3d", "MSR-Action3D: aAA_sSS_eEE_skeleton3D.txt", _matches, _open),)
