"""Predictions for whole sources, such as a folder of pose files or a video, as a table, CSV and JSON."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .data import ClipSet
from .errors import UserError
from .evaluation import csv_text
from .files import write_whole
from .predict import Predictor, Segment

SUFFIXES = (".json", ".csv")


class Source(Protocol):
    """Clips that are read in parts: each part is a number of pieces and their clips, or None where none can be used."""

    skipped: list[tuple[str, str]]
    missing: int
    fps: float | None

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[int, ClipSet | None]]: ...


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one clip, or for one person in it.

    Args:
        clip: its id.
        frames: its length.
        segments: of a timeline, in order of time; of a whole clip its likeliest classes, likeliest first.
        persons: that were looked at.
        person: place among the clip's persons, or None for all of them together.
    """

    clip: str
    frames: int
    segments: list[Segment]
    persons: int
    person: int | None = None


def predict(
    predictor: Predictor,
    source: Source,
    *,
    window: int | None = None,
    step: int | None = None,
    top: int = 5,
    per_person: bool = False,
    progress: Callable[[int], None] = lambda pieces: None,
) -> list[Prediction]:
    """Predict for every clip of a source.

    Args:
        predictor: the network.
        source: the clips.
        window: frames of the windows that slide over each clip; without it clips are predicted as wholes.
        step: frames from one window to the next; by default half a window.
        top: classes named for each whole clip.
        per_person: every person of a clip by themself, instead of all together as the network was trained.
        progress: called with the number of pieces read.

    Raises:
        UserError: clips that the network cannot take, or none at all.
    """
    found: list[Prediction] = []
    for pieces, clips in source:
        if clips is not None:
            clips, person = _split(clips) if per_person else (clips, None)
            if clips is not None:
                found += _predict(predictor, clips, person, window, step, top)
        progress(pieces)
    if not found:
        reason = "; ".join(f"{name}: {reason}" for name, reason in source.skipped[:1])
        raise UserError(f"none of {len(source)} clips or files can be used: {reason or 'nobody is in any of them'}")
    return found


def _split(clips: ClipSet) -> tuple[ClipSet | None, np.ndarray]:
    """Every person who is seen as a clip, and their places (N,)."""
    clip = np.repeat(np.arange(len(clips)), clips.num_person)
    person = np.concatenate([np.arange(count) for count in clips.num_person])
    seen = np.concatenate([clips.clip(i).any((1, 2, 3)) for i in range(len(clips))])
    clip, person = clip[seen], person[seen]
    if not len(clip):
        return None, person
    offsets = clips.offsets[clip] + person * clips.total_frames[clip]
    return replace(clips.subset(clip), num_person=np.ones(len(clip)), offsets=offsets), person


def _predict(
    predictor: Predictor, clips: ClipSet, person: np.ndarray | None, window: int | None, step: int | None, top: int
) -> Iterator[Prediction]:
    scores = predictor.scores(clips) if window is None else None
    for i, frames in enumerate(clips.total_frames.tolist()):
        if scores is not None:
            order = np.argsort(-scores[i], kind="stable")[:top].tolist()
            names = predictor.label_names
            segments = [Segment(0, frames - 1, label, names[label], float(scores[i, label])) for label in order]
        else:
            images = None if clips.img_shape is None else clips.img_shape[i]
            segments = predictor.segments(clips.clip(i), window, step or max(1, window // 2), images)
        who, persons = None if person is None else int(person[i]), int(clips.num_person[i])
        yield Prediction(str(clips.frame_dir[i]), frames, segments, persons, who)


def rows(found: list[Prediction], timeline: bool, fps: float | None = None) -> tuple[list[str], list[list[Any]]]:
    """Names of columns, and a row for each segment or each of the likeliest classes."""
    persons = any(one.person is not None for one in found)
    seconds = timeline and fps is not None
    header = ["clip", *["person"] * persons]
    header += ["start", "end", *["start_s", "end_s"] * seconds] if timeline else ["frames", "rank"]
    lines = []
    for one in found:
        for rank, s in enumerate(one.segments, 1):
            line = [one.clip, *[one.person] * persons]
            if timeline:
                line += [s.start, s.end, *([f"{s.start / fps:.2f}", f"{(s.end + 1) / fps:.2f}"] if seconds else [])]
            else:
                line += [one.frames, rank]
            lines.append([*line, s.label, s.name, f"{s.probability:.4f}"])
    return [*header, "label", "name", "probability"], lines


def table(found: list[Prediction], timeline: bool, fps: float | None = None) -> str:
    """What `rows` holds as text in columns, a whole clip on one line."""
    header, lines = rows(found, timeline, fps)
    if not timeline:
        header = [*header[: header.index("rank")], "classes"]
        lines = [
            [one.clip, *([one.person] if one.person is not None else []), one.frames, _named(one.segments)]
            for one in found
        ]
    cells = [header, *([str(cell) for cell in line] for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _named(segments: list[Segment]) -> str:
    return ", ".join(f"{s.name} {s.probability:.3f}" for s in segments)


def check_out(path: Path) -> Path:
    """The path, if predictions can be written there.

    Raises:
        UserError: another suffix than .json or .csv, or no such folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first")
    return path


def write(found: list[Prediction], path: Path, *, timeline: bool, about: dict[str, Any], fps: float | None) -> None:
    """Write predictions as CSV (see `rows`) or as JSON, one entry for each clip or person; whole or not at all."""
    if path.suffix.lower() == ".csv":
        text = csv_text(*rows(found, timeline, fps))
    else:
        clips = []
        for one in found:
            entry: dict[str, Any] = {"clip": one.clip, "frames": one.frames}
            entry |= {} if one.person is None else {"person": one.person}
            drop = () if timeline else ("start", "end")
            parts = [{key: v for key, v in asdict(s).items() if key not in drop} for s in one.segments]
            clips.append(entry | {"segments" if timeline else "top": parts})
        text = json.dumps(about | ({} if fps is None else {"fps": fps}) | {"clips": clips}, indent=1) + "\n"
    write_whole(path, text.encode())
