"""Northwestern-UCLA: one json per clip in the layout of `all_sqe`, named aAA_sSS_eEE_vVV.json.

    {"file_name": "a01_s01_e00_v01", "skeletons": T x 20 x 3, "label": class from 1}

Protocol `xview`: train on views 1 and 2, test on view 3 (Wang et al., CVPR 2014).
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..store_writer import Record
from ..tree import Entry, Tree
from .job import UNLABELLED, Bad, Clip, Format, Job, Options
from .named import JOINTS, SDK_ORDER, NamedClips, open_named

_PATTERN = r"a(\d+)_s(\d+)_e(\d+)_v(\d+)"
_ACTIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
_CLASSES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down", "stand up", "donning",
    "doffing", "throw", "carry",
)  # fmt: skip


def _matches(tree: Tree) -> bool:
    return bool(tree.matching(_PATTERN + r"\.json")) or any(
        b'"skeletons"' in entry.head() for entry in tree.matching(r".*\.json")[:1]
    )


def _open(tree: Tree, options: Options) -> Job:
    return open_named(NWUCLA, _PATTERN, ".json", "NW-UCLA", tree, options, classes=_CLASSES, actions=_ACTIONS)


class NWUCLA(NamedClips):
    def read(self, piece: Entry) -> Any:
        content = json.loads(piece.read())
        if not isinstance(content, dict) or "skeletons" not in content:
            raise Bad("is not a dict with skeletons")
        name = piece.stem
        if not self.labelled:
            yield Clip(name, UNLABELLED, _pose(content["skeletons"]))
            return
        within = content.get("file_name", name)
        if isinstance(within, str) and (within := within.removesuffix(".json")) != name:
            try:
                self.numbers(name)
            except Bad:
                name = within  # the file was renamed, its content was not
            else:
                raise Bad(f"its file_name is {within:.40}, which is another clip")
        label = self.label(name)
        if content.get("label", label + 1) not in (label + 1, _ACTIONS[label]):
            raise Bad(f"its label is {content['label']!s:.20}, its name says {label + 1} ({_CLASSES[label]})")
        yield Clip(name, label, _pose(content["skeletons"]))

    def splits(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        view = np.array([self.numbers_of(record.name)[3] for record in records], int)
        return {"xview_train": np.isin(view, (1, 2)), "xview_test": view == 3}


def _pose(skeletons: Any) -> np.ndarray:
    """float64 (1, T, 20, 3) in the order of kinect20."""
    pose = np.array(skeletons, np.float64)  # ragged lists, text and so on are errors here
    if pose.ndim == 2 and pose.shape[1] == JOINTS * 3:
        pose = pose.reshape(-1, JOINTS, 3)
    if pose.ndim != 3 or pose.shape[1:] != (JOINTS, 3) or not len(pose):
        raise Bad(f"its skeletons have the shape {pose.shape}, expected (T, {JOINTS}, 3)")
    if not np.nan_to_num(pose).any():
        raise Bad("every joint is 0 in all of its frames")
    return pose[None, :, SDK_ORDER]


FORMATS = (Format("nw_ucla", "NW-UCLA json: aAA_sSS_eEE_vVV.json as in all_sqe", _matches, _open),)
