"""Raw NTU RGB+D 60 and 120: one `.skeleton` text per clip, named SsssCcccPpppRrrrAaaa.

    frames · per frame: bodies · per body: 10 numbers (the first is its id), 25, and 25 lines of 12 numbers (x y z ...)

Upstream's three converters make different clips of a file:
    mmaction2   bodies by their order in each frame; the two with most motion, absent ones dropped
    pyskl       bodies by id; short and widely spread ones dropped; others put into two slots where they do not overlap
    original    the same bodies as mmaction2; the authors' normalisation is training's (data.semantics=original)
Sources: mmaction2 `tools/data/skeleton/gen_ntu_rgbd_raw.py`, pyskl `tools/data/ntu_preproc.py`, MS-G3D
`data_gen/ntu_gendata.py`; protocols: Shahroudy et al., CVPR 2016; Liu et al., TPAMI 2019.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from ..clips import clean
from ..store_writer import Record
from ..tree import Entry, Tree
from .job import (
    MOST_FRAMES,
    SEMANTICS,
    UNLABELLED,
    Bad,
    Clip,
    Format,
    Job,
    Options,
    check_semantics,
    fixed_layout,
    left_out,
    numbers,
    same_as,
)

NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")
SUBJECTS = {1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38}
SUBJECTS |= {*range(45, 48), 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89, *range(91, 96), 97, 98, 100, 103}
LISTS = {302: "NTU RGB+D 60", 535: "NTU RGB+D 120"}  # lengths of the published lists of missing skeletons
PUBLISHED = {
    60: {"clips": 56578, "xsub_train": 40091, "xsub_val": 16487, "xview_train": 37646, "xview_val": 18932},
    120: {"clips": 113945, "xsub_train": 63026, "xsub_val": 50919, "xset_train": 54468, "xset_val": 59477},
}
_JOINTS, _SLOTS, _KINECT_SLOTS = 25, 2, 4
_MOST_BODIES = 32


def _matches(tree: Tree) -> bool:
    return any(entry.base.endswith(".skeleton") for entry in tree.entries)


def _open(classes: int | None, tree: Tree, options: Options) -> Job:
    semantics = check_semantics(options, "NTU RGB+D", SEMANTICS)
    entries = [entry for entry in tree.entries if entry.base.endswith(".skeleton")]
    if classes == 60:
        entries = [entry for entry in entries if (found := NAME.search(entry.stem)) is None or int(found[5]) <= 60]
    if not entries:
        raise UserError(f"{tree.root}: has no .skeleton files")
    kept, words = left_out(entries, options)
    notes = []
    if options.missing is None:
        notes.append("no list of missing skeletons given (--missing FILE): clips on the published list are kept")
    else:
        listed = sum(NAME.fullmatch(word) is not None for word in words)
        if not listed:
            raise UserError(f"{options.missing}: names no clip such as S001C002P005R002A008; give the published list")
        known = LISTS.get(listed, f"expected {' or '.join(map(str, LISTS))}")
        notes.append(f"{len(entries) - len(kept)} files left out by the list of {listed} missing skeletons ({known})")
    layout = fixed_layout(options, "nturgb+d", "the skeleton of NTU RGB+D")
    return NTU(pieces=kept, layout=layout, channels="xyz", notes=notes, semantics=semantics, classes=classes)


@dataclass(kw_only=True)
class NTU(Job):
    semantics: str = "mmaction2"
    classes: int | None = None

    def read(self, piece: Entry) -> Iterator[Clip]:
        label = self._label(piece) if self.labelled else UNLABELLED
        yield Clip(piece.stem, label, CONVERT[self.semantics](*parse(piece.read())))

    def _label(self, piece: Entry) -> int:
        name = NAME.fullmatch(piece.stem)
        if name is None:
            raise Bad("its name is not like S001C002P005R002A008.skeleton, so that its class cannot be told")
        label = int(name[5]) - 1
        if not 0 <= label < (self.classes or 120):
            raise Bad(f"its name says action {label + 1}, expected 1 to {self.classes or 120}")
        return label

    def _num_classes(self, records: Sequence[Record]) -> int:
        return self.classes or (120 if any(record.label >= 60 for record in records) else 60)

    def label_names(self, records: Sequence[Record]) -> Sequence[str]:
        return [f"A{label + 1:03d}" for label in range(self._num_classes(records))]

    def splits(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        parts = [NAME.fullmatch(record.name) for record in records]
        setup, camera, performer = (np.array([int(part[i]) for part in parts], int) for i in (1, 2, 3))
        other = ("xset", setup % 2 == 0) if self._num_classes(records) == 120 else ("xview", camera != 1)
        found = {}
        for name, train in (("xsub", np.isin(performer, list(SUBJECTS))), other):
            found |= {f"{name}_train": train, f"{name}_val": ~train}
        return found

    def remarks(self, splits: dict[str, np.ndarray], records: Sequence[Record]) -> list[str]:
        counts = {"clips": len(records)} | {name: int(mask.sum()) for name, mask in splits.items()}
        classes = self._num_classes(records)
        return [f"NTU RGB+D {classes}: {same_as(counts, PUBLISHED[classes])}"]


def parse(data: bytes) -> tuple[int, np.ndarray, list[int], np.ndarray]:
    """A `.skeleton` text: frames T, frame of each body (B,), its id, and its joints, float64 (B, 25, 3).

    Raises:
        Bad: cut off, longer than it says, another number of joints, or something else than numbers.
    """
    lines = [line.strip() for line in data.strip().split(b"\n")]
    total, place = _count(lines[0], "the number of frames", MOST_FRAMES), 1
    frames: list[int] = []
    ids: list[int] = []
    joints: list[bytes] = []
    for t in range(total):
        if place >= len(lines):
            raise Bad(f"ends after {t} of {total} frames: cut off")
        bodies = _count(lines[place], f"the number of bodies of frame {t + 1}", _MOST_BODIES)
        place += 1
        for _ in range(bodies):
            if place + _JOINTS + 2 > len(lines):
                raise Bad(f"ends in frame {t + 1} of {total}: cut off")
            about = lines[place].split()
            if len(about) != 10 or not about[0].isdigit():
                raise Bad(f"line {place + 1} does not begin a body: expected an id and 9 numbers")
            if _count(lines[place + 1], "the number of joints", 1000) != _JOINTS:
                raise Bad(f"line {place + 2} says {int(lines[place + 1])} joints, expected {_JOINTS}")
            frames.append(t)
            ids.append(int(about[0]))
            place += 2
            joints += lines[place : place + _JOINTS]
            place += _JOINTS
    if place != len(lines):
        raise Bad(f"has {len(lines)} lines, its {total} frames end at line {place}")
    if not ids:
        raise Bad("nobody is in any of its frames")
    # Only x, y and z are parsed, which takes a third of the time; of the other nine it is enough that they are there.
    rows = [line.split() for line in joints]
    if any(len(row) != 12 for row in rows):
        raise Bad("a joint has another number of values than 12")
    text = b" ".join([b" ".join(row[:3]) for row in rows])
    return total, np.array(frames), ids, numbers(text, "a joint").reshape(-1, _JOINTS, 3)


def _count(line: bytes, what: str, most: int) -> int:
    if not line.isdigit() or len(line) > 9:
        raise Bad(f"{what} is {line[:20].decode(errors='replace')!r}, expected a count")
    if int(line) > most:
        raise Bad(f"{what} is {int(line)}, expected at most {most}")
    return int(line)


def _by_order(total: int, frames: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """float64 (2, T, 25, 3): the two bodies with most motion, where a body is its place among those of a frame."""
    place = np.arange(len(frames)) - np.searchsorted(frames, frames)
    data = np.zeros((_KINECT_SLOTS, total, _JOINTS, 3))
    seen = place < _KINECT_SLOTS
    data[place[seen], frames[seen]] = xyz[seen]
    energy = []
    for body in data:
        visible = body[body.sum(-1).sum(-1) != 0]
        energy.append(sum(visible[:, :, c].std() for c in range(3)) if len(visible) else 0)
    return data[np.argsort(energy)[::-1][:_SLOTS]]


def _finite(xyz: np.ndarray) -> np.ndarray:
    clean(xyz := np.array(xyz))
    return xyz


def convert_mmaction2(total: int, frames: np.ndarray, ids: list[int], xyz: np.ndarray) -> np.ndarray:
    """float64 (M, T, 25, 3), M at most 2."""
    data = _by_order(total, frames, _finite(xyz))
    data = data[data.reshape(len(data), -1).sum(1) != 0]
    if not len(data):
        raise Bad("every joint of every body is 0")
    return data


@dataclass
class _Track:
    start: int
    pose: np.ndarray  # float32 (n, 25, 3)
    motion: np.float32

    @property
    def end(self) -> int:
        return self.start + len(self.pose)


def convert_pyskl(total: int, frames: np.ndarray, ids: list[int], xyz: np.ndarray) -> np.ndarray:
    """float32 (M, T, 25, 3), M at most 2, denoised; empty frames do not count."""
    xyz = _finite(xyz).astype(np.float32)
    when = np.searchsorted(np.unique(frames), frames)
    tracks = []
    for body in dict.fromkeys(ids):
        rows = np.array([i for i, one in enumerate(ids) if one == body])
        tracks.append(_Track(int(when[rows[0]]), xyz[rows], _motion(xyz[rows])))
    tracks.sort(key=lambda track: -track.motion)
    if len(tracks) == 1:
        return tracks[0].pose[None]
    tracks = [track for track in tracks if len(track.pose) > 11]
    if len(tracks) != 1:
        tracks = _without_spread(tracks)
    if not tracks:
        raise Bad("all of its bodies are too short or too widely spread, so that pyskl's filters leave none")
    return tracks[0].pose[None] if len(tracks) == 1 else _two_slots(tracks)


def _motion(pose: np.ndarray) -> np.float32:
    return np.sum(np.var(pose.reshape(-1, 3), axis=0))


def _without_spread(tracks: list[_Track]) -> list[_Track]:
    kept = []
    for track in tracks:
        extent = track.pose.max(1) - track.pose.min(1)
        valid = extent[:, 0] <= np.float32(0.8) * extent[:, 1]
        if 1 - valid.sum() / len(valid) >= 0.69754:
            continue
        if not valid.all():
            track.motion = min(track.motion, _motion(track.pose[valid]))
        kept.append(track)
    return sorted(kept, key=lambda track: -track.motion)


def _two_slots(tracks: list[_Track]) -> np.ndarray:
    data = np.zeros((_SLOTS, max(track.end for track in tracks), _JOINTS, 3), np.float32)
    spans = [(tracks[0].start, tracks[0].end), (0, 0)]
    data[0, tracks[0].start : tracks[0].end] = tracks[0].pose
    for track in tracks[1:]:
        for slot, (start, end) in enumerate(spans):
            if max(start, track.start) >= min(end, track.end):
                data[slot, track.start : track.end] = track.pose
                spans[slot] = min(start, track.start), max(end, track.end)
                break
    visible = np.flatnonzero(np.abs(data).sum((0, 2, 3)) >= 1e-3)
    if not len(visible):
        raise Bad("every joint of every body is 0")
    data = data[:, visible[0] : visible[-1] + 1]
    first = np.abs(data[:, 0, 1]).sum(-1)
    return data[::-1] if first[0] < 1e-3 < first[1] else data


CONVERT = {"mmaction2": convert_mmaction2, "pyskl": convert_pyskl, "original": convert_mmaction2}


def _format(name: str, title: str, classes: int | None) -> Format:
    return Format(
        name, title, _matches if classes is None else lambda tree: False, lambda tree, o: _open(classes, tree, o)
    )


FORMATS = (
    _format("ntu", "raw NTU RGB+D: .skeleton files in folders or zips", None),
    _format("ntu60", "the 60 actions of NTU RGB+D 60 alone, of a source that may hold all 120", 60),
    _format("ntu120", "raw NTU RGB+D 120", 120),
)
