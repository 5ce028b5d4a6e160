"""From a set of clips to batches for the network: normalise, make the stream, sample, fill the person slots, augment.

Everything is array operations on whole batches. Normalisation is fitted once. A set whose stream fits into
`CACHE_BYTES` is computed once and then only gathered from; a bigger one, such as a memory-mapped store, is normalised
row by row as batches ask for it. Random draws are a pure function of (seed, epoch, sample), so batches do not depend on
workers, world size or a resume.
"""

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .align import Alignment, body_axes
from .augment import Augment, check_mirror
from .clips import ClipSet
from .draws import PhiloxDraws
from .half import widen
from .normalize import BoxNormalization, ImageNormalization, Normalization
from .original import PreNormalization, check_length
from .ragged import CHUNK_ROWS
from .sampling import check_semantics, sample_for_test, select_persons, uniform_sample
from .streams import check_stream, stream_of

NORMALIZATIONS = ("auto", "2d", "3d", "center", "box", "none")
CACHE_BYTES = 1 << 30
_SAMPLE, _AUGMENT = 0, 1  # purposes of draws


class Pipeline:
    """Batches of one stream of a set of clips.

    Args:
        clipset: the set.
        stream: "j" joints, "b" bones, "jm" and "bm" their motion.
        clip_len: frames of each sampled clip.
        num_clips: clips sampled from each sample.
        num_person: person slots; absent persons are zero, further persons are left out.
        test_mode: sample as upstream does for testing (generator freshly seeded with 255), no augmentation.
        semantics: "mmaction2" or "pyskl", where they differ: masking of 2-D joints, the sampler's draws; or "original":
            as the authors, all frames of a clip, padded to `clip_len`, 3-D by their pre_normalization, and bones and
            motion of a confidence as its difference.
        normalize: "2d" by image size, "3d" as PreNormalize3D, "center" as that but keeping the camera's axes, "box" by
            the clip's bounding box, "none"; "auto" takes "3d" for xyz, "2d" where image sizes are
            known, else "box". `normalize` and `description` say what was chosen.
        augment: random changes in training.
        seed: of all random draws.

    Raises:
        UserError: an unknown name, a length below 1, a normalisation that does not fit the channels, or with "original"
            a clip longer than `clip_len` or several clips of each sample.
    """

    def __init__(
        self,
        clipset: ClipSet,
        *,
        stream: str = "j",
        clip_len: int = 100,
        num_clips: int = 1,
        num_person: int = 2,
        test_mode: bool = False,
        semantics: str = "mmaction2",
        normalize: str = "auto",
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("clip_len", clip_len), ("num_clips", num_clips), ("num_person", num_person)):
            if value < 1:
                raise UserError(f"{name} is {value}, expected 1 or more")
        if augment and augment.flip:
            check_mirror(clipset.layout)
        self.clipset = clipset
        self.stream = check_stream(stream)
        self.clip_len, self.num_clips, self.num_person = clip_len, num_clips, num_person
        self.test_mode, self.seed, self.augment = test_mode, seed, augment
        self._whole = semantics == "original"
        if self._whole and num_clips > 1:
            raise UserError(
                f"test.num_clips is {num_clips}, but the authors' recipe tests whole clips once; set "
                "--test.num_clips=1, or --data.semantics=mmaction2 to sample frames"
            )
        self.semantics = semantics if self._whole else check_semantics(semantics)
        self._scored = clipset.channels == "xys" and not self._whole
        self.normalize = _choice(clipset, normalize)
        self._normal = _normalization(clipset, self.normalize, semantics, clip_len)
        self.total_frames = self._normal.total_frames
        what = f"{len(clipset)} clips of {clipset.layout.name} ({clipset.channels}), stream {stream}"
        self.description = f"{what}, {self._normal.description}"
        if test_mode and not self._whole:
            self._test_frames = sample_for_test(self.total_frames, clip_len, num_clips, semantics=semantics)
        self._num_rows = clipset.num_person * self.total_frames
        self._first = np.cumsum(self._num_rows) - self._num_rows  # of each clip in the cache
        size = 4 * int(self._num_rows.sum()) * int(np.prod(clipset.keypoint.shape[1:]))
        self._cache = self._compute_all() if size <= CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self.clipset)

    def batch(self, indices: np.ndarray, epoch: int | np.ndarray = 0) -> tuple[Tensor, Tensor]:
        """Samples of the set, ready for the network.

        Args:
            indices: int (B,), positions in the set.
            epoch: number of the pass over the set, int or int (B,); training draws differ from pass to pass.

        Returns:
            float32 (B, num_clips, M, clip_len, V, C) and labels as the set has them: int64 (B,) or uint8 (B, classes).
        """
        indices = np.asarray(indices, np.int64)
        if self._whole:
            frames = np.broadcast_to(np.arange(self.clip_len), (len(indices), 1, self.clip_len))
        elif self.test_mode:
            frames = self._test_frames[indices]
        else:
            draws = PhiloxDraws(self.seed, epoch, indices, _SAMPLE)
            crop = 1.0 if self.augment is None else self.augment.crop
            frames = uniform_sample(
                self.total_frames[indices],
                self.clip_len,
                self.num_clips,
                draws,
                semantics=self.semantics,
                p_interval=(crop, 1.0),
            )
        x = self._gather(indices, frames)
        if self.augment and not self.test_mode:
            draws = PhiloxDraws(self.seed, epoch, indices, _AUGMENT)
            coordinates = 2 if self.clipset.channels == "xys" else x.shape[-1]
            x = self.augment.apply(x, draws, self.clipset.layout, coordinates)
        return torch.from_numpy(x), torch.from_numpy(self.clipset.label[indices])

    def _gather(self, indices: np.ndarray, frames: np.ndarray) -> np.ndarray:
        person, filled = select_persons(self.clipset.num_person[indices], self.num_person)
        clip = indices[:, None, None, None]
        person, filled = person[:, None, :, None], filled[:, None, :, None]
        frame = frames[:, :, None]  # (B, num_clips, 1, L)
        if self._whole:  # beyond its end a clip is zero
            filled = filled & (frame < self.total_frames[clip])
            frame = np.minimum(frame, self.total_frames[clip] - 1)
        shape = np.broadcast_shapes(person.shape, frame.shape)  # (B, num_clips, M, L)
        if self._cache is not None:
            rows = self._first[clip] + person * self.total_frames[clip] + frame
            x = self._cache.take(rows, axis=0)
            x[~np.broadcast_to(filled, shape)] = 0
            return x
        x = np.zeros((*shape, *self.clipset.keypoint.shape[1:]), np.float32)
        rows = x.reshape(-1, *x.shape[4:])
        wanted = np.flatnonzero(np.broadcast_to(filled, shape))
        which = [np.broadcast_to(part, shape).reshape(-1)[wanted] for part in (clip, person, frame)]
        for first in range(0, len(wanted), CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            rows[wanted[part]] = self._compute(*(one[part] for one in which))
        return x

    def _compute(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """The stream of these skeletons, float32 (R, V, C)."""
        x = following = self._normal.skeletons(clip, person, frame)
        last = frame == self.total_frames[clip] - 1
        if self.stream in ("jm", "bm"):
            following = self._normal.skeletons(clip, person, frame + ~last)
        x = stream_of(self.stream, x, following, last, self.clipset.layout, self._scored)
        return widen(x)

    def _compute_all(self) -> np.ndarray:
        cache = np.empty((int(self._num_rows.sum()), *self.clipset.keypoint.shape[1:]), np.float32)
        for part in self.clipset.chunks():
            clip = np.repeat(part, self._num_rows[part])
            first = self._first[part[0]]
            within = np.arange(len(clip)) + first - self._first[clip]
            person, frame = within // self.total_frames[clip], within % self.total_frames[clip]
            cache[first : first + len(clip)] = self._compute(clip, person, frame)
        return cache


def _choice(clips: ClipSet, choice: str) -> str:
    if choice not in NORMALIZATIONS:
        raise UserError(f"unknown normalisation {choice!r}; expected one of {', '.join(NORMALIZATIONS)}")
    if choice == "auto":
        known = clips.channels != "xyz" and clips.img_shape is not None
        choice = "3d" if clips.channels == "xyz" else "2d" if known else "box"
    if choice != "none" and (choice in ("3d", "center")) != (clips.channels == "xyz"):
        fitting = "3d, center or none" if clips.channels == "xyz" else "2d, box or none"
        raise UserError(f"normalize={choice!r} does not fit {clips.channels} clips; choose {fitting}")
    return choice


def _normalization(clips: ClipSet, choice: str, semantics: str, clip_len: int) -> Normalization:
    axes = body_axes(clips.layout)
    if choice == "center":
        axes |= {"zaxis": None, "xaxis": None}
    if semantics == "original":
        if choice in ("3d", "center"):
            return PreNormalization(clips, clip_len, **axes)
        check_length(clips, clip_len)
    if choice in ("3d", "center"):
        return Alignment(clips, **axes)
    if choice == "2d":
        return ImageNormalization(clips, clips.img_shape, masked=semantics == "pyskl")
    return BoxNormalization(clips) if choice == "box" else Normalization(clips)
