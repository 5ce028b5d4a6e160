"""Clips of different lengths in one array.

Clip i has num_person[i] = M persons over total_frames[i] = T frames; its M*T skeletons are consecutive rows of
`keypoint`, person by person, starting at row offsets[i]:

    row(i, m, t) = offsets[i] + m*T + t

A subset is other `offsets` into the same `keypoint`, so that it costs nothing and a memory-mapped array stays on disk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Rows that one step of a pass over a set takes at a time: its intermediate arrays then stay in the cache.
CHUNK_ROWS = 1 << 11


@dataclass(frozen=True, kw_only=True, eq=False)
class Ragged:
    """N clips as rows of one array.

    Args:
        keypoint: float (R, V, C) array or memory map that holds the rows of every clip, and perhaps of others.
        num_person: int (N,), M of each clip.
        total_frames: int (N,), T of each clip.
        offsets: int64 (N,), first row of each clip; by default the clips follow one another.
    """

    keypoint: np.ndarray
    num_person: np.ndarray
    total_frames: np.ndarray
    offsets: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_person", np.asarray(self.num_person, np.int64))
        object.__setattr__(self, "total_frames", np.asarray(self.total_frames, np.int64))
        if self.offsets is None:
            object.__setattr__(self, "offsets", np.cumsum(self.num_rows) - self.num_rows)

    def __len__(self) -> int:
        return len(self.num_person)

    @property
    def num_rows(self) -> np.ndarray:
        """int64 (N,): M*T of each clip."""
        return self.num_person * self.total_frames

    @property
    def num_joints(self) -> int:
        return self.keypoint.shape[1]

    def clip(self, i: int) -> np.ndarray:
        """Clip i as (M, T, V, C): a view of `keypoint`."""
        rows = self.keypoint[self.offsets[i] : self.offsets[i] + self.num_rows[i]]
        return rows.reshape(self.num_person[i], self.total_frames[i], *self.keypoint.shape[1:])

    def chunks(self, max_rows: int = CHUNK_ROWS) -> Iterator[np.ndarray]:
        """Index arrays of consecutive clips with at most `max_rows` rows together (a longer clip comes alone)."""
        group = (np.cumsum(self.num_rows) - 1) // max_rows
        edges = np.flatnonzero(np.diff(group)) + 1
        for part in np.split(np.arange(len(self)), edges):
            if len(part):
                yield part

    def index(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(clip, person, frame) of every row of these clips, in order; int64 (R,) each."""
        count = self.num_rows[clips]
        clip = np.repeat(clips, count)
        within = np.arange(len(clip)) - np.repeat(np.cumsum(count) - count, count)
        return clip, within // self.total_frames[clip], within % self.total_frames[clip]

    def row(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Rows of `keypoint` that hold these skeletons."""
        return self.offsets[clip] + person * self.total_frames[clip] + frame


def ragged(clips: list[np.ndarray]) -> Ragged:
    """Clips (M, T, V, C) of one dtype, V and C as one ragged batch."""
    return Ragged(
        keypoint=np.concatenate([clip.reshape(-1, *clip.shape[2:]) for clip in clips]),
        num_person=np.array([clip.shape[0] for clip in clips]),
        total_frames=np.array([clip.shape[1] for clip in clips]),
    )
