"""Clips to look at: a data set's, by id, as animations that say what a run made of them."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import visualize
from .data import ClipSet, open_dataset
from .errors import UserError
from .files import write_whole
from .score_files import Scores, read_scores


def view(
    data: str | Path, ids: Sequence[str], out: str | Path = ".", *, run: str | Path | None = None, fps: float = 15.0
) -> list[Path]:
    """Writes an animated GIF of each clip, with its class and, where a run is given, the class that it was taken for.

    Args:
        data: what `data.open_dataset` opens.
        ids: of the clips.
        out: folder of the files, which are named after the clips.
        run: run folder of a test, or its scores.
        fps: frames per second.

    Returns:
        The files.

    Raises:
        UserError: no such clip, data, run or folder.
    """
    if not 0.01 <= fps <= 50:
        raise UserError(f"{fps:g} frames per second are asked for, expected at least 0.01 and at most 50, as GIFs can")
    clips, out = open_dataset(data), Path(out)
    scores = None if run is None else read_scores(run)
    numbers = [_position(clips.frame_dir.tolist(), one, str(data)) for one in ids]
    if not out.is_dir():
        raise UserError(f"{out}: there is no such folder; make it, or choose another")
    files, upright = [], _upright(clips)
    for number in numbers:
        content = visualize.skeleton_animation(
            clips.clip(number),
            clips.layout.inward,
            [str(clips.frame_dir[number]), *_words(clips, number, scores)],
            upright=upright,
            fps=fps,
        )
        path = out / f"{str(clips.frame_dir[number]).replace('/', '_')}.gif"
        write_whole(path, content, what="animation")
        files.append(path)
    return files


def _upright(clips: ClipSet) -> bool:
    """Whether the second coordinate grows upwards: told from heads and feet, else so in space and not in images."""
    names = [name.lower() for name in clips.layout.joint_names]
    head, foot = ([any(word in name for word in words) for name in names] for words in (_HEAD, _FOOT))
    above = below = 0
    for i in range(0, len(clips), max(1, len(clips) // 50)):
        poses = np.asarray(clips.clip(i), np.float64)
        seen = poses.any(-1)  # (M, T, V)
        if seen[..., head].any() and seen[..., foot].any():
            higher = poses[..., head, 1][seen[..., head]].mean() > poses[..., foot, 1][seen[..., foot]].mean()
            above, below = above + higher, below + (not higher)
    return above > below if above != below else clips.channels == "xyz"


_HEAD, _FOOT = ("head", "nose", "neck"), ("ankle", "foot")


def _words(clips: ClipSet, number: int, scores: Scores | None) -> list[str]:
    """The class or classes of a clip, and the most probable one."""
    label = clips.label[number]
    classes = np.flatnonzero(label) if clips.multi_label else [label]
    lines = ["class: " + (", ".join(clips.label_names[i] for i in classes) or "none")]
    if scores is not None:
        if scores.ids is None:
            raise UserError(f"{scores.name}: has no ids of clips; give the scores.npz or run folder of a test")
        row = scores.probabilities[_position(scores.ids.tolist(), str(clips.frame_dir[number]), scores.name)]
        names = scores.label_names or clips.label_names
        first = int(row.argmax())
        lines.append(f"predicted: {names[first] if first < len(names) else first} ({row[first]:.1%})")
    return lines


def _position(ids: list[str], wanted: str, where: str) -> int:
    if wanted not in ids:
        near = difflib.get_close_matches(wanted, ids, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"ids look like {ids[0]!r}" if ids else "it is empty"
        raise UserError(f"{where}: has no clip {wanted!r}; {hint}")
    return ids.index(wanted)
