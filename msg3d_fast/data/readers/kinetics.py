"""Kinetics-Skeleton (the ST-GCN release): one json per video in kinetics_train and kinetics_val, OpenPose's 18 joints.

    {"data": [{"frame_index": t, "skeleton": [{"pose": [x0, y0, x1, ...], "score": [...]}, ...]}, ...],
     "label": text, "label_index": class};  coordinates between 0 and 1

Beside the folders, kinetics_<part>_label.json says of every video whether it has a skeleton. As the authors have it:
the first 5 persons of a frame, (x, y) -> (x - 0.5, 0.5 - y), the two with the highest scores of each frame in that
order. Source: MS-G3D `data_gen/kinetics_gendata.py`. Frames are not filled up to 300.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UserError
from ..store_writer import Record
from ..tree import Entry, Tree
from .job import MOST_FRAMES, UNLABELLED, Bad, Clip, Format, Job, Options, check_semantics, fixed_layout, left_out

_JOINTS, _PERSONS_IN = 18, 5
_LABELS = r".*_label\.json"


def _matches(tree: Tree) -> bool:
    labels = set(tree.matching(_LABELS))
    videos = [entry for entry in tree.matching(r".*\.json") if entry not in labels]
    return (bool(videos) and b'"frame_index"' in videos[0].head()) or (
        bool(labels) and b"has_skeleton" in next(iter(labels)).head()
    )


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "Kinetics-Skeleton", ("mmaction2", "original"))
    tables = tree.matching(_LABELS)
    entries, _ = left_out([e for e in tree.matching(r".*\.json") if e not in set(tables)], options)
    names: dict[int, str] = {}
    told: dict[str, int] = {}
    empty: set[str] = set()
    for table in tables:
        for video, about in _table(tree, table).items():
            if not isinstance(about, dict) or not isinstance(about.get("label_index"), int):
                raise UserError(f"{tree.root}: {table.name} says nothing of the class of {video:.40}; fetch it again")
            told[video] = about["label_index"]
            names[about["label_index"]] = str(about.get("label", about["label_index"]))
            if not about.get("has_skeleton", True):
                empty.add(video)
    notes = [] if not empty else [f"{sum(e.stem in empty for e in entries)} videos without a skeleton left out"]
    kept = [entry for entry in entries if entry.stem not in empty]
    layout = fixed_layout(options, "openpose", "the skeleton of Kinetics-Skeleton")
    return Kinetics(
        pieces=kept,
        layout=layout,
        channels="xys",
        notes=notes,
        names=names,
        told=told,
        max_person=options.max_person or 2,
    )


def _table(tree: Tree, entry: Entry) -> dict[str, Any]:
    try:
        content = json.loads(entry.read())
    except Exception as error:  # whatever damaged bytes lead to
        raise UserError(f"{tree.root}: {entry.name} is damaged ({str(error)[:80]}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{tree.root}: {entry.name} holds a {type(content).__name__}, expected one entry per video")
    return content


@dataclass(kw_only=True)
class Kinetics(Job):
    names: dict[int, str] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    max_person: int = 2

    def read(self, piece: Entry) -> Iterator[Clip]:
        video = json.loads(piece.read())
        if not self.labelled:
            yield Clip(piece.stem, UNLABELLED, _pose(video.get("data"), self.max_person))
            return
        label = video.get("label_index") if isinstance(video, dict) else None
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 1 << 20:
            raise Bad(f"its label_index is {label!s:.20}, expected a class number")
        if self.told.get(piece.stem, label) != label:
            raise Bad(f"its label_index is {label}, the label file says {self.told[piece.stem]}")
        part = next((p for p in ("train", "val", "test") if any(p in f for f in reversed(piece.folders))), None)
        yield Clip(piece.stem, label, _pose(video.get("data"), self.max_person), None, part)

    def label_names(self, records: Sequence[Record]) -> Sequence[str]:
        classes = 1 + max((*(record.label for record in records), *self.names), default=-1)
        return [self.names.get(c, str(c)) for c in range(classes)]


def _pose(frames: Any, max_person: int) -> np.ndarray:
    """float32 (M, T, 18, 3)."""
    if not isinstance(frames, list) or not frames:
        raise Bad("has no frames")
    indices = [frame["frame_index"] for frame in frames]
    most = min(MOST_FRAMES, 300 + 10 * len(frames))  # beyond it is a damaged number
    if bad := [t for t in indices if not isinstance(t, int) or not 0 <= t < most]:
        raise Bad(f"has the frame_index {bad[0]!s:.20} among {len(frames)} frames")
    data = np.zeros((_PERSONS_IN, max(indices) + 1, _JOINTS, 3))
    for t, frame in zip(indices, frames, strict=True):
        for m, one in enumerate(frame["skeleton"][:_PERSONS_IN]):
            pose, score = np.array(one["pose"], np.float64), np.array(one["score"], np.float64)
            if pose.shape != (2 * _JOINTS,) or score.shape != (_JOINTS,):
                raise Bad(f"frame {t} has {pose.size} coordinates and {score.size} scores, expected 36 and 18")
            data[m, t, :, :2], data[m, t, :, 2] = pose.reshape(_JOINTS, 2), score
    data[..., 0] -= 0.5
    data[..., 1] = 0.5 - data[..., 1]
    data[data[..., 2] == 0] = 0
    order = np.argsort(-data[..., 2].sum(2), axis=0, kind="stable")[:max_person]
    data = np.take_along_axis(data, order[..., None, None], 0).astype(np.float32)
    data = data[data.any((1, 2, 3))]
    if not len(data):
        raise Bad("nobody is in any of its frames")
    return data


FORMATS = (
    Format("kinetics", "Kinetics-Skeleton json: kinetics_train, kinetics_val and their label files", _matches, _open),
)
