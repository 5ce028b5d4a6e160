"""The four streams: joints, bones and their motion (GenSkeFeat, JointToBone, ToMotion).

    b[v]  = x[v] - x[parent(v)]          float32
    jm[t] = x[t+1] - x[t],  0 at the end, in the type of x;  bm = the same of b

Where the third channel is a confidence, b and m carry the mean of the two confidences instead of their difference.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .half import mean, subtract, widen
from .ragged import Ragged

STREAMS = ("j", "b", "jm", "bm")


def check_stream(stream: str) -> str:
    """The stream, if there is one of that name."""
    if stream not in STREAMS:
        raise UserError(f"unknown stream {stream!r}; expected one of {', '.join(STREAMS)}")
    return stream


def to_bone(x: np.ndarray, layout: Layout, scored: bool) -> np.ndarray:
    """Bones of joints x (..., V, C) as float32; `scored`: channel 2 is a confidence."""
    parent_of = dict(layout.bones)
    parents = x.take([parent_of[joint] for joint in range(layout.num_joints)], axis=-2)
    bone = widen(subtract(x, parents))
    if scored:
        bone[..., 2] = mean(x[..., 2], parents[..., 2])
    return bone


def to_motion(x: np.ndarray, following: np.ndarray, last: np.ndarray, scored: bool) -> np.ndarray:
    """Motion from rows x (R, V, C) to the rows `following` of the next frame; zero where `last` (R,) is True."""
    motion = subtract(following, x)
    if scored:
        motion[..., 2] = mean(x[..., 2], following[..., 2])
    motion[last] = 0
    return motion


def stream_of(
    stream: str, x: np.ndarray, following: np.ndarray, last: np.ndarray, layout: Layout, scored: bool
) -> np.ndarray:
    """One stream of rows x (R, V, C); `following` and `last` matter to motion only."""
    if stream in ("b", "bm"):
        x = to_bone(x, layout, scored)
    if stream == "bm":
        following = to_bone(following, layout, scored)
    return to_motion(x, following, last, scored) if stream in ("jm", "bm") else x


def skeleton_features(clips: Ragged, layout: Layout, streams: Sequence[str], scored: bool) -> Ragged:
    """GenSkeFeat: the streams of whole clips, side by side in the channels."""
    clip, person, frame = clips.index(np.arange(len(clips)))
    last = frame == clips.total_frames[clip] - 1
    x = clips.keypoint[clips.row(clip, person, frame)]
    following = clips.keypoint[clips.row(clip, person, frame + ~last)]
    features = [stream_of(check_stream(stream), x, following, last, layout, scored) for stream in streams]
    keypoint = np.concatenate(features, axis=-1)
    return Ragged(keypoint=keypoint, num_person=clips.num_person, total_frames=clips.total_frames)
