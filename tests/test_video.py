"""Videos: frames to poses to classes, and the estimators' libraries called as they are."""

import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import fails

import msg3d_fast as m
from msg3d_fast import cli
from msg3d_fast.data import open_dataset, video
from msg3d_fast.errors import UserError
from msg3d_fast.graph import get_layout
from msg3d_fast.preprocessing import Preprocessing

FRAMES = 12


def images() -> list[np.ndarray]:
    """Two bright squares that wander over a dark ground, 64 x 96; the second one comes late."""
    found = np.full((FRAMES, 64, 96, 3), 16, np.uint8)
    for t, image in enumerate(found):
        image[8:24, 4 + 2 * t : 20 + 2 * t] = 235
        if t > 3:
            image[40:56, 70 - t : 86 - t] = 160
    return list(found)


def squares(image: np.ndarray) -> np.ndarray:
    """An estimator made for them: the joints of a person lie on the diagonal of a square."""
    found = []
    for rows, bright in ((slice(0, 32), 200), (slice(32, 64), 120)):
        where = np.argwhere(image[rows, :, 0] > bright) + np.array((rows.start, 0))
        if len(where):
            (top, left), (bottom, right) = where.min(0), where.max(0)
            along = np.linspace(0, 1, 17)
            joints = [left + (right - left) * along, top + (bottom - top) * along, 0.9 + 0 * along]
            found.append(np.stack(joints, 1))
    return np.array(found[::-1]).reshape(-1, 17, 3)


class FakeFFmpegError(Exception):
    strerror = "Invalid data found"


class FakeContainer:
    """What PyAV opens."""

    broken = False

    def __init__(self, path: str) -> None:
        if Path(path).read_bytes() != b"video":
            raise FakeFFmpegError
        self.streams = SimpleNamespace(video=[SimpleNamespace(average_rate=Fraction(25), frames=FRAMES)])

    def __enter__(self) -> "FakeContainer":
        return self

    def __exit__(self, *_: object) -> None: ...

    def decode(self, video: int) -> Iterator[Any]:
        for t, image in enumerate(images()):
            if self.broken and t == 3:
                raise FakeFFmpegError
            turned = np.rot90(image, 1)  # as a phone held upright writes it
            yield SimpleNamespace(to_ndarray=lambda format, turned=turned: turned, rotation=-90)


@pytest.fixture
def av(monkeypatch: pytest.MonkeyPatch) -> type[FakeContainer]:
    module = ModuleType("av")
    module.open = FakeContainer
    module.error = SimpleNamespace(FFmpegError=FakeFFmpegError)
    monkeypatch.setitem(sys.modules, "av", module)
    monkeypatch.setattr(FakeContainer, "broken", False)
    return FakeContainer


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"video")
    return path


def check(source: video.VideoSource, tolerance: float) -> None:
    ((pieces, clips),) = list(source)
    assert pieces == 1
    assert source.fps == 25
    assert clips.img_shape.tolist() == [[64, 96]]
    pose = clips.clip(0)
    assert pose.shape == (2, FRAMES, 17, 3)
    np.testing.assert_allclose(pose[0, :, 0, 0], 4 + 2 * np.arange(FRAMES), atol=tolerance)
    assert not pose[1, :4].any()
    np.testing.assert_allclose(pose[1, 4:, 0, 0], 70 - np.arange(4, FRAMES), atol=tolerance)


@pytest.mark.usefixtures("av")
def test_persons_are_followed_through_a_video(film: Path) -> None:
    seen = []
    source = video.VideoSource(film, get_layout("coco"), "xys", estimator=squares, progress=seen.append)
    check(source, 0)
    assert seen == [FRAMES] * FRAMES


def test_a_real_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for image in images():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    check(video.VideoSource(path, get_layout("coco"), "xys", estimator=squares), 2)
    path.write_bytes(b"no video at all")
    with pytest.raises(UserError, match="cannot be read as a video"):
        video.VideoSource(path, get_layout("coco"), "xys", estimator=squares)


def test_verb_takes_a_video(
    av: type[FakeContainer],
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    model = m.Recognizer("coco", 2, base_channels=6, num_gcn_scales=2, num_g3d_scales=2).eval()
    model.preprocessing = Preprocessing(channels="xys", label_names=("a", "b"), clip_len=4, normalize="2d").plain()
    m.save_checkpoint(model, tmp_path / "net.ckpt")
    net, out = ["--checkpoint", str(tmp_path / "net.ckpt")], tmp_path / "out.json"
    monkeypatch.setattr(video, "estimator_for", lambda layout, channels: squares)
    assert cli.main(["predict", str(film), *net, "--window", "4", "--per-person", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["fps"] == 25
    assert [(one["clip"], one["person"], one["frames"]) for one in found["clips"]] == [
        ("film", 0, FRAMES),
        ("film", 1, FRAMES),
    ]
    late = found["clips"][1]["segments"]  # windows of 4 frames, every 2: the first with anybody begins at frame 2
    assert (late[0]["start"], late[-1]["end"]) == (2, FRAMES - 1)
    capsys.readouterr()
    assert cli.main(["predict", str(film), *net, "--window", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:5] == ["clip", "start", "end", "start_s", "end_s"]
    monkeypatch.setattr(video, "estimator_for", lambda layout, channels: lambda image: np.zeros((0, 17, 3)))
    assert "nobody is in any of its frames" in fails(capsys, "predict", str(film), *net)
    monkeypatch.setattr(av, "broken", True)
    assert "damaged after 3 frames (Invalid data found)" in fails(capsys, "predict", str(film), *net)
    film.write_bytes(b"other")
    assert "cannot be read as a video" in fails(capsys, "predict", str(film), *net)
    monkeypatch.setitem(sys.modules, "av", None)
    assert "videos need the package av; pip install av, or msg3d_fast[video]" in fails(
        capsys, "predict", str(film), *net
    )


def test_labelled_videos_become_a_store(
    av: type[FakeContainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("jump/one", b"video"), ("run/two", b"video"), ("run/three", b"other")):
        path = tmp_path / "films" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr("msg3d_fast.data.readers.videos.estimator_for", lambda layout, channels: squares)
    source, place = str(tmp_path / "films"), tmp_path / "store"
    assert cli.main(["prepare", source, str(place), "--dtype", "float32"]) == 0
    assert "skipped run/three.mp4: cannot be read as a video" in capsys.readouterr().out
    clips = open_dataset(place)
    assert clips.frame_dir.tolist() == ["jump/one", "run/two"]
    assert [clips.label_names[label] for label in clips.label] == ["jump", "run"]
    assert clips.img_shape.tolist() == [[64, 96]] * 2
    np.testing.assert_allclose(clips.clip(1)[0, :, 0, 0], 4 + 2 * np.arange(FRAMES))
    monkeypatch.setitem(sys.modules, "av", None)
    assert "videos need the package av; pip install av" in fails(capsys, "prepare", source, str(tmp_path / "c"))


@pytest.mark.parametrize("layout", ["coco", "openpose"])
def test_rtmlib_is_called_as_it_is(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joints = 17 if layout == "coco" else 18

    class Body:
        """rtmlib 0.0.16: its pose model takes the whole image for a person where no boxes are given."""

        def __init__(self, mode: str, to_openpose: bool, backend: str, device: str) -> None:
            assert (to_openpose, backend, device) == (layout == "openpose", "onnxruntime", "cpu")
            self.det_model = lambda image: np.array([[0, 0, 9, 9], [1, 1, 5, 5]])[: int(image[0, 0, 0])]

        def pose_model(self, image: np.ndarray, bboxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            assert image.flags.c_contiguous
            return np.full((len(bboxes), joints, 2), 3.0), np.full((len(bboxes), joints), 0.5)

    monkeypatch.setitem(sys.modules, "rtmlib", SimpleNamespace(Body=Body))
    estimator = video.estimator_for(get_layout(layout), "xys")
    image = np.zeros((10, 10, 3), np.uint8)
    assert estimator(image).shape == (0, joints, 3)
    image[0, 0, 2] = 2  # blue is the first channel that rtmlib sees
    poses = estimator(image)
    assert poses.shape == (2, joints, 3)
    assert poses[1, 4].tolist() == [3, 3, 0.5]

    def offline(**_: Any) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setitem(sys.modules, "rtmlib", SimpleNamespace(Body=offline))
    with pytest.raises(UserError, match=r"no pose model .*Name or service not known.*connect to the internet"):
        video.estimator_for(get_layout(layout), "xys")


def test_mediapipe_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pose:
        def __init__(self, model_complexity: int) -> None:
            assert model_complexity == 1

        def process(self, image: np.ndarray) -> Any:
            marks = SimpleNamespace(landmark=[SimpleNamespace(x=0.5, y=0.25, z=0.1, visibility=0.9)] * 33)
            return SimpleNamespace(pose_landmarks=marks, pose_world_landmarks=marks if image.any() else None)

    module = SimpleNamespace(solutions=SimpleNamespace(pose=SimpleNamespace(Pose=Pose)))
    monkeypatch.setitem(sys.modules, "mediapipe", module)
    image = np.ones((40, 60, 3), np.uint8)
    flat = video.estimator_for(get_layout("mediapipe33"), "xys")(image)
    np.testing.assert_allclose(flat[0, 7], [30, 10, 0.9], rtol=1e-6)
    world = video.estimator_for(get_layout("mediapipe33"), "xyz")
    np.testing.assert_allclose(world(image)[0, 7], [0.5, 0.25, 0.1], rtol=1e-6)
    assert world(0 * image).shape == (0, 33, 3)
    monkeypatch.setitem(sys.modules, "mediapipe", SimpleNamespace())
    with pytest.raises(UserError, match=r'pip install "mediapipe<0.10.22"'):
        video.estimator_for(get_layout("mediapipe33"), "xys")
    with pytest.raises(UserError, match=r"no pose estimator gives the joints of nturgb\+d"):
        video.estimator_for(get_layout("nturgb+d"), "xyz")
