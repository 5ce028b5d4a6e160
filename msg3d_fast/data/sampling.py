"""Which frames of a clip the network sees: UniformSampleFrames, PoseDecode, PadTo and FormatGCNInput on batches.

A clip of n frames becomes L = clip_len frames:

    n < L         L consecutive frames from a random start (test: starts spread over the clips), wrapped around
    L <= n < 2L   n - L of the L + 1 gaps skip a frame, so the frames are strictly increasing
    n >= 2L       one random frame from each of L equal segments

Source: mmaction2 `pose_transforms.py`, pyskl `sampling.py` (which draws two more numbers before each clip).
"""

import numpy as np

from ..errors import UserError
from .draws import Draws, LegacyDraws
from .ragged import Ragged

TEST_SEED = 255  # upstream's
SEMANTICS = ("mmaction2", "pyskl")


def check_semantics(semantics: str) -> str:
    """The semantics, if there are some of that name."""
    if semantics not in SEMANTICS:
        raise UserError(f"unknown semantics {semantics!r}; expected one of {', '.join(SEMANTICS)}")
    return semantics


def uniform_sample(
    total_frames: np.ndarray,
    clip_len: int,
    num_clips: int,
    draws: Draws,
    *,
    test: bool = False,
    semantics: str = "mmaction2",
    p_interval: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Sample `num_clips` clips of `clip_len` frames from each sample.

    Args:
        total_frames: int (B,), at least 1.
        clip_len: L frames of each sampled clip.
        num_clips: clips of each sample.
        draws: where the random numbers come from.
        test: spread the starts of short clips instead of drawing them.
        semantics: "pyskl" draws a ratio and a shift before every clip, the others only where there is a choice.
        p_interval: range of that ratio, the part of the sample that a clip covers.

    Returns:
        int64 (B, num_clips, L), frame numbers in [0, total_frames).
    """
    total_frames = np.asarray(total_frames, np.int64)
    everyone = np.arange(len(total_frames))
    inds = np.empty((len(total_frames), num_clips, clip_len), np.int64)
    for k in range(num_clips):
        frames, shift = total_frames, np.zeros_like(total_frames)
        if semantics == "pyskl" or p_interval != (1.0, 1.0):
            ratio = draws.uniform((), everyone) * (p_interval[1] - p_interval[0]) + p_interval[0]
            frames = np.maximum((ratio * total_frames).astype(np.int64), 1)
            shift = draws.integers(total_frames - frames + 1, everyone)
        start = np.where(frames < num_clips, k, k * frames // num_clips) if test else None
        inds[:, k] = _sample_once(frames, clip_len, draws, start) + shift[:, None]
    return inds % total_frames[:, None, None]


def _sample_once(frames: np.ndarray, clip_len: int, draws: Draws, start: np.ndarray | None) -> np.ndarray:
    inds = np.empty((len(frames), clip_len), np.int64)
    step = np.arange(clip_len)

    rows = np.flatnonzero(frames < clip_len)
    if len(rows):
        first = draws.integers(frames[rows], rows) if start is None else start[rows]
        inds[rows] = first[:, None] + step

    rows = np.flatnonzero((clip_len <= frames) & (frames < 2 * clip_len))
    if len(rows):
        skipped = draws.subsets(clip_len + 1, frames[rows] - clip_len, rows)
        inds[rows] = step + np.cumsum(skipped, axis=1)[:, :-1]

    rows = np.flatnonzero(frames >= 2 * clip_len)
    if len(rows):
        border = np.arange(clip_len + 1) * frames[rows, None] // clip_len
        inds[rows] = border[:, :-1] + draws.integers(np.diff(border, axis=1), rows)
    return inds


def sample_for_test(
    total_frames: np.ndarray,
    clip_len: int,
    num_clips: int,
    *,
    semantics: str = "mmaction2",
    p_interval: tuple[float, float] = (1.0, 1.0),
    seed: int = TEST_SEED,
) -> np.ndarray:
    """The clips that upstream tests on: every sample is drawn from a generator freshly seeded with `seed`.

    Returns:
        int64 (B, num_clips, clip_len); equal `total_frames` give equal clips.
    """
    lengths, which = np.unique(np.asarray(total_frames, np.int64), return_inverse=True)
    draws = LegacyDraws([np.random.RandomState(seed) for _ in lengths])
    table = uniform_sample(lengths, clip_len, num_clips, draws, test=True, semantics=semantics, p_interval=p_interval)
    return table[which.reshape(-1)]


def select_persons(num_person: np.ndarray, slots: int, mode: str = "zero") -> tuple[np.ndarray, np.ndarray]:
    """Fill the person slots of the network input: the first `slots` persons, absent ones left zero.

    Args:
        num_person: int (B,), M of each clip.
        slots: person slots of the network.
        mode: "zero", or "loop" to repeat the only person of a clip in every slot.

    Returns:
        person int64 (B, slots) to read, and bool (B, slots): the slot is filled.
    """
    person = np.broadcast_to(np.arange(slots), (len(num_person), slots))
    filled = person < num_person[:, None]
    if mode == "loop":
        filled = filled | (num_person[:, None] == 1)
    return np.where(person < num_person[:, None], person, 0), filled


def decode(clips: Ragged, frame_inds: np.ndarray) -> np.ndarray:
    """PoseDecode: the frames `frame_inds` (N, F) of clips that have the same M, as float32 (N, M, F, V, C)."""
    person = np.arange(int(clips.num_person.max(initial=0)))
    rows = clips.row(np.arange(len(clips))[:, None, None], person[:, None], frame_inds[:, None])
    return clips.keypoint[rows].astype(np.float32)


def pad_to(clips: Ragged, length: int, mode: str = "loop", start_index: int = 0) -> Ragged:
    """PadTo: every clip `length` frames long, by repeating it or by appending zero frames."""
    if (longest := clips.total_frames.max(initial=0)) > length:
        raise UserError(f"pad_to: a clip has {longest} frames, expected at most length {length}; raise length")
    padded = Ragged(keypoint=clips.keypoint, num_person=clips.num_person, total_frames=np.full(len(clips), length))
    clip, person, frame = padded.index(np.arange(len(clips)))
    keypoint = clips.keypoint[clips.row(clip, person, (frame + start_index) % clips.total_frames[clip])]
    if mode == "zero":
        keypoint[frame >= clips.total_frames[clip]] = 0
    return Ragged(keypoint=keypoint, num_person=padded.num_person, total_frames=padded.total_frames)


def format_input(clips: Ragged, num_person: int = 2, mode: str = "zero", num_clips: int = 1) -> np.ndarray:
    """FormatGCNInput: clips of equal length, cut into `num_clips`, as (N, num_clips, num_person, L, V, C)."""
    length = int(clips.total_frames[0])
    if (clips.total_frames != length).any() or length % num_clips:
        raise UserError(
            f"format_input: clips of {clips.total_frames.min()} to {clips.total_frames.max()} frames cannot be cut "
            f"into {num_clips} clips of equal length; sample or pad them first"
        )
    person, filled = select_persons(clips.num_person, num_person, mode)
    frame = np.arange(length).reshape(num_clips, 1, -1)
    rows = clips.row(np.arange(len(clips))[:, None, None, None], person[:, None, :, None], frame)
    out = clips.keypoint[rows]
    out[~np.broadcast_to(filled[:, None, :, None], rows.shape)] = 0
    return out
