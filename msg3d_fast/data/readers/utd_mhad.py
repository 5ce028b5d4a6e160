"""UTD-MHAD: one .mat per clip with d_skel (20, 3, T), named aA_sS_tT_skeleton.mat.

Protocol `xsub`: train on odd subjects, test on even ones (Chen et al., ICIP 2015).
"""

from collections.abc import Sequence

import numpy as np

from ..matlab import read_matrices
from ..store_writer import Record
from ..tree import Tree
from .job import Bad, Format, Job, Options, same_as
from .named import JOINTS, NamedPoses, open_named

_PATTERN = r"a(\d+)_s(\d+)_t(\d+)_skeleton"
_CLASSES = (
    "swipe left", "swipe right", "wave", "clap", "throw", "cross arms", "basketball shoot", "draw X",
    "draw circle clockwise", "draw circle counter-clockwise", "draw triangle", "bowling", "boxing", "baseball swing",
    "tennis swing", "arm curl", "tennis serve", "push", "knock", "catch", "pickup and throw", "jog", "walk",
    "sit to stand", "stand to sit", "lunge", "squat",
)  # fmt: skip


def _matches(tree: Tree) -> bool:
    return bool(tree.matching(_PATTERN + r"\.mat"))


def _open(tree: Tree, options: Options) -> Job:
    return open_named(UTDMHAD, _PATTERN, ".mat", "UTD-MHAD", tree, options, classes=_CLASSES)


class UTDMHAD(NamedPoses):
    def pose(self, data: bytes) -> np.ndarray:
        found = read_matrices(data)
        x = found.get("d_skel")
        if x is None and len(found) == 1:
            (x,) = found.values()
        if x is None or x.ndim != 3 or x.shape[:2] != (JOINTS, 3) or not x.shape[2]:
            what = ", ".join(f"{name} {array.shape}" for name, array in found.items()) or "nothing"
            raise Bad(f"holds {what:.60}, expected d_skel (20, 3, T)")
        return x.transpose(2, 0, 1)[None].astype(np.float64)  # the order is that of kinect20

    def id(self, stem: str) -> str:
        return stem.lower().removesuffix("_skeleton")

    def remarks(self, splits: dict[str, np.ndarray], records: Sequence[Record]) -> list[str]:
        counts = {"clips": len(records)} | {name: int(mask.sum()) for name, mask in splits.items()}
        return [f"UTD-MHAD: {same_as(counts, {'clips': 861, 'xsub_train': 431, 'xsub_test': 430})}"]


FORMATS = (Format("utd_mhad", "UTD-MHAD: aA_sS_tT_skeleton.mat", _matches, _open),)
