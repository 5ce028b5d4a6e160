"""What the authors' repository does to its arrays: pre_normalization and the feeder's transforms.

Their data are already padded to one length, so batches are dense: (N, C, T, V, M). `PreNormalization` does the same to
rows of ragged clips, as batches ask for them.
Source: MS-G3D `data_gen/preprocess.py`, `feeders/tools.py`.
"""

import numpy as np

from ..errors import UserError
from . import libm
from .align import XAXIS, ZAXIS, rotate, rotation_onto
from .draws import Draws
from .half import widen
from .normalize import Normalization
from .ragged import Ragged

_ANGLES = np.array([-10.0, -5.0, 0.0, 5.0, 10.0])
_SCALES = np.array([0.9, 1.0, 1.1])
_MOVES = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])


def pre_normalization(data: np.ndarray, zaxis: tuple[int, int] = ZAXIS, xaxis: tuple[int, int] = XAXIS) -> np.ndarray:
    """Fill empty frames, centre every frame on the main person's spine, turn spine to z and shoulders to x.

    A person whose first frame is empty has its visible frames moved to the front; what remains empty at the end repeats
    the frames before. Unlike PreNormalize3D, no frame is deleted, persons keep their order and the centre moves along.

    Args:
        data: float (N, 3, T, V, M), zeros where nothing was seen.

    Returns:
        the same shape and dtype.
    """
    s = data.transpose(0, 4, 2, 3, 1).copy()  # (N, M, T, V, C)
    num, people, length, joints, _ = s.shape
    empty = s.sum((3, 4)) == 0  # (N, M, T)
    frame = np.arange(length)
    squeezed = np.where(empty[..., :1], np.argsort(empty, axis=2, kind="stable"), frame)
    visible_last = length - np.argmin(np.take_along_axis(empty, squeezed, 2)[..., ::-1], axis=2)
    period = np.where(empty.all(2), length, visible_last)
    source = np.take_along_axis(squeezed, frame % period[..., None], 2)
    s = np.take_along_axis(s, source[..., None, None], 2)

    present = (s.sum(4) != 0)[..., None]
    s = np.where(empty.all(2)[..., None, None, None], s, (s - s[:, :1, :, 1:2]) * present).astype(data.dtype)
    for (start, end), unit in ((zaxis, (0, 0, 1)), (xaxis[::-1], (1, 0, 0))):
        turn = rotation_onto(s[:, 0, 0, end] - s[:, 0, 0, start], unit)
        turned = rotate(s.reshape(num, -1, 3), turn)
        s = turned.reshape(num, people, length, joints, 3).astype(data.dtype)
    return s.transpose(0, 4, 2, 3, 1)


class PreNormalization(Normalization):
    """`pre_normalization` of clips padded to one length, fitted to a set.

    Args:
        clips: keypoints (x, y, z), all-zero joints are missing.
        length: frames of every clip afterwards; what a clip has not, it repeats.
        center: joint of the main person that every frame is centred on.
        zaxis, xaxis: (from, to) and (right, left) joints of the two rotations; None leaves a rotation out.

    Raises:
        UserError: a clip is longer.
    """

    def __init__(
        self,
        clips: Ragged,
        length: int,
        *,
        center: int = 1,
        zaxis: tuple[int, int] | None = ZAXIS,
        xaxis: tuple[int, int] | None = XAXIS,
    ) -> None:
        super().__init__(clips)
        check_length(clips, length)
        turns = ["spine to z"] * (zaxis is not None) + ["shoulders to x"] * (xaxis is not None)
        what = ", ".join([f"every frame centred on joint {center}", *turns])
        self.description = f"3-D as the authors: {what}, repeated to {length} frames"
        self.total_frames = np.full(len(clips), length)
        self._center = center
        self._first = np.cumsum(clips.num_person) - clips.num_person  # of the persons of each clip
        self._find_visible_frames()
        self._turns: list[np.ndarray] = []
        everyone = np.arange(len(clips))
        first = self._centred(everyone, 0 * everyone, 0 * everyone)
        for pair, unit in ((zaxis, (0, 0, 1)), (xaxis, (1, 0, 0))):
            if pair is None or not len(clips):
                continue
            start, end = pair if unit[2] else pair[::-1]
            turn = rotation_onto(first[:, end] - first[:, start], unit)
            self._turns.append(turn)
            first = rotate(first, turn).astype(np.float32)

    def _find_visible_frames(self) -> None:
        """`_period` and `_source`: frame p of a person shows its frame _source[row of (p mod _period)]."""
        clips = self.clips
        sources, periods = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for part in clips.chunks():
            clip, person, frame = clips.index(part)
            x = widen(clips.keypoint.take(clips.row(clip, person, frame), axis=0))
            visible = x.sum((1, 2)) != 0
            owner = np.cumsum(frame == 0) - 1  # which person of this part
            order = frame.copy()
            late = ~visible[frame == 0][owner]
            order[late & ~visible] += len(frame)  # empty frames go to the end where the first one is empty
            sources.append(frame[np.lexsort((order, owner))])
            last = np.where(late, np.cumsum(visible) - (np.cumsum(visible) - visible)[frame == 0][owner], frame + 1)
            period = np.zeros(owner[-1] + 1, np.int64)
            np.maximum.at(period, owner[visible], last[visible])
            periods.append(period)
        self._source, self._period = np.concatenate(sources), np.concatenate(periods)
        count = np.repeat(clips.total_frames, clips.num_person)
        self._start = np.cumsum(count) - count  # of each person in _source

    def skeletons(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        x = self._centred(clip, person, frame)
        for turn in self._turns:
            x = rotate(x, turn[clip]).astype(np.float32)
        return x

    def _centred(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        x = self._repeated(clip, person, frame)
        main = self._repeated(clip, 0 * person, frame)[:, self._center]
        visible = self._period[self._first[clip] + person] > 0
        present = x.sum(2, keepdims=True) != 0
        return np.where(visible[:, None, None], (x - main[:, None]) * present, x)

    def _repeated(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        who, frames = self._first[clip] + person, self.clips.total_frames[clip]
        period = self._period[who]
        place = frame % np.where(period > 0, period, np.maximum(frame + 1, 1))
        source = self._source[self._start[who] + np.minimum(place, frames - 1)]
        x = widen(self.clips.keypoint.take(self.clips.row(clip, person, source), axis=0))
        return np.where((place < frames)[:, None, None], x, np.float32(0))


def check_length(clips: Ragged, length: int) -> None:
    """Raise UserError where a clip is longer than the `length` that all are padded to."""
    longest = int(clips.total_frames.max(initial=0))
    if longest > length:
        raise UserError(
            f"data.clip_len is {length}, but the authors' recipe takes whole clips and one has {longest} frames; set "
            f"--data.clip_len={longest}, or --data.semantics=mmaction2 to sample frames"
        )


def random_move(data: np.ndarray, draws: Draws) -> np.ndarray:
    """Turn, scale and shift x and y by amounts that run linearly from a random start to a random end; same dtype."""
    length, everyone = data.shape[2], np.arange(len(data))

    def path(candidates: np.ndarray) -> np.ndarray:
        ends = candidates[draws.integers(np.full((len(data), 2), len(candidates)), everyone)]
        line = np.arange(length) * ((ends[:, 1:] - ends[:, :1]) / max(length - 1, 1)) + ends[:, :1]
        if length > 1:
            line[:, -1] = ends[:, 1]
        return line[..., None, None]  # (N, T, 1, 1)

    angle, scale, right, up = (path(candidates) for candidates in (_ANGLES, _SCALES, _MOVES, _MOVES))
    angle = angle * np.pi / 180
    x, y = data[:, 0].astype(np.float64), data[:, 1].astype(np.float64)
    cos, sin = libm.cos(angle) * scale, libm.sin(angle) * scale
    out = data.copy()
    out[:, 0] = cos * x + -sin * y + right
    out[:, 1] = sin * x + cos * y + up
    return out


def _shifted(data: np.ndarray, source: np.ndarray) -> np.ndarray:
    """float64: frame t of clip n is data[n, :, source[n, t]], zero where that number is out of range."""
    inside = (source >= 0) & (source < data.shape[2])
    index = np.where(inside, source, 0)[:, None, :, None, None]
    out = np.take_along_axis(data, index, 2).astype(np.float64)
    return out * inside[:, None, :, None, None]


def random_shift(data: np.ndarray, draws: Draws) -> np.ndarray:
    """Move the visible part of each clip to a random place; float64."""
    length = data.shape[2]
    seen = (data != 0).any((1, 3, 4))
    begin = seen.argmax(1)
    size = length - seen[:, ::-1].argmax(1) - begin
    start = draws.integers(length - size + 1, np.arange(len(data)))
    place = np.arange(length) - start[:, None]
    return _shifted(data, np.where((place >= 0) & (place < size[:, None]), place + begin[:, None], -1))


def auto_pad(data: np.ndarray, size: int, draws: Draws | None = None) -> np.ndarray:
    """Pad clips shorter than `size` with zero frames (float64): at the end, or on both sides by a draw."""
    length = data.shape[2]
    if length >= size:
        return data
    begin = np.zeros(len(data), np.int64)
    if draws is not None:
        begin = draws.integers(np.full(len(data), size - length + 1), np.arange(len(data)))
    return _shifted(data, np.arange(size) - begin[:, None])


def random_choose(data: np.ndarray, size: int, draws: Draws) -> np.ndarray:
    """Cut a random piece of `size` frames from each clip, or pad it to that size at random."""
    length = data.shape[2]
    if length <= size:
        return auto_pad(data, size, draws)
    begin = draws.integers(np.full(len(data), length - size + 1), np.arange(len(data)))
    return np.take_along_axis(data, (begin[:, None] + np.arange(size))[:, None, :, None, None], 2)


def openpose_match(data: np.ndarray) -> np.ndarray:
    """Follow persons from frame to frame by distance, the most confident first; sort them by confidence; float64.

    Args:
        data: float (N, 3, T, V, M) with channels (x, y, score).
    """
    num, _, length, _, people = data.shape
    clip = np.arange(num)[:, None]
    rank = np.argsort(-data[:, 2, :-1].sum(2), axis=2)  # (N, T-1, M)
    here, there = data[:, :2, :-1, :, :, None], data[:, :2, 1:, :, None, :]
    distance = ((there - here) ** 2).sum(3).sum(1)  # (N, T-1, M, M)
    follow = np.zeros((num, length, people), np.int64)
    follow[:, 0] = np.arange(people)
    for m in range(people):
        mover = (rank == m).argmax(2)[..., None]  # (N, T-1, 1)
        nearest = np.take_along_axis(distance, mover[..., None], 2).argmin(3)  # (N, T-1, 1)
        np.put_along_axis(distance, np.broadcast_to(nearest[:, :, None], (*distance.shape[:3], 1)), np.inf, 3)
        np.put_along_axis(follow[:, 1:], mover, nearest, 2)
    for t in range(1, length):
        follow[:, t] = follow[clip, t, follow[:, t - 1]]
    matched = np.take_along_axis(data, follow[:, None, :, None], 4).astype(np.float64)
    order = np.argsort(-matched[:, 2].sum(2).sum(1), axis=1)
    return np.take_along_axis(matched, order[:, None, None, None], 4)
