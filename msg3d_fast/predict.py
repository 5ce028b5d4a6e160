"""Prediction on new poses: whole clips, sliding windows over long ones, and frame by frame.

A network needs its poses as training had them: stream, normalisation and sampling come from the checkpoint, and every
clip goes through the pipeline of a test, so that it has the scores that a test would give it.
"""

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import evaluation, preprocessing
from .config import Config
from .data import ClipSet
from .data.clips import clean
from .data.ragged import Ragged, ragged
from .data.store_writer import stored_rows
from .distributed import choose_device
from .errors import UserError
from .experiment import choose_backend, load_trained
from .model import Recognizer, check_clips

_WINDOWS = 64  # scored at a time


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `end`, both included and counted from 0, that belong to one class.

    `label` is its number, `name` its name, `probability` the mean over the frames.
    """

    start: int
    end: int
    label: int
    name: str
    probability: float


class Predictor:
    """From raw poses to class probabilities, the same as a test of the network gives for the same clip.

        predictor = Predictor("runs/mine")
        predictor.top(predictor(poses))            # [("wave", 0.93), ("point", 0.04), ...] of poses (M, T, V, C)

    Args:
        source: a run folder, a checkpoint of any upstream or ours, or a Recognizer, which is put into eval mode.
        device: auto, cpu, cuda or cuda:N; of a Recognizer, its own. But for the reference backend, it is `fuse`d.
        backend: as of `Recognizer`.
        batch_size: most sampled clips per forward pass; does not change the result.
        settings: changes to what the checkpoint says, fields of `Preprocessing`: `stream="b"`, `num_clips=1`, ...

    Attributes:
        preprocessing: how poses become input, and the classes' names.
        layout: the skeleton.
        missing: joints of the last call that held NaN or infinity and counted as missing.

    Raises:
        UserError: nothing that can be loaded, or an unknown setting.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Recognizer,
        *,
        device: str = "auto",
        backend: str | None = None,
        batch_size: int = 32,
        **settings: Any,
    ) -> None:
        if isinstance(source, Recognizer):
            model, found = source, preprocessing.of_model(source)
        else:
            model, found = _load(Path(source), choose_device(device), backend)
        if unknown := settings.keys() - vars(found).keys():
            raise UserError(f"unknown setting {min(unknown)!r}; expected one of {', '.join(vars(found))}")
        self.preprocessing = replace(found, **settings)
        if len(self.label_names) != model.hparams["num_classes"]:
            counts = f"{len(self.label_names)} names for {model.hparams['num_classes']} classes"
            raise UserError(f"label_names: {counts}; give one for each class of the network")
        self.layout, self.batch_size, self.missing = model.layout, max(1, batch_size), 0
        self.num_person: int = model.hparams["num_person"]
        self.in_channels: int = model.hparams["in_channels"]
        self._device = next(model.parameters()).device
        self._net = evaluation.ready(model)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where the checkpoint does not tell."""
        return self.preprocessing.label_names

    def __call__(
        self, poses: np.ndarray | Sequence[np.ndarray], *, img_shape: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Class probabilities of clips.

        Args:
            poses: a clip (M, T, V, C), or a list of clips of any persons M and frames T. Joints that are NaN or
                infinite count as missing; persons beyond the network's slots are left out, as in a test.
            img_shape: (h, w) in pixels, where the network's poses are normalised by image size.

        Returns:
            float64 (classes,) of one clip, (N, classes) of several.

        Raises:
            UserError: poses of another skeleton or other channels, without persons or frames, or no image size.
        """
        if isinstance(poses, np.ndarray) and poses.ndim == 4:
            return self([poses], img_shape=img_shape)[0]
        if not len(poses):
            return np.zeros((0, len(self.label_names)))
        return self.scores(self.clips(poses, img_shape=img_shape))

    def clips(self, poses: Sequence[np.ndarray], *, img_shape: tuple[int, int] | None = None) -> ClipSet:
        """Poses as a set of clips without classes; arguments and errors as of a call."""
        self.missing = 0
        checked = []
        for i, pose in enumerate(poses):
            try:
                checked.append(self._checked(np.asarray(pose)))
            except (UserError, OverflowError) as error:
                raise UserError(f"clip {i}: {error}") from None
        return self._set(ragged(checked), None if img_shape is None else np.array(img_shape))

    def _checked(self, pose: np.ndarray) -> np.ndarray:
        if pose.ndim != 4 or pose.dtype.kind not in "fiu" or not len(pose):
            found = f"a {pose.dtype} array of shape {pose.shape}"
            raise UserError(f"is {found}, expected numbers (persons, frames, joints, channels)")
        pose = pose.astype(np.float16 if pose.dtype == np.float16 else np.float32)
        check_clips(torch.empty(1, *pose.shape, device="meta"), self.layout, len(pose), self.in_channels, torch.float32)
        self.missing += clean(pose.reshape(-1, *pose.shape[2:]))
        dtype = np.dtype(self.preprocessing.dtype)
        return stored_rows(pose, dtype).astype(dtype, copy=False)

    def _set(self, batch: Ragged, img_shape: np.ndarray | None) -> ClipSet:
        """Checked clips, all with the image size (2,)."""
        return ClipSet(
            keypoint=batch.keypoint,
            num_person=batch.num_person,
            total_frames=batch.total_frames,
            label=np.zeros(len(batch), np.int64),
            frame_dir=np.arange(len(batch)).astype(str),
            label_names=("unlabelled",),
            layout=self.layout,
            channels=self.preprocessing.channels,
            img_shape=None if img_shape is None else np.tile(img_shape, (len(batch), 1)),
            name="poses",
        )

    @torch.inference_mode()
    def scores(self, clips: ClipSet) -> np.ndarray:
        """Class probabilities float64 (N, classes) of a set of clips, whose own classes do not matter.

        Raises:
            UserError: clips that the network cannot take.
        """
        p = self.preprocessing
        pipeline = p.pipeline(clips, self.num_person)
        samples, found = max(1, self.batch_size // p.num_clips), np.zeros((len(clips), len(p.label_names)))
        for start in range(0, len(clips), samples):
            part = np.arange(len(clips))[start : start + samples]
            x, _ = pipeline.batch(part, 0)  # (n, clips, M, T, V, C)
            logits = [self._net(piece.to(self._device)) for piece in x.flatten(0, 1).split(self.batch_size)]
            found[part] = evaluation.scores_of(logits, p.num_clips, p.average, p.several)
        return found

    def top(self, probabilities: np.ndarray, k: int = 5) -> list[tuple[str, float]]:
        """Names and probabilities of the k likeliest classes of one clip, likeliest first."""
        return [(self.label_names[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:k]]

    def timeline(
        self, poses: np.ndarray, window: int, step: int, *, img_shape: tuple[int, int] | None = None
    ) -> list[Segment]:
        """What happens when in a long clip: windows slide over it, and neighbouring frames of one class are joined.

        A frame has the mean probabilities of the windows that it lies in; frames that lie in none where somebody is
        seen belong to no segment. The last window ends with the clip.

        Args:
            poses: (M, T, V, C), as of a call.
            window: frames of a window; a shorter clip is one window.
            step: frames from one window to the next.
            img_shape: as of a call.

        Returns:
            segments in order of time.

        Raises:
            UserError: as of a call, or a window or step below 1.
        """
        clips = self.clips([poses], img_shape=img_shape)
        return self.segments(clips.clip(0), window, step, None if img_shape is None else clips.img_shape[0])

    def segments(self, pose: np.ndarray, window: int, step: int, img_shape: np.ndarray | None = None) -> list[Segment]:
        """`timeline` of a clip out of a `ClipSet`: its pose (M, T, V, C) and its row of `img_shape`."""
        for name, value in (("window", window), ("step", step)):
            if value < 1:
                raise UserError(f"{name} is {value} frames, expected 1 or more")
        total = pose.shape[1]
        last = max(0, total - window)
        spans = np.array([(start, min(start + window, total)) for start in (*range(0, last, step), last)])
        edges = np.unique(spans)
        places = np.searchsorted(edges, spans)  # of windows among the stretches between the edges
        votes, weight = np.zeros((len(edges) - 1, len(self.label_names))), np.zeros(len(edges) - 1)
        seen = pose.any((2, 3))  # (M, T)
        somebody = [i for i, (a, b) in enumerate(spans) if seen[:, a:b].any()]
        for first in range(0, len(somebody), _WINDOWS):
            part = somebody[first : first + _WINDOWS]
            # Who is absent from a whole window has no slot in it, as such persons had none in training.
            windows = [pose[seen[:, a:b].any(1), a:b] for a, b in spans[part]]
            for i, score in zip(part, self.scores(self._set(ragged(windows), img_shape)), strict=True):
                inside = slice(*places[i])
                votes[inside] += score
                weight[inside] += 1
        return self._joined(edges, votes / np.maximum(weight, 1)[:, None], weight > 0)

    def _joined(self, edges: np.ndarray, mean: np.ndarray, known: np.ndarray) -> list[Segment]:
        """Segments of stretches (S,) between edges (S + 1,), with the probabilities (S, classes) of each."""
        label = np.where(known, mean.argmax(1), -1)
        starts = np.flatnonzero(np.diff(label, prepend=-2))
        found = []
        for first, end in zip(starts, [*starts[1:], len(label)], strict=True):
            if (number := int(label[first])) >= 0:
                frames = np.diff(edges[first : end + 1])
                probability = float(np.average(mean[first:end, number], weights=frames))
                found.append(
                    Segment(int(edges[first]), int(edges[end]) - 1, number, self.label_names[number], probability)
                )
        return found


class Stream:
    """Prediction frame by frame, for a camera: the last `window` frames, every `step` frames.

        stream = Stream(Predictor("runs/mine", num_clips=1), window=64, step=8)
        for frame in camera:
            if (probabilities := stream.push(poses_in(frame))) is not None:
                print(stream.predictor.top(probabilities, 1))

    Args:
        predictor: the network; with `num_clips=1` it is asked once each time, not ten times.
        window: frames that are looked at.
        step: frames from one answer to the next.
        img_shape: as of a call of the predictor.

    Raises:
        UserError: a window or step below 1.
    """

    def __init__(
        self, predictor: Predictor, window: int, step: int = 1, *, img_shape: tuple[int, int] | None = None
    ) -> None:
        for name, value in (("window", window), ("step", step)):
            if value < 1:
                raise UserError(f"{name} is {value} frames, expected 1 or more")
        self.predictor, self.step, self.img_shape = predictor, step, img_shape
        self._frames: deque[np.ndarray] = deque(maxlen=window)
        self._pushed = 0

    def push(self, poses: np.ndarray) -> np.ndarray | None:
        """Take the next frame.

        Args:
            poses: (M, V, C); M may differ from frame to frame, but a person keeps the same place. (0, V, C) is nobody.

        Returns:
            probabilities float64 (classes,) where `step` frames have come since the last ones and the window is full,
            unless nobody is in it; else None.

        Raises:
            UserError: poses that the network cannot take.
        """
        poses, V, C = np.asarray(poses), self.predictor.layout.num_joints, self.predictor.in_channels
        if poses.shape[1:] != (V, C) or poses.ndim != 3 or poses.dtype.kind not in "fiu":
            found = f"a {poses.dtype} array of shape {poses.shape}"
            raise UserError(f"a frame is {found}, expected numbers (persons, {V} joints, {C} channels)")
        self._frames.append(poses)
        self._pushed += 1
        behind = self._pushed - self._frames.maxlen
        if behind < 0 or behind % self.step:
            return None
        window = np.zeros((max(map(len, self._frames)), len(self._frames), V, C), np.float32)
        for t, frame in enumerate(self._frames):
            window[: len(frame), t] = frame
        window = window[np.nan_to_num(window).any((1, 2, 3))]
        return self.predictor(window, img_shape=self.img_shape) if len(window) else None


def _load(path: Path, device: torch.device, backend: str | None) -> tuple[Recognizer, preprocessing.Preprocessing]:
    config = Config()
    config.model.backend = backend
    backend, _ = choose_backend(config, device)
    trained = load_trained(path, device=device, backend=backend)
    found = preprocessing.of_model(trained.model)
    if trained.model.preprocessing is None:  # a run of before checkpoints told
        if trained.config is not None:
            found = preprocessing.with_settings(found, trained.config, tuple(preprocessing.SETTINGS))
        found = replace(found, label_names=trained.label_names or found.label_names)
    return trained.model, found
