"""Persons who were detected frame by frame, put into slots that follow them.

A detection goes on the track whose last pose is nearest: mean distance of the joints seen in both, which must be less
than half the person's size. Then tracks fill M slots, those with the highest sum of confidences first, each the first
slot that is free at its frames.
"""

import numpy as np

_PATIENCE = 10  # frames after which a lost track is not gone on with


class _Track:
    def __init__(self) -> None:
        self.frames: list[int] = []
        self.poses: list[np.ndarray] = []

    def add(self, frame: int, pose: np.ndarray) -> None:
        self.frames.append(frame)
        self.poses.append(pose)

    @property
    def confidence(self) -> float:
        return float(sum(pose[:, 2].sum() for pose in self.poses))


def _cost(last: np.ndarray, pose: np.ndarray) -> float:
    seen = (last[:, 2] > 0) & (pose[:, 2] > 0)
    if not seen.any():
        return np.inf
    box = pose[pose[:, 2] > 0, :2]
    size = float(np.linalg.norm(box.max(0) - box.min(0)))
    distance = float(np.linalg.norm(last[seen, :2] - pose[seen, :2], axis=1).mean())
    return distance / size if size > 0 and distance < 0.5 * size else np.inf


def into_slots(frames: list[np.ndarray], max_person: int, ids: list[list[int]] | None = None) -> np.ndarray:
    """Detections (P, V, 3) with (x, y, confidence) of each frame, as (M, T, V, 3); absent persons are 0.

    Args:
        frames: of each of T frames, the poses of the P persons in it.
        max_person: the most slots; 1 to that many are returned, or none if nobody was seen.
        ids: of each frame, the persons' numbers, where a tracker gave them.
    """
    tracks: list[_Track] = []
    numbered: dict[int, _Track] = {}
    for t, poses in enumerate(frames):
        if ids is not None:
            for number, pose in zip(ids[t], poses, strict=True):
                if number not in numbered:
                    tracks.append(numbered.setdefault(number, _Track()))
                if not (track := numbered[number]).frames or track.frames[-1] < t:
                    track.add(t, pose)
            continue
        going = [track for track in tracks if t - track.frames[-1] <= _PATIENCE]
        costs = [(_cost(track.poses[-1], pose), i, p) for i, track in enumerate(going) for p, pose in enumerate(poses)]
        taken: set[int] = set()
        follows: dict[int, int] = {}
        for cost, i, p in sorted(costs):
            if np.isfinite(cost) and i not in taken and p not in follows:
                taken.add(i)
                follows[p] = i
        for p, pose in enumerate(poses):
            if p in follows:
                going[follows[p]].add(t, pose)
            elif (pose[:, 2] > 0).any():
                tracks.append(_Track())
                tracks[-1].add(t, pose)
    slots: list[np.ndarray] = []
    busy: list[np.ndarray] = []
    for track in sorted(tracks, key=lambda track: -track.confidence):
        when = np.array(track.frames)
        free = next((m for m, full in enumerate(busy) if not full[when[0] : when[-1] + 1].any()), len(slots))
        if free == max_person:
            continue
        if free == len(slots):
            slots.append(np.zeros((len(frames), *track.poses[0].shape)))
            busy.append(np.zeros(len(frames), bool))
        slots[free][when] = track.poses
        busy[free][when[0] : when[-1] + 1] = True
    return np.stack(slots) if slots else np.zeros((0, len(frames), 0, 3))
