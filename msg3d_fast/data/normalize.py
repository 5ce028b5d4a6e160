"""2-D normalisation of ragged clips, and what every normalisation has in common.

A normalisation is fitted once to a set (a few numbers per clip) and then applied to any of its rows, so that a big set
can be normalised batch by batch:

    image     x <- (x - w/2) / (w/2),  y <- (y - h/2) / (h/2)
    box       x <- (x - middle) / extent * 2, with the box around the joints that are present, over the whole clip

Source: `PreNormalize2D` of mmaction2 (the file's own float type; missing joints at (0, 0) become (-1, -1)) and of pyskl
(float32; joints whose score is at most 0.01 become (0, 0)).
"""

import numpy as np

from .half import divide, subtract, widen
from .ragged import Ragged

SCORE_THRESHOLD = 0.01  # pyskl's: a joint with at most this confidence counts as missing
DEFAULT_IMG_SHAPE = (1080, 1920)  # upstream's, for clips that do not say (h, w)


class Normalization:
    """No normalisation; and the interface of those that do something.

    `total_frames` (N,) is the length of each clip afterwards.
    """

    description = "no normalisation"

    def __init__(self, clips: Ragged) -> None:
        self.clips = clips
        self.total_frames = clips.total_frames

    def rows(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Rows of `clips.keypoint` from which these (normalised) skeletons come."""
        return self.clips.row(clip, person, frame)

    def apply(self, x: np.ndarray, clip: np.ndarray) -> np.ndarray:
        """Normalise rows x (R, V, C) that belong to the clips `clip` (R,)."""
        return x

    def skeletons(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """These skeletons, normalised: (R, V, C)."""
        return self.apply(self.clips.keypoint.take(self.rows(clip, person, frame), axis=0), clip)


class ImageNormalization(Normalization):
    """PreNormalize2D by image size.

    Args:
        clips: keypoints (x, y) or (x, y, score) in pixels.
        img_shape: int (N, 2) = (h, w) of each clip, or None for 1080 x 1920.
        masked: as pyskl does: in float32, joints without confidence become (0, 0).
    """

    def __init__(self, clips: Ragged, img_shape: np.ndarray | None = None, *, masked: bool = False) -> None:
        super().__init__(clips)
        shape = np.broadcast_to(DEFAULT_IMG_SHAPE if img_shape is None else img_shape, (len(clips), 2))
        self._masked = masked
        dtype = np.float32 if masked else clips.keypoint.dtype
        half = np.ones((len(clips), clips.keypoint.shape[2]))
        half[:, :2] = shape[:, ::-1] / 2
        self._middle = per_row(half * [1, 1, 0][: half.shape[1]], clips.num_joints, dtype)
        self._half = per_row(half, clips.num_joints, dtype)
        where = "image size" + ("" if img_shape is not None else " (1080 x 1920, as the clips do not say)")
        self.description = f"2-D by {where}" + (", joints without confidence at 0" if masked else "")

    def apply(self, x: np.ndarray, clip: np.ndarray) -> np.ndarray:
        flat = (widen(x) if self._masked else x).reshape(len(x), -1)
        y = divide(subtract(flat, self._middle.take(clip, 0)), self._half.take(clip, 0)).reshape(x.shape)
        if self._masked and y.shape[2] == 3:
            hide(y, y[..., 2] <= SCORE_THRESHOLD)
        return y


class BoxNormalization(Normalization):
    """Put the box around each clip's present joints at [-1, 1].

    Args:
        clips: keypoints (x, y) or (x, y, score) in any unit.
        upstream: pyskl's `auto` mode: x and y are scaled apart, boxes of at most 10 pixels stay as they are, and
            without scores every joint counts as present. Otherwise the larger side sets the scale of both, and without
            scores joints at (0, 0) are missing and stay there.
    """

    def __init__(self, clips: Ragged, *, upstream: bool = False) -> None:
        super().__init__(clips)
        self._upstream = upstream
        self.description = "2-D by bounding box" + ("" if upstream else ", aspect kept, missing joints at 0")
        low = np.empty((len(clips), 2), np.float32)
        high = np.empty_like(low)
        for part in clips.chunks():
            clip, person, frame = clips.index(part)
            x = widen(clips.keypoint.take(clips.row(clip, person, frame), axis=0))
            present = self._present(x)
            first = np.cumsum(clips.num_rows[part]) - clips.num_rows[part]
            for c in range(2):
                low[part, c] = np.minimum.reduceat(np.where(present, x[..., c], np.inf).min(1), first)
                high[part, c] = np.maximum.reduceat(np.where(present, x[..., c], -np.inf).max(1), first)
        nobody = low > high
        low[nobody] = high[nobody] = 0
        extent = high - low
        usable = (extent > 10).all(1) if upstream else (extent > 0).any(1)
        if not upstream:
            extent = np.repeat(extent.max(1, keepdims=True), 2, axis=1)
        width = clips.keypoint.shape[2]
        middle, size = np.zeros((2, len(clips), width), np.float32)
        middle[:, :2] = np.where(usable[:, None], (high + low) / 2, 0)
        size[:] = 2  # x / 2 * 2 leaves a channel, or the whole clip, as it is
        size[usable, :2] = extent[usable]
        self._middle = per_row(middle, clips.num_joints, np.float32)
        self._size = per_row(size, clips.num_joints, np.float32)

    def _present(self, x: np.ndarray) -> np.ndarray:
        if x.shape[-1] == 3:
            return x[..., 2] > SCORE_THRESHOLD
        return np.ones(x.shape[:-1], bool) if self._upstream else (x != 0).any(-1)

    def apply(self, x: np.ndarray, clip: np.ndarray) -> np.ndarray:
        x = widen(x)
        flat = x.reshape(len(x), -1)
        y = ((flat - self._middle.take(clip, 0)) / self._size.take(clip, 0) * 2).reshape(x.shape)
        hide(y, ~self._present(x))
        return y


def per_row(values: np.ndarray, joints: int, dtype: np.dtype | type) -> np.ndarray:
    """Values per clip (N, C) repeated for every joint, (N, V*C): arithmetic on whole rows is five times faster."""
    return np.tile(values, (1, joints)).astype(dtype)


def hide(x: np.ndarray, missing: np.ndarray, channels: int = 2) -> None:
    """Put the first `channels` coordinates of missing joints at 0, in place: x (R, V, C), missing (R, V)."""
    for c in range(channels):
        np.copyto(x[..., c], 0, where=missing)


def normalized(normalization: Normalization) -> Ragged:
    """The whole set that a normalisation was fitted to, normalised, in memory."""
    clips = normalization.clips
    result = Ragged(keypoint=clips.keypoint, num_person=clips.num_person, total_frames=normalization.total_frames)
    parts = []
    for part in result.chunks():
        clip, person, frame = result.index(part)
        parts.append(normalization.apply(clips.keypoint.take(normalization.rows(clip, person, frame), axis=0), clip))
    keypoint = np.concatenate(parts) if parts else clips.keypoint[:0]
    return Ragged(keypoint=keypoint, num_person=result.num_person, total_frames=result.total_frames)
