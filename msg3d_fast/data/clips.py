"""A labelled set of skeleton clips, checked when it is made."""

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .ragged import CHUNK_ROWS, Ragged

_RELEASE = 2048  # clips after which pages of a memory map are let go
CHANNELS = {"xy": 2, "xys": 3, "xyz": 3}  # s: confidence


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSet(Ragged):
    """N labelled clips of one skeleton; `keypoint`, `num_person`, `total_frames` and `offsets` as in `Ragged`.

    Args:
        label: int64 (N,), class of each clip, 0 to num_classes - 1; or, where a clip may have several or none, uint8
            (N, num_classes) of zeros and ones.
        frame_dir: str (N,), id of each clip.
        label_names: one name per class.
        layout: the skeleton, V joints.
        splits: bool (N,) masks by name.
        channels: what the C channels are: "xy", "xys" (s = confidence) or "xyz".
        img_shape: int (N, 2) = (h, w) in pixels, or None if the clips do not say.
        digest: uint8 (N, 32), what `digests` must find, for clips that lie on disk; else None.
        missing: number of joints that held NaN or infinity and became missing (all channels 0).
        notes: what the reader of the file found worth saying, one line each.
        name: what messages call the set.

    Raises:
        UserError: arrays that do not fit together, a clip without frames, a label out of range.
    """

    label: np.ndarray
    frame_dir: np.ndarray
    label_names: tuple[str, ...]
    layout: Layout
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)
    channels: str = "xy"
    img_shape: np.ndarray | None = None
    digest: np.ndarray | None = None
    missing: int = 0
    notes: tuple[str, ...] = ()
    name: str = "clips"

    def __post_init__(self) -> None:
        super().__post_init__()
        label = np.asarray(self.label)
        object.__setattr__(self, "label", label.astype(np.uint8 if label.ndim == 2 else np.int64, copy=False))
        self._check()

    def _check(self) -> None:
        num, shape = len(self.num_person), self.keypoint.shape
        if self.channels not in CHANNELS:
            raise self._error(f"channels are {self.channels!r}, expected one of {', '.join(CHANNELS)}")
        if len(shape) != 3 or shape[2] != CHANNELS[self.channels] or self.keypoint.dtype.kind != "f":
            found = f"{self.keypoint.dtype} array of shape {shape}"
            raise self._error(f"keypoint is a {found}, expected floats (rows, V, {CHANNELS[self.channels]})")
        if shape[1] != self.layout.num_joints:
            raise self._error(
                f"clips have {shape[1]} joints, layout {self.layout.name!r} has {self.layout.num_joints}; "
                "name the layout of the clips"
            )
        per_clip = {"total_frames": self.total_frames, "label": self.label, "frame_dir": self.frame_dir}
        per_clip |= {f"split {name!r}": mask for name, mask in self.splits.items()}
        if self.img_shape is not None:
            per_clip["img_shape"] = self.img_shape
        if self.digest is not None:
            per_clip["digest"] = self.digest
        for what, array in per_clip.items():
            if len(array) != num:
                raise self._error(f"{what} has {len(array)} entries for {num} clips; every clip needs one")
        if self.img_shape is not None:
            sizes = np.asarray(self.img_shape)
            if sizes.shape[1:] != (2,) or sizes.dtype.kind not in "fiu" or not (sizes > 0).all():
                found = f"{sizes[0].tolist()!r:.60} of clip {self.frame_dir[0]}" if num else str(sizes.shape)
                raise self._error(f"img_shape is {found}, expected height and width in pixels of every clip")
        for what, array in (("num_person", self.num_person), ("total_frames", self.total_frames)):
            if num and array.min() < 1:
                raise self._error(f"clip {self.frame_dir[array.argmin()]} has {what} {array.min()}, expected 1 or more")
        if num and (self.offsets.min() < 0 or (self.offsets + self.num_rows).max() > shape[0]):
            rows = (self.offsets + self.num_rows).max()
            raise self._error(f"clips need {rows} rows of num_person * total_frames, keypoint has {shape[0]}")
        if self.multi_label:
            if self.label.shape[1] != self.num_classes or (num and self.label.max() > 1):
                shape, top = self.label.shape, self.label.max(initial=0)
                raise self._error(
                    f"label is a {shape} array of numbers up to {top}, expected zeros and ones ({num}, "
                    f"{self.num_classes}), one column for each class"
                )
            return
        bad = np.flatnonzero((self.label < 0) | (self.label >= self.num_classes))
        if len(bad):
            raise self._error(
                f"clip {self.frame_dir[bad[0]]} has label {self.label[bad[0]]}, expected 0 to {self.num_classes - 1} "
                f"for {self.num_classes} classes; {len(bad)} of {num} labels are out of range"
            )

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.name}: {what}")

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes or none."""
        return self.label.ndim == 2

    def subset(self, which: str | np.ndarray) -> "ClipSet":
        """The clips of a split (by name), of a bool mask or of an index array; shares `keypoint`.

        Raises:
            UserError: no such split, or nothing in it.
        """
        if isinstance(which, str):
            if which not in self.splits:
                raise self._error(f"has no split {which!r}; {self._splits_there_are()}")
            chosen = np.flatnonzero(self.splits[which])
            if not len(chosen):
                raise self._error(f"split {which!r} is empty; {self._splits_there_are()}")
        else:
            which = np.asarray(which)
            chosen = np.flatnonzero(which) if which.dtype == bool else which.astype(np.int64)
            if not len(chosen):
                raise self._error(f"an empty selection of its {len(self)} clips; select at least one")
        return replace(
            self,
            num_person=self.num_person[chosen],
            total_frames=self.total_frames[chosen],
            offsets=self.offsets[chosen],
            label=self.label[chosen],
            frame_dir=self.frame_dir[chosen],
            splits={name: mask[chosen] for name, mask in self.splits.items()},
            img_shape=None if self.img_shape is None else self.img_shape[chosen],
            digest=None if self.digest is None else self.digest[chosen],
        )

    def _splits_there_are(self) -> str:
        found = ", ".join(f"{name} ({int(np.sum(mask))} clips)" for name, mask in self.splits.items())
        return f"splits there are: {found}" if found else "it has no splits: name no split to use all clips"

    def digests(self, dtype: np.dtype | None = None) -> np.ndarray:
        """uint8 (N, 32): sha256 of the pose of each clip; with `dtype`, as once it is stored in it.

        Raises:
            UserError: a clip of a store that is no longer what was written.
        """
        stored = np.dtype(dtype or self.keypoint.dtype)
        rows = np.asarray(self.keypoint)  # slices of a plain array cost a fraction of those of a memory map
        found = np.empty((len(self), 32), np.uint8)
        firsts, counts = self.offsets.tolist(), self.num_rows.tolist()
        for i, (first, count, frames) in enumerate(zip(firsts, counts, self.total_frames.tolist(), strict=True)):
            found[i] = np.frombuffer(pose_digest(rows[first : first + count], frames, stored), np.uint8)
            if i % _RELEASE == _RELEASE - 1:
                self._release()
        self._release()
        if self.digest is not None and stored == self.keypoint.dtype:
            wrong = np.flatnonzero((found != self.digest).any(1))
            if len(wrong):
                more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
                raise self._error(
                    f"the pose of clip {self.frame_dir[wrong[0]]}{more} is not what was written: keypoint.npy is "
                    "damaged; prepare the store again"
                )
        return found

    def _release(self) -> None:
        """Pages of a memory map that were read count as this process's memory until they are let go."""
        mapped = getattr(self.keypoint, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def fingerprint(self, dtype: np.dtype | None = None) -> str:
        """sha256 (hex) of poses, labels, ids, splits and skeleton; with `dtype`, as once they are stored in it.

        Neither the order of the clips nor the machine changes it.

        Raises:
            UserError: as of `digests`.
        """
        names = sorted(self.splits)
        member = np.array([self.splits[name] for name in names], bool).reshape(len(names), len(self))
        images = None if self.img_shape is None else np.asarray(self.img_shape).tolist()
        parts = []
        for i, pose in enumerate(self.digests(dtype)):
            label = np.flatnonzero(self.label[i]).tolist() if self.multi_label else int(self.label[i])
            within = [name for name, inside in zip(names, member[:, i], strict=True) if inside]
            about = json.dumps([str(self.frame_dir[i]), label, within, images and images[i]])
            parts.append(hashlib.sha256(about.encode() + pose.tobytes()).digest())
        skeleton = self.layout.joint_names, self.layout.inward, self.layout.center
        whole = json.dumps([*skeleton, self.label_names, self.channels])
        return hashlib.sha256(whole.encode() + b"".join(sorted(parts))).hexdigest()

    def row_runs(self) -> list[slice]:
        """Row ranges that hold the clips in order: neighbours joined, none longer than a chunk."""
        runs: list[slice] = []
        for start, count in zip(self.offsets.tolist(), self.num_rows.tolist(), strict=True):
            if runs and runs[-1].stop == start and start + count - runs[-1].start <= CHUNK_ROWS:
                runs[-1] = slice(runs[-1].start, start + count)
            else:
                runs.append(slice(start, start + count))
        return runs


def pose_digest(rows: np.ndarray, total_frames: int, dtype: np.dtype) -> bytes:
    """sha256 of a clip's skeletons (M*T, V, C) in a float type, the same on machines of either byte order."""
    stored = dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{stored.str} {rows.shape} {total_frames}".encode())
    digest.update(np.ascontiguousarray(rows, stored))
    return digest.digest()


def clean(keypoint: np.ndarray) -> int:
    """Turn joints with NaN or infinite channels into missing ones (all channels 0), in place; returns how many."""
    missing = 0
    for first in range(0, len(keypoint), CHUNK_ROWS):
        rows = keypoint[first : first + CHUNK_ROWS]
        bad = ~np.isfinite(rows).all(-1)
        rows[bad] = 0
        missing += int(bad.sum())
    return missing


def label_array(labels: list[int] | list[list[int]], classes: int = 0) -> np.ndarray:
    """Class numbers (N,), or for lists of them zeros and ones (N, number of classes), which is at least `classes`.

    Raises:
        UserError: lists whose largest number would make a table that no memory holds.
    """
    if not labels or not isinstance(labels[0], list):
        return np.array(labels, np.int64)
    classes = max(classes, 1 + max((max(several) for several in labels if several), default=0))
    if classes * len(labels) > 1 << 32:
        raise UserError(f"labels up to {classes - 1} for {len(labels)} clips; number the classes from 0 without gaps")
    label = np.zeros((len(labels), classes), np.uint8)
    for row, several in zip(label, labels, strict=True):
        row[several] = 1
    return label
