"""OpenPose's json, one file per frame: clip_000000000012_keypoints.json, its clips told apart by folder and name.

    {"people": [{"pose_keypoints_2d": [x0, y0, c0, x1, ...], "person_id": [-1]}, ...]}

Persons are followed from frame to frame (`tracks`); class and split come from folders or a list (`labels`).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..layouts import choose_layout
from ..tracks import into_slots
from ..tree import Entry, Tree
from .job import MOST_FRAMES, UNLABELLED, Bad, Clip, Format, Job, Options, check_semantics, left_out, one_line
from .labels import Labels, open_labels

_FRAME = r"(?:(.*?)[_-]?)?(\d+)_keypoints\.json"
_MOST_PEOPLE = 50
KEYS = ("pose_keypoints_2d", "pose_keypoints")


def _matches(tree: Tree) -> bool:
    return bool(tree.matching(_FRAME))


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "OpenPose json")
    clips: dict[str, list[tuple[int, Entry]]] = {}
    for entry in tree.matching(_FRAME):
        found = re.fullmatch(_FRAME, entry.base, re.IGNORECASE)
        folder, prefix = "/".join(entry.folders), found[1] or ""
        name = folder if prefix in ("", folder.rpartition("/")[2]) else f"{folder}/{prefix}".lstrip("/")
        clips.setdefault(name or tree.root.stem, []).append((int(found[2]), entry))
    pieces = [
        (name, tuple(e for _, e in sorted(frames, key=lambda one: one[0]))) for name, frames in sorted(clips.items())
    ]
    words = left_out([], options)[1]
    pieces = [piece for piece in pieces if piece[0].rpartition("/")[2] not in words]
    first = next((n for piece in pieces for entry in piece[1] if (n := _num_joints(entry))), 25)
    return OpenPose(
        pieces=pieces,
        layout=choose_layout(first, "xys", options.layout, str(tree.root)),
        channels="xys",
        labels=open_labels(options),
        max_person=options.max_person or 2,
        img_shape=options.img_shape,
    )


def _num_joints(entry: Entry) -> int:
    try:
        people = _people(entry)
    except Exception:  # whatever damaged bytes lead to; reading the clip will say what
        return 0
    return len(people[0]) if len(people) else 0


def _people(entry: Entry) -> np.ndarray:
    """float64 (P, V, 3)."""
    content = json.loads(entry.read())
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise Bad(f"{entry.base} has no list of people")
    if not people:
        return np.zeros((0, 0, 3))
    numbers = [np.array(next(one[key] for key in KEYS if key in one), np.float64) for one in people[:_MOST_PEOPLE]]
    if any(x.ndim != 1 or x.size % 3 or x.size != numbers[0].size for x in numbers):
        raise Bad(f"{entry.base} holds poses of {numbers[0].size} numbers, expected x, y and confidence of each joint")
    return np.stack(numbers).reshape(len(numbers), -1, 3)


@dataclass(kw_only=True)
class OpenPose(Job):
    labels: Labels = field(default_factory=Labels)
    max_person: int = 2
    img_shape: tuple[int, int] | None = None

    def name(self, piece: Any) -> str:
        return piece[0]

    def identity(self) -> list[Any]:
        return [(name, [(e.name, e.size, e.stamp) for e in entries]) for name, entries in self.pieces]

    def read(self, piece: Any) -> Iterator[Clip]:
        name, entries = piece
        if len(entries) > MOST_FRAMES:
            raise Bad(f"has {len(entries)} frames; cut it into clips")
        label, split = self.labels.of(name) if self.labelled else (UNLABELLED, None)
        frames = []
        for entry in entries:
            try:
                people = _people(entry)
            except Bad:
                raise
            except Exception as error:  # whatever damaged bytes lead to
                raise Bad(f"{entry.base} is damaged ({one_line(error)})") from None
            if len(people) and people.shape[1] != self.layout.num_joints:
                raise Bad(f"{entry.base} has {people.shape[1]} joints, expected {self.layout.num_joints}")
            frames.append(np.nan_to_num(people, posinf=0, neginf=0))
        pose = into_slots(frames, self.max_person)
        if not len(pose):
            raise Bad("nobody is in any of its frames")
        yield Clip(name, label, pose, self.img_shape, split)


FORMATS = (Format("openpose", "OpenPose json, a file per frame: [split/]class/clip/*_keypoints.json", _matches, _open),)
