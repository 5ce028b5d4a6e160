"""Random changes of sampled clips, on batches x (B, ..., V, C) with one draw per clip.

    scale    x[c] <- x[c] * (1 + u_c * s),  u uniform in [-1, 1]
    rotate   3-D: R = Rz Ry Rx with angles uniform in [-theta, theta];  2-D: one angle
    noise    x <- x + direction * N(0, sigma) * diagonal of the frame's (or clip's) bounding box
    mirror   x <- -x and left joints exchanged with right ones

Source: pyskl `pose_related.py`.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..graph import Layout
from . import libm
from .draws import Draws


@dataclass(frozen=True)
class Augment:
    """What training does to a sampled clip; everything is off by default.

    Rotation, scaling and mirroring commute with bones and motion, so they act on the stream; noise is added to the
    stream itself. A confidence channel is left alone.

    Args:
        rotate: largest angle, radians.
        scale: largest relative change of each coordinate.
        noise: standard deviation, as a part of the diagonal of the skeleton's bounding box.
        flip: probability of mirroring.
        crop: smallest part of a sample that a clip is drawn from; 1 draws from the whole. Done by the sampling.
    """

    rotate: float = 0.0
    scale: float = 0.0
    noise: float = 0.0
    flip: float = 0.0
    crop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rotate", "scale", "noise", "flip", "crop"):
            bounded = name in ("flip", "crop")
            if getattr(self, name) < 0 or (bounded and getattr(self, name) > 1):
                limit = "between 0 and 1" if bounded else "0 or more"
                raise UserError(f"augment.{name} is {getattr(self, name)}, expected {limit}")

    def __bool__(self) -> bool:
        return any((self.rotate, self.scale, self.noise, self.flip))

    def apply(self, x: np.ndarray, draws: Draws, layout: Layout, coordinates: int) -> np.ndarray:
        """Augment x float32 (B, ..., V, C) whose first `coordinates` channels are coordinates."""
        x = x.copy()
        place = x[..., :coordinates]
        if self.rotate:
            place[...] = random_rotate(place, self.rotate, draws, symmetric=True)
        if self.scale:
            place[...] = random_scale(place, self.scale, draws)
        if self.noise:
            place[...] = gaussian_noise(place, self.noise, draws)
        if self.flip:
            chosen = draws.uniform((), np.arange(len(x))) < self.flip
            x[chosen] = mirror(x[chosen], layout)
        return x


def random_scale(x: np.ndarray, scale: float, draws: Draws) -> np.ndarray:
    """RandomScale: one factor per clip and channel; x (B, ..., C) -> float64."""
    channels = x.shape[-1]
    factor = 1 + (-1 + 2 * draws.uniform((channels,), np.arange(len(x)))) * scale
    return x * _per_clip(factor, x)


def random_rotate(x: np.ndarray, theta: float, draws: Draws, symmetric: bool = False) -> np.ndarray:
    """RandomRot: rotate each clip about the origin; x (B, ..., C), C = 2 or 3 -> float64.

    Args:
        theta: largest angle, radians.
        symmetric: draw the 2-D angle from [-theta, theta]; upstream's slip draws it from [-theta, 1].
    """
    dims = x.shape[-1]
    if dims not in (2, 3):
        raise UserError(f"random_rotate: points have {dims} coordinates, expected 2 or 3")
    high = theta if symmetric or dims == 3 else 1.0
    angle = -theta + (high + theta) * draws.uniform((1 if dims == 2 else 3,), np.arange(len(x)))
    turn = _turn_2d(angle[:, 0]) if dims == 2 else _turn_3d(angle)
    out = np.empty(x.shape, np.float64)
    for i in range(dims):
        term = [x[..., j] * _per_clip(turn[:, i, j, None], x)[..., 0] for j in range(dims)]
        # The order in which upstream's einsum adds three terms.
        out[..., i] = term[0] + term[1] if dims == 2 else (term[0] + term[2]) + term[1]
    return out


def _turn_2d(angle: np.ndarray) -> np.ndarray:
    cos, sin = libm.cos(angle), libm.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _turn_3d(angle: np.ndarray) -> np.ndarray:
    cos, sin = libm.cos(angle), libm.sin(angle)
    one, zero = np.ones(len(angle)), np.zeros(len(angle))

    def matrix(*entries: np.ndarray) -> np.ndarray:
        return np.stack(entries, -1).reshape(-1, 3, 3)

    rx = matrix(one, zero, zero, zero, cos[:, 0], sin[:, 0], zero, -sin[:, 0], cos[:, 0])
    ry = matrix(cos[:, 1], zero, -sin[:, 1], zero, one, zero, sin[:, 1], zero, cos[:, 1])
    rz = matrix(cos[:, 2], sin[:, 2], zero, -sin[:, 2], cos[:, 2], zero, zero, zero, one)
    return rz @ (ry @ rx)


def gaussian_noise(x: np.ndarray, sigma: float, draws: Draws, base: str = "frame", shared: bool = False) -> np.ndarray:
    """RandomGaussianNoise on x (B, ..., V, C) -> float64; frames without a skeleton get none.

    Args:
        sigma: standard deviation, as a part of the diagonal of the bounding box.
        base: box of the "frame", or of the whole clip ("video").
        shared: the same noise in every frame of a clip.
    """
    batch, (joints, dims) = len(x), x.shape[-2:]
    frames = x.reshape(batch, -1, joints, dims)
    everyone, count = np.arange(batch), frames.shape[1]
    low, high = frames.min(2), frames.max(2)  # (B, F, C)
    seen = (low**2).sum(2) > 1e-4
    if base == "frame":
        size = np.linalg.norm((high - low).reshape(-1, dims), axis=1).reshape(batch, count) * seen
    else:
        box = np.where(seen[..., None], high, -np.inf).max(1) - np.where(seen[..., None], low, np.inf).min(1)
        box = np.where(seen.any(1)[:, None], box, 0).astype(x.dtype)
        size = np.sqrt((box[:, None] @ box[:, :, None])[:, 0]) * seen
    drawn = 1 if shared else count
    length = draws.normal((drawn, joints), everyone) * sigma * size[..., None]
    direction = -1 + 2 * draws.uniform((dims, drawn * joints), everyone)
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    direction = direction.reshape(batch, dims, drawn, joints).transpose(0, 2, 3, 1)  # (B, F or 1, V, C)
    return (frames + direction * length[..., None]).reshape(x.shape)


def check_mirror(layout: Layout) -> None:
    """Raise UserError unless the layout says which joints a mirror exchanges."""
    if not layout.flip_pairs:
        raise UserError(f"layout {layout.name!r} has no flip_pairs, so clips cannot be mirrored; set augment.flip to 0")


def mirror(x: np.ndarray, layout: Layout) -> np.ndarray:
    """Left and right exchanged: first coordinate negated, joints of `layout.flip_pairs` swapped; x (..., V, C)."""
    check_mirror(layout)
    order = np.arange(layout.num_joints)
    left, right = np.array(layout.flip_pairs).T
    order[left], order[right] = right, left
    x = x[..., order, :]
    x[..., 0] *= -1
    return x


def _per_clip(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """values (B, K) shaped to broadcast against x (B, ..., C)."""
    return values.reshape(len(values), *(1,) * (x.ndim - 2), -1)
