"""From a video to poses: frames by PyAV, poses by an estimator, persons followed from frame to frame.

An estimator is any callable from an image, uint8 (H, W, 3) in RGB, to the poses in it, float (P, V, 3): x and y in
pixels and a confidence, or x, y and z. rtmlib (RTMPose) finds the joints of coco and openpose, of everybody in the
image, and fetches its models on first use; MediaPipe's model of mediapipe33, for one person, comes with it.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .clips import ClipSet
from .readers.job import MOST_FRAMES
from .tracks import into_slots

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")

Estimator = Callable[[np.ndarray], np.ndarray]


def is_video(path: str | Path) -> bool:
    """Whether the name is a video's."""
    return Path(path).suffix.lower() in SUFFIXES


class VideoSource:
    """A video as one clip, read when it is gone through; the counterpart of `poses.PoseSource`.

    Args:
        path: the file.
        layout: the skeleton of the network that the poses are for.
        channels: of its poses.
        estimator: finds the poses of an image; by default the one of `estimator_for`.
        max_person: persons that are followed.
        progress: called after each frame with the frames that the file is said to have, or 0.

    Attributes:
        fps: frames per second.
        skipped: (name, reason), if nobody is in the video.
        missing: joints that held NaN or infinity.

    Raises:
        UserError: no PyAV, no estimator for the skeleton, or a file that cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        channels: str,
        *,
        estimator: Estimator | None = None,
        max_person: int = 2,
        progress: Callable[[int], None] = lambda total: None,
    ) -> None:
        self.path, self.layout, self.channels, self.max_person = Path(path), layout, channels, max_person
        self.progress = progress
        self.skipped: list[tuple[str, str]] = []
        self.missing = 0
        self._av = _package("av", "av")
        with self._open() as container:
            rate = container.streams.video[0].average_rate
            self.fps: float | None = None if not rate else float(rate)
        self.estimator = estimator or estimator_for(layout, channels)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[int, ClipSet | None]]:
        frames, shape = [], (0, 0)
        for image in self._images():
            frames.append(self._poses(image))
            shape = image.shape[:2]
            if len(frames) > MOST_FRAMES:
                raise UserError(f"{self.path}: has more than {MOST_FRAMES} frames; cut it into parts")
        pose = self._followed(frames)
        if not pose.any():
            self.skipped.append((self.path.name, "nobody is in any of its frames"))
            yield 1, None
            return
        yield (
            1,
            ClipSet(
                keypoint=pose.reshape(-1, *pose.shape[2:]),
                num_person=np.array([len(pose)]),
                total_frames=np.array([pose.shape[1]]),
                label=np.zeros(1, np.int64),
                frame_dir=np.array([self.path.stem]),
                label_names=("unlabelled",),
                layout=self.layout,
                channels=self.channels,
                img_shape=np.array([shape]),
                name=str(self.path),
            ),
        )

    def _poses(self, image: np.ndarray) -> np.ndarray:
        poses = np.asarray(self.estimator(image), np.float32)
        expected = (self.layout.num_joints, 3)
        if poses.ndim != 3 or poses.shape[1:] != expected:
            raise UserError(f"the estimator gave poses of shape {poses.shape}, expected (persons, {expected[0]}, 3)")
        bad = ~np.isfinite(poses).all(-1)
        self.missing += int(bad.sum())
        return np.where(bad[..., None], 0, poses)

    def _followed(self, frames: list[np.ndarray]) -> np.ndarray:
        """float32 (M, T, V, C)."""
        if self.channels == "xyz":  # there is no confidence by which persons could be followed: the first of each frame
            nobody = np.zeros((self.layout.num_joints, 3), np.float32)
            return np.stack([poses[0] if len(poses) else nobody for poses in frames])[None]
        pose = into_slots(frames, self.max_person)
        return pose[..., : len(self.channels)].astype(np.float32)

    def _open(self) -> Any:
        try:
            container = self._av.open(str(self.path))
            if not container.streams.video:
                container.close()
                raise UserError(f"{self.path}: holds no pictures; give a video")
        except (OSError, ValueError, self._av.error.FFmpegError) as error:
            if isinstance(error, UserError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{self.path}: cannot be read as a video ({reason:.80}); check the file") from None
        return container

    def _images(self) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3), upright."""
        number = 0
        with self._open() as container:
            total = container.streams.video[0].frames
            try:
                for frame in container.decode(video=0):
                    number += 1
                    yield upright(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0))
                    self.progress(total)
            except self._av.error.FFmpegError as error:
                reason = f"{error.strerror or error}"
                raise UserError(
                    f"{self.path}: is damaged after {number} frames ({reason:.80}); fetch it again"
                ) from None
        if not number:
            raise UserError(f"{self.path}: holds no pictures; give a video")


def upright(image: np.ndarray, rotation: int) -> np.ndarray:
    """An image turned as the file asks for: `rotation` in degrees, counter-clockwise, as phones write it."""
    return np.ascontiguousarray(np.rot90(image, round(rotation / 90) % 4))


def estimator_for(layout: Layout, channels: str) -> Estimator:
    """An estimator that finds the joints of a skeleton.

    Raises:
        UserError: there is none for it, or a package or its model is missing.
    """
    if channels != "xyz" and layout.name in ("coco", "openpose"):
        return RTMPose(to_openpose=layout.name == "openpose")
    if layout.name == "mediapipe33":
        return MediaPipe(world=channels == "xyz")
    raise UserError(
        f"no pose estimator gives the joints of {layout.name} ({channels}): videos give poses of coco or openpose "
        "in 2-D, or of mediapipe33; estimate the poses yourself and give their files"
    )


class RTMPose:
    """rtmlib's persons of an image: everybody that its detector finds.

    Args:
        to_openpose: the 18 joints of openpose instead of coco's 17.
    """

    def __init__(self, to_openpose: bool = False) -> None:
        rtmlib = _package("rtmlib", "rtmlib onnxruntime")
        try:
            self._body = rtmlib.Body(mode="balanced", to_openpose=to_openpose, backend="onnxruntime", device="cpu")
        except Exception as error:  # of the network, a disk or a runtime
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"rtmlib has no pose model ({reason:.80}); it fetches them on first use: connect to the internet once"
            ) from error
        self._joints = 18 if to_openpose else 17

    def __call__(self, image: np.ndarray) -> np.ndarray:
        image = np.ascontiguousarray(image[..., ::-1])  # its models take BGR
        boxes = self._body.det_model(image)
        if not len(boxes):  # given no boxes, its pose model would take the whole image for a person
            return np.zeros((0, self._joints, 3), np.float32)
        keypoints, scores = self._body.pose_model(image, bboxes=boxes)
        return np.concatenate([keypoints, scores[..., None]], -1)


class MediaPipe:
    """MediaPipe's one person of an image, followed by its own tracker from frame to frame.

    Args:
        world: x, y and z in metres around the hips, instead of pixels and visibility.
    """

    def __init__(self, world: bool = False) -> None:
        mediapipe = _package("mediapipe", '"mediapipe<0.10.22"')
        try:
            self._pose = mediapipe.solutions.pose.Pose(model_complexity=1)  # the one that lies in the package
        except AttributeError:
            raise UserError(
                'this mediapipe has no model with it, as those from 0.10.22 on; pip install "mediapipe<0.10.22"'
            ) from None
        self._world = world

    def __call__(self, image: np.ndarray) -> np.ndarray:
        found = self._pose.process(image)
        marks = found.pose_world_landmarks if self._world else found.pose_landmarks
        if marks is None:
            return np.zeros((0, 33, 3), np.float32)
        if self._world:
            return np.array([[(one.x, one.y, one.z) for one in marks.landmark]], np.float32)
        h, w = image.shape[:2]
        return np.array([[(one.x * w, one.y * h, one.visibility) for one in marks.landmark]], np.float32)


def require_decoder() -> None:
    """Do nothing where PyAV is installed.

    Raises:
        UserError: it is not.
    """
    _package("av", "av")


def _package(name: str, install: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        missing = f"{name} ({error})" if error.name not in (None, name) else name
        raise UserError(f"videos need the package {missing}; pip install {install}, or msg3d_fast[video]") from None
