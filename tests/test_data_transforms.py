"""Transforms beyond the golden files: ragged batches equal their clips, and the cases upstream stops at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msg3d_fast.data import half, original
from msg3d_fast.data.align import Alignment, body_axes, rotation_onto
from msg3d_fast.data.draws import PhiloxDraws
from msg3d_fast.data.normalize import BoxNormalization, ImageNormalization, Normalization, normalized
from msg3d_fast.data.ragged import Ragged, ragged
from msg3d_fast.data.sampling import decode, format_input, pad_to
from msg3d_fast.data.streams import skeleton_features
from msg3d_fast.errors import UserError
from msg3d_fast.graph import Layout, get_layout

COCO = get_layout("coco")


@st.composite
def batches(draw: st.DrawFn, channels: int = 3, joints: int = 17) -> list[np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    clips = []
    for _ in range(draw(st.integers(1, 5))):
        shape = (draw(st.integers(1, 3)), draw(st.integers(1, 9)), joints, channels)
        clip = rng.normal(0, 20, shape)
        clip[rng.random(shape[:2]) < 0.3] = 0  # frames without anyone
        clip[rng.random(shape[:3]) < 0.1] = 0  # missing joints
        clips.append(clip.astype(draw(st.sampled_from([np.float16, np.float32]))))
    return [clip.astype(clips[0].dtype) for clip in clips]


SOME = settings(deadline=None, max_examples=40)
NORMALIZATIONS = {
    "image": lambda clips: ImageNormalization(clips, np.full((len(clips), 2), 720)),
    "masked image": lambda clips: ImageNormalization(clips, masked=True),
    "box": BoxNormalization,
    "upstream box": lambda clips: BoxNormalization(clips, upstream=True),
    "3d": Alignment,
    "3d centre": lambda clips: Alignment(clips, center=0, zaxis=None, xaxis=(5, 6)),
    "none": Normalization,
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
@SOME
@given(clips=batches())
def test_normalising_a_batch_is_normalising_its_clips(name: str, clips: list[np.ndarray]) -> None:
    together = normalized(NORMALIZATIONS[name](ragged(clips)))
    for i, clip in enumerate(clips):
        alone = normalized(NORMALIZATIONS[name](ragged([clip])))
        np.testing.assert_array_equal(together.clip(i), alone.clip(0))


@SOME
@given(clips=batches())
def test_features_of_a_batch_are_those_of_its_clips(clips: list[np.ndarray]) -> None:
    together = skeleton_features(ragged(clips), COCO, ["j", "b", "jm", "bm"], True)
    for i, clip in enumerate(clips):
        alone = skeleton_features(ragged([clip]), COCO, ["j", "b", "jm", "bm"], True)
        np.testing.assert_array_equal(together.clip(i), alone.clip(0))
        np.testing.assert_array_equal(together.clip(i)[..., :3], clip)
        assert not together.clip(i)[:, -1, :, 6:].any()  # no motion after the last frame


@SOME
@given(clips=batches(), slots=st.integers(1, 4), data=st.data())
def test_formatting_a_batch(clips: list[np.ndarray], slots: int, data: st.DataObject) -> None:
    length = max(clip.shape[1] for clip in clips) + data.draw(st.integers(0, 4))
    padded = pad_to(ragged(clips), length)
    out = format_input(padded, slots, "loop" if slots > 2 else "zero")
    assert out.shape == (len(clips), 1, slots, length, 17, 3)
    for i, clip in enumerate(clips):
        for m in range(min(slots, len(clip))):
            np.testing.assert_array_equal(out[i, 0, m], clip[m, np.arange(length) % clip.shape[1]])


@SOME
@given(seed=st.integers(0, 1 << 32))
def test_half_precision_is_numpys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(-scale, scale, (40, 7)).astype(np.float16) for scale in (6e4, 1e-3))
    a[0], b[1] = 6e-8, -6e-8
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(half.subtract(a, b), a - b)
        np.testing.assert_array_equal(half.divide(a, b), a / b)
        np.testing.assert_array_equal(half.mean(a, b), (a + b) / 2)
    assert half.subtract(a, b).dtype == np.float16
    assert half.divide(a.astype(np.float64), 3.0).dtype == np.float64


def test_every_half_becomes_the_same_float() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(half.widen(every), every.astype(np.float32))


def test_the_main_person_among_three() -> None:
    rng = np.random.default_rng(0)
    clip = rng.normal(0, 1, (3, 6, 25, 3)).astype(np.float32)
    clip[0, 2:], clip[1, 1:] = 0, 0
    clip[2, 0] = 0
    normal = Alignment(ragged([clip]), zaxis=None, xaxis=None)
    found = normalized(normal).clip(0)
    assert found.shape == (3, 5, 25, 3)  # the frame without person 2 is gone
    np.testing.assert_array_equal(found[0], clip[2, 1:] - clip[2, 1, 1])
    np.testing.assert_array_equal(found[2, 0], clip[0, 1] - clip[2, 1, 1])  # who had place 0 has place 2
    assert not found[1].any()


def test_two_persons_seen_equally_often_keep_their_order() -> None:
    clip = np.random.default_rng(0).normal(0, 1, (2, 4, 25, 3)).astype(np.float32)
    clip[0, 0] = clip[1, 1] = 0
    found = normalized(Alignment(ragged([clip]), zaxis=None, xaxis=None)).clip(0)
    assert found.shape[1] == 3
    assert not found[0, 0, 1].any()


@SOME
@given(seed=st.integers(0, 1 << 32))
def test_rotation_turns_a_vector_where_it_should(seed: int) -> None:
    v = np.random.default_rng(seed).normal(0, 1, (8, 3))
    for unit in ((1, 0, 0), (0, 0, 1)):
        turn = rotation_onto(v, unit)
        length = np.linalg.norm(v, axis=1)
        np.testing.assert_allclose((turn @ v[..., None])[..., 0], length[:, None] * np.array(unit), atol=1e-12)
        np.testing.assert_allclose(turn @ turn.swapaxes(1, 2), np.broadcast_to(np.eye(3), turn.shape), atol=1e-12)


def test_vectors_that_cannot_be_turned() -> None:
    v = np.array([[0, 0, 0], [0, 0, 2.0], [0, 0, -2.0]])  # nothing, already there, exactly opposite: no axis
    np.testing.assert_array_equal(rotation_onto(v, (0, 0, 1)), np.broadcast_to(np.eye(3), (3, 3, 3)))


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        ("nturgb+d", (1, (0, 1), (8, 4))),
        ("kinect20", (3, (3, 2), (8, 4))),
        ("mediapipe33", (0, None, (12, 11))),
        ("hand21", (0, None, None)),
        (Layout(("a", "b"), ((0, 1),), 1), (1, None, None)),
    ],
)
def test_body_axes_by_joint_names(layout: str | Layout, axes: tuple) -> None:
    found = body_axes(get_layout(layout))
    assert (found["center"], found["zaxis"], found["xaxis"]) == axes


def test_box_keeps_the_aspect_and_the_missing_joints() -> None:
    clip = np.zeros((1, 2, 17, 3), np.float32)
    clip[0, 0, 0], clip[0, 0, 1], clip[0, 1, 2] = (10, 20, 1), (50, 30, 1), (30, 25, 0.5)
    clip[0, 1, 3] = (900, 900, 0.005)  # not seen
    found = normalized(BoxNormalization(ragged([clip]))).clip(0)
    np.testing.assert_allclose(found[0, 0, :2, :2], [[-1, -0.25], [1, 0.25]])
    np.testing.assert_allclose(found[0, 1, 2], [0, 0, 0.5])
    np.testing.assert_allclose(found[0, 1, 3], [0, 0, 0.005])
    assert not found[0, 0, 4:].any()
    assert not normalized(BoxNormalization(ragged([0 * clip]))).keypoint.any()


def test_subsets_share_rows_and_chunks_cover_them() -> None:
    clips = ragged([np.full((2, 3, 1, 2), i, np.float32) for i in range(5)])
    part = Ragged(keypoint=clips.keypoint, num_person=[2, 2], total_frames=[3, 3], offsets=clips.offsets[[3, 1]])
    assert [part.clip(i)[0, 0, 0, 0] for i in range(2)] == [3, 1]
    assert [list(chunk) for chunk in clips.chunks(12)] == [[0, 1], [2, 3], [4]]
    assert [list(chunk) for chunk in clips.chunks(1)] == [[0], [1], [2], [3], [4]]
    np.testing.assert_array_equal(decode(part, np.array([[2], [0]]))[:, 0, 0, 0, 0], [3, 1])


def test_lengths_that_do_not_fit() -> None:
    clips = ragged([np.zeros((1, n, 17, 2), np.float32) for n in (4, 5)])
    with pytest.raises(UserError, match="a clip has 5 frames, expected at most length 4"):
        pad_to(clips, 4)
    with pytest.raises(UserError, match="clips of 4 to 5 frames cannot be cut into 1 clips"):
        format_input(clips)


@SOME
@given(seed=st.integers(0, 1 << 32), people=st.integers(1, 4))
def test_the_authors_transforms_on_batches(seed: int, people: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 1, (3, 3, 7, 25, people)).astype(np.float32)
    data[0, :, :2], data[1, :, 5:], data[2, :, :, :, -1] = 0, 0, 0
    for operation in (original.pre_normalization, original.openpose_match):
        together = operation(data)
        for i in range(3):
            np.testing.assert_array_equal(operation(data[i : i + 1])[0], together[i])
    for operation in (
        original.random_move,
        original.random_shift,
        lambda x, draws: original.random_choose(x, 4, draws),
        lambda x, draws: original.random_choose(x, 11, draws),
    ):
        together = operation(data, PhiloxDraws(seed, 0, np.arange(3)))
        for i in range(3):
            np.testing.assert_array_equal(
                operation(data[i : i + 1], PhiloxDraws(seed, 0, np.array([i])))[0], together[i]
            )
    assert original.auto_pad(data, 7) is data
