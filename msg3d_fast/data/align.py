"""3-D normalisation of ragged clips: PreNormalize3D of mmaction2 and pyskl.

    main person   the one that is present in most frames becomes person 0; frames without it are deleted
    centre        x <- x - c for every joint that is present, c = one joint of the main person in the first kept frame
    spine         rotate joint[zaxis[1]] - joint[zaxis[0]] of that frame onto z
    shoulders     rotate joint[xaxis[0]] - joint[xaxis[1]] (right minus left) of the rotated frame onto x

Centring runs in the file's float type, rotations in float64. Upstream stops at more than two persons; here the main
person is found among all, and two give upstream's result.
"""

import numpy as np
import torch

from ..graph import Layout
from . import libm
from .half import subtract, widen
from .normalize import Normalization, hide, per_row
from .ragged import Ragged

ZAXIS, XAXIS = (0, 1), (8, 4)  # upstream's: spine base to spine middle; left to right shoulder of nturgb+d


class Alignment(Normalization):
    """PreNormalize3D, fitted to a set.

    Args:
        clips: keypoints (x, y, z), all-zero joints are missing.
        center: joint that becomes the origin; by default upstream's: joint 1 of 25, the last joint of any other number.
        zaxis, xaxis: (from, to) and (right, left) joints of the two rotations; None leaves a rotation out.
        align_center: move the origin (mmaction2 cannot leave this out).

    Attributes:
        body_center: (N, 3) what was subtracted, in the clips' dtype.
        active: bool (N,); clips in which nobody is visible are left as they are.
    """

    def __init__(
        self,
        clips: Ragged,
        *,
        center: int | None = None,
        zaxis: tuple[int, int] | None = ZAXIS,
        xaxis: tuple[int, int] | None = XAXIS,
        align_center: bool = True,
    ) -> None:
        super().__init__(clips)
        parts = [f"centre on joint {center}"] if align_center and center is not None else ["centre"] * align_center
        turns = ["spine to z"] * (zaxis is not None) + ["shoulders to x"] * (xaxis is not None)
        self.description = "3-D: " + ", ".join([*parts, *turns, "frames without the main person dropped"])
        self._find_main_person()
        if center is None:
            center = 1 if clips.num_joints == 25 else clips.num_joints - 1
        everyone = np.arange(len(clips))
        first = clips.keypoint[self.rows(everyone, 0 * everyone, 0 * everyone)]  # (N, V, 3)
        self.body_center = np.where((self.active & align_center)[:, None], first[:, center], first.dtype.type(0))
        self._origin = per_row(self.body_center, clips.num_joints, first.dtype)
        self._turns: list[np.ndarray] = []
        first = self._centred(first, everyone)
        for pair, unit in ((zaxis, (0, 0, 1)), (xaxis, (1, 0, 0))):
            if pair is None or not self.active.any():
                continue
            start, end = pair if unit[2] else pair[::-1]
            turn = rotation_onto(first[:, end] - first[:, start], unit)
            turn[~self.active] = np.eye(3)
            self._turns.append(turn)
            first = rotate(first, turn)

    def _find_main_person(self) -> None:
        clips = self.clips
        people = int(clips.num_person.max(initial=1))
        seen = np.zeros((len(clips), people), np.int64)
        visible = []  # one bool per row, in the order of the clips
        for part in clips.chunks():
            clip, person, frame = clips.index(part)
            x = widen(clips.keypoint.take(clips.row(clip, person, frame), axis=0))
            present = (np.abs(x) > 1e-8).any((1, 2))
            seen += np.bincount((clip * people + person)[present], minlength=seen.size).reshape(seen.shape)
            visible.append(present)
        self._main = seen.argmax(1)
        self.active = seen.max(1) > 0
        self.total_frames = np.where(self.active, seen.max(1), clips.total_frames)
        kept = [np.empty(0, np.int64)]
        for part, present in zip(clips.chunks(), visible, strict=True):
            clip, person, frame = clips.index(part)
            kept.append(frame[(person == self._main[clip]) & (present | ~self.active[clip])])
        self._kept = np.concatenate(kept)
        self._first_kept = np.cumsum(self.total_frames) - self.total_frames

    def rows(self, clip: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
        main = self._main[clip]
        source = np.where(person == 0, main, np.where(person == main, 0, person))
        return self.clips.row(clip, source, self._kept[self._first_kept[clip] + frame])

    def _centred(self, x: np.ndarray, clip: np.ndarray) -> np.ndarray:
        absent = (x[..., 0] == 0) & (x[..., 1] == 0) & (x[..., 2] == 0)
        y = subtract(x.reshape(len(x), -1), self._origin.take(clip, 0)).reshape(x.shape)
        hide(y, absent, channels=3)
        return y

    def apply(self, x: np.ndarray, clip: np.ndarray) -> np.ndarray:
        x = self._centred(x, clip)
        for turn in self._turns:
            x = rotate(x, turn[clip])
        return x


def rotate(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """y[r, v, i] = sum_j turn[r, i, j] x[r, v, j] in float64: x (R, V, 3), turn (R, 3, 3).

    The terms are added in the order in which upstream's einsum adds them, so that results agree to the last bit.
    """
    points = torch.from_numpy(x.astype(np.float64)).unsqueeze(3)  # (R, V, 3, 1)
    turns = torch.from_numpy(turn.astype(np.float64)).unsqueeze(1)  # (R, 1, 3, 3)
    term = [points[:, :, j] * turns[..., j] for j in range(3)]
    return ((term[0] + term[2]) + term[1]).numpy()


def rotation_onto(v: np.ndarray, unit: tuple[int, int, int]) -> np.ndarray:
    """float64 (N, 3, 3): rotations that turn the vectors v (N, 3) into the direction of `unit`.

    Euler-Rodrigues about cross(v, unit); the identity where v, the axis or the angle vanishes.
    """
    v = np.ascontiguousarray(v)
    axis = np.cross(v, unit)
    with np.errstate(invalid="ignore", divide="ignore"):  # vectors and axes of length 0 are dealt with below
        direction = v / np.sqrt(_dot(v))[:, None]
        along = np.clip(direction[:, unit.index(1)].astype(np.float64), -1, 1)
        angle = np.where(np.abs(v).sum(1) < 1e-6, 0.0, libm.arccos(along))
        still = (np.abs(axis).sum(1) < 1e-6) | (np.abs(angle) < 1e-6)
        axis = axis / np.sqrt(_dot(axis))[:, None]
    a = libm.cos(angle / 2.0)
    b, c, d = (-axis * libm.sin(angle / 2.0)[:, None]).T
    aa, bb, cc, dd = a * a, b * b, c * c, d * d
    bc, ad, ac, ab, bd, cd = b * c, a * d, a * c, a * b, b * d, c * d
    turn = np.stack(
        [
            np.stack([aa + bb - cc - dd, 2 * (bc + ad), 2 * (bd - ac)], -1),
            np.stack([2 * (bc - ad), aa + cc - bb - dd, 2 * (cd + ab)], -1),
            np.stack([2 * (bd + ac), 2 * (cd - ab), aa + dd - bb - cc], -1),
        ],
        -2,
    )
    turn[still] = np.eye(3)
    return turn


def _dot(v: np.ndarray) -> np.ndarray:
    """Squared lengths of the vectors v (N, 3), rounded as upstream's np.dot rounds them, on every processor.

    BLAS rounds float32 products, then adds them up in float64; numpy adds float16's up in float32.
    """
    if v.dtype == np.float16:
        return (v[:, None] @ v[:, :, None])[:, 0, 0]
    square = (v * v).astype(np.float64)
    return ((square[:, 0] + square[:, 1]) + square[:, 2]).astype(v.dtype)


def body_axes(layout: Layout) -> dict[str, int | tuple[int, int] | None]:
    """Arguments of `Alignment` for a skeleton: upstream's for nturgb+d, else by joint names.

    The origin is the layout's centre; the spine runs from hip centre, pelvis or spine base to the joint named spine,
    chest, neck or shoulder centre; a rotation whose joints no name tells is left out.
    """
    if layout.name == "nturgb+d":
        return {"center": 1, "zaxis": ZAXIS, "xaxis": XAXIS}
    joints = {frozenset(name.lower().replace("-", "_").split("_")): i for i, name in enumerate(layout.joint_names)}

    def find(*names: str) -> int | None:
        return next((joints[key] for name in names if (key := frozenset(name.split())) in joints), None)

    bottom = find("hip center", "mid hip", "spine base", "pelvis", "hip", "root")
    top = find("spine", "spine mid", "chest", "thorax", "neck", "shoulder center")
    right, left = find("shoulder right"), find("shoulder left")
    return {
        "center": layout.center,
        "zaxis": None if bottom is None or top is None else (bottom, top),
        "xaxis": None if right is None or left is None else (right, left),
    }
