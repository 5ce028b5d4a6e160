"""Clips that are generated, the same on every machine: for tests, and to see a training run without any data.

Every class moves each joint along its own direction with its own amplitude and frequency; clips of a class differ in
phase, speed, size, place, length and noise, so that a class shows in the motion and not in a single pose.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout, get_layout
from .clips import CHANNELS, ClipSet


def synthetic(
    layout: str | Layout | Mapping[str, Any] = "coco",
    num_classes: int = 8,
    num_clips: int = 400,
    *,
    num_person: int = 1,
    channels: str = "xys",
    frames: tuple[int, int] = (24, 72),
    noise: float = 0.02,
    seed: int = 0,
) -> ClipSet:
    """Generate clips with class-dependent motion; splits train (three of four) and val.

    Args:
        layout: the skeleton.
        num_classes: classes, in turn.
        num_clips: clips in all.
        num_person: most persons of a clip; clips have 1 to that many.
        channels: "xy", "xys" or "xyz"; unit: about the height of a person.
        frames: least and most frames of a clip.
        noise: standard deviation of every coordinate.
        seed: of all of it.

    Raises:
        UserError: an unknown layout or channels, or no clips, classes, persons or frames.
    """
    layout = get_layout(layout)
    if channels not in CHANNELS:
        raise UserError(f"synthetic: channels are {channels!r}, expected one of {', '.join(CHANNELS)}")
    if min(num_classes, num_clips, num_person, frames[0]) < 1 or frames[1] < frames[0]:
        raise UserError(
            f"synthetic: {num_clips} clips of {num_classes} classes, up to {num_person} persons, {frames} frames; "
            "expected at least 1 of each"
        )
    rng = np.random.Generator(np.random.Philox(seed))
    joints, dims = layout.num_joints, 3 if channels == "xyz" else 2
    rest = rng.uniform(-0.5, 0.5, (joints, dims))
    swing = rng.normal(0, 0.15, (num_classes, joints, dims))
    pace = rng.uniform(0.5, 2.0, (num_classes, joints))  # periods per clip

    label = np.arange(num_clips) % num_classes
    person_count = rng.integers(1, num_person + 1, num_clips)
    total_frames = rng.integers(frames[0], frames[1] + 1, num_clips)
    count = person_count * total_frames
    clip = np.repeat(np.arange(num_clips), count)
    within = np.arange(len(clip)) - np.repeat(np.cumsum(count) - count, count)
    person, frame = within // total_frames[clip], within % total_frames[clip]

    slot = clip * num_person + person
    per_slot = num_clips * num_person
    phase = rng.uniform(0, 2 * np.pi, (per_slot, 1))[slot]
    speed = rng.uniform(0.8, 1.2, (per_slot, 1))[slot]
    size = rng.uniform(0.8, 1.2, (per_slot, 1, 1))[slot]
    place = rng.uniform(-0.3, 0.3, (per_slot, 1, dims))[slot]
    kind = label[clip]
    angle = 2 * np.pi * pace[kind] * speed * (frame / total_frames[clip])[:, None] + phase  # (R, V)
    x = size * (rest + swing[kind] * np.sin(angle)[..., None]) + place
    x += rng.normal(0, noise, x.shape)
    if channels == "xys":
        x = np.concatenate([x, rng.uniform(0.5, 1, (*x.shape[:2], 1))], -1)
    held_out = np.arange(num_clips) // num_classes % 4 == 3
    return ClipSet(
        keypoint=x.astype(np.float32),
        num_person=person_count,
        total_frames=total_frames,
        label=label,
        frame_dir=np.array([f"synthetic_{i:05d}" for i in range(num_clips)]),
        label_names=tuple(f"class_{c}" for c in range(num_classes)),
        layout=layout,
        splits={"train": ~held_out, "val": held_out},
        channels=channels,
        name="synthetic",
    )
