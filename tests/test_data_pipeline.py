"""Batches: their draws, their parts, and that neither company nor storage changes a clip."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_sets import small
from hypothesis import given, settings
from hypothesis import strategies as st

from msg3d_fast.data import Augment, ClipSet, Pipeline, open_dataset, pipeline, synthetic, write_store
from msg3d_fast.data.augment import mirror
from msg3d_fast.data.draws import LegacyDraws, PhiloxDraws, philox
from msg3d_fast.data.sampling import sample_for_test, uniform_sample
from msg3d_fast.data.streams import STREAMS
from msg3d_fast.errors import UserError

AUGMENT = Augment(rotate=0.3, scale=0.2, noise=0.01, flip=0.5, crop=0.7)


@pytest.mark.parametrize(
    ("word", "key", "expected"),
    [
        (0, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(word: int, key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(int(x[0]) for x in philox([np.array([word], np.uint64)] * 4, key)) == expected


def test_draws_depend_on_nothing_but_seed_epoch_and_sample() -> None:
    def draw(samples: list[int], epoch: int = 3, seed: int = 11, purpose: int = 0) -> np.ndarray:
        draws, rows = PhiloxDraws(seed, epoch, np.array(samples), purpose), np.arange(len(samples))
        parts = [
            draws.uniform((5,), rows),
            draws.normal((3,), rows),
            draws.integers(np.full((len(samples), 4), 99), rows),
        ]
        return np.concatenate(parts, axis=1)

    together = draw([4, 9, 2])
    np.testing.assert_array_equal(draw([9])[0], together[1])
    np.testing.assert_array_equal(draw([2, 4]), together[[2, 0]])
    for other in (draw([4, 9, 2], epoch=4), draw([4, 9, 2], seed=12), draw([4, 9, 2], purpose=1)):
        assert not np.intersect1d(other[:, :5], together[:, :5]).size
    rows_apart = PhiloxDraws(11, 3, np.array([4, 9]))
    alone = rows_apart.uniform((5,), np.array([1]))  # one of the batch draws, the other does not
    np.testing.assert_array_equal(alone[0], together[1, :5])
    np.testing.assert_array_equal(rows_apart.uniform((5,), np.array([0]))[0], together[0, :5])


def test_draws_are_uniform_and_normal() -> None:
    draws, rows = PhiloxDraws(0, 0, np.arange(400)), np.arange(400)
    uniform = draws.uniform((500,), rows)
    assert 0 < uniform.min() < uniform.max() < 1
    assert abs(np.histogram(uniform, 20, (0, 1))[0] / uniform.size - 0.05).max() < 0.002
    normal = draws.normal((500,), rows)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert abs((normal**4).mean() - 3) < 0.1
    seven = draws.integers(np.full((400, 700), 7), rows)
    assert abs(np.bincount(seven.ravel(), minlength=7) / seven.size - 1 / 7).max() < 0.003


def test_every_subset_is_equally_likely() -> None:
    draws = PhiloxDraws(0, 0, np.arange(20000))
    chosen = draws.subsets(5, np.full(20000, 2), np.arange(20000))
    assert (chosen.sum(1) == 2).all()
    counts = [int((chosen[:, a] & chosen[:, b]).sum()) for a, b in combinations(range(5), 2)]
    assert abs(np.array(counts) / 20000 - 0.1).max() < 0.01


@pytest.mark.parametrize("semantics", ["mmaction2", "pyskl"])
@pytest.mark.parametrize("frames", [3, 7, 8, 11, 15, 16, 40])
def test_sampling_is_distributed_as_upstreams(frames: int, semantics: str) -> None:
    """How often each frame stands at each place: counter-based draws against NumPy's, within five standard errors."""
    num, length = 4000, 8
    total = np.full(num, frames)
    ours = uniform_sample(total, length, 1, PhiloxDraws(5, 0, np.arange(num)), semantics=semantics)[:, 0]
    state = np.random.RandomState(5)
    theirs = uniform_sample(total, length, 1, LegacyDraws([state] * num), semantics=semantics)[:, 0]
    share = [np.stack([(inds == frame).mean(0) for frame in range(frames)]) for inds in (ours, theirs)]
    middle = (share[0] + share[1]) / 2
    error = np.sqrt(np.maximum(middle * (1 - middle), 1e-12) * 2 / num)
    assert (abs(share[0] - share[1]) <= 5 * error).all()
    if frames >= length:
        assert (np.diff(ours, axis=1) > 0).all()
    else:
        assert (np.diff(ours, axis=1) % frames == 1 % frames).all()


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=8),
    clip_len=st.integers(1, 30),
    num_clips=st.integers(1, 4),
    test=st.booleans(),
    semantics=st.sampled_from(["mmaction2", "pyskl"]),
)
def test_a_batch_samples_as_its_members_do(
    lengths: list[int], clip_len: int, num_clips: int, test: bool, semantics: str
) -> None:
    frames = np.array(lengths)

    def sample(which: np.ndarray) -> np.ndarray:
        if test:
            return sample_for_test(frames[which], clip_len, num_clips, semantics=semantics)
        return uniform_sample(frames[which], clip_len, num_clips, PhiloxDraws(1, 2, which), semantics=semantics)

    together = sample(np.arange(len(frames)))
    assert together.shape == (len(frames), num_clips, clip_len)
    assert (together >= 0).all()
    assert (together < frames[:, None, None]).all()
    for i in range(len(frames)):
        np.testing.assert_array_equal(sample(np.array([i]))[0], together[i])


def sets() -> dict[str, ClipSet]:
    flat, solid = small(num_person=2), small(layout="nturgb+d", channels="xyz", num_person=3)
    solid.keypoint[5:9] = 0
    return {"xys": flat, "xy": small(channels="xy", num_person=2), "xyz": solid}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("semantics", ["mmaction2", "pyskl"])
@pytest.mark.parametrize("channels", ["xys", "xy", "xyz"])
def test_cached_streamed_and_stored_batches_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: str, semantics: str, stream: str
) -> None:
    clips = sets()[channels]
    stored = open_dataset(write_store(clips, tmp_path / "s", "float32"))
    options = {"stream": stream, "clip_len": 9, "num_clips": 2, "semantics": semantics, "augment": AUGMENT}
    indices = np.array([3, 0, 11, 3])
    x, label = Pipeline(clips, **options).batch(indices, epoch=2)
    assert x.shape == (4, 2, 2, 9, clips.num_joints, len(channels))
    assert (x.dtype, label.dtype) == (torch.float32, torch.int64)
    assert x.is_contiguous()
    assert label.tolist() == clips.label[indices].tolist()
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
    for source in (clips, stored):
        again, _ = Pipeline(source, **options).batch(indices, epoch=2)
        assert torch.equal(again, x)


@pytest.mark.parametrize("test_mode", [False, True])
def test_company_does_not_change_a_sample(test_mode: bool) -> None:
    p = Pipeline(sets()["xys"], clip_len=9, num_clips=3, test_mode=test_mode, augment=AUGMENT, seed=4)
    together, _ = p.batch(np.arange(12), epoch=5)
    for part in ([7], [2, 11], [11, 10, 9, 8]):
        alone, _ = p.batch(np.array(part), epoch=5)
        assert torch.equal(alone, together[part])
    assert torch.equal(p.batch(np.arange(12), epoch=6)[0], together) == test_mode


def test_a_clip_keeps_its_pose_in_a_subset() -> None:
    clips = sets()["xyz"]
    chosen = np.array([9, 1, 4])
    whole = Pipeline(clips, clip_len=9, test_mode=True).batch(chosen)[0]
    assert torch.equal(Pipeline(clips.subset(chosen), clip_len=9, test_mode=True).batch(np.arange(3))[0], whole)


def test_absent_persons_are_zero_and_further_ones_left_out() -> None:
    clips = sets()["xyz"]
    for slots in (1, 2, 4):
        x, _ = Pipeline(clips, clip_len=9, num_person=slots, test_mode=True, normalize="none").batch(np.arange(12))
        for i in range(12):
            there = min(slots, int(clips.num_person[i]))
            assert not x[i, :, there:].any()
            frames = sample_for_test(clips.total_frames[i : i + 1], 9, 1)[0, 0]
            np.testing.assert_array_equal(x[i, 0, :there], clips.clip(i)[:there, frames])


def test_augmentation_leaves_the_confidence_and_absent_persons_alone() -> None:
    clips = sets()["xys"]
    plain = Pipeline(clips, clip_len=9, seed=1).batch(np.arange(12))[0]
    changed = Pipeline(clips, clip_len=9, seed=1, augment=Augment(rotate=0.5, scale=0.3, noise=0.05)).batch(
        np.arange(12)
    )[0]
    assert torch.equal(changed[..., 2], plain[..., 2])
    absent = plain.abs().sum((3, 4, 5)) == 0
    assert absent.any()
    assert not changed[absent].any()
    assert (changed[..., :2][~absent] != plain[..., :2][~absent]).any()


def test_rotation_keeps_lengths_and_scaling_its_range() -> None:
    clips = sets()["xyz"]
    plain = Pipeline(clips, clip_len=9).batch(np.arange(12))[0]
    turned = Pipeline(clips, clip_len=9, augment=Augment(rotate=0.5)).batch(np.arange(12))[0]
    torch.testing.assert_close(turned.norm(dim=-1), plain.norm(dim=-1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(turned, plain)
    scaled = Pipeline(clips, clip_len=9, augment=Augment(scale=0.2)).batch(np.arange(12))[0]
    ratio = (scaled / plain)[plain.abs() > 1e-3]
    assert 0.8 - 1e-4 < ratio.min() < 1 < ratio.max() < 1.2 + 1e-4


def test_a_crop_draws_from_a_part_of_the_sample_anywhere_in_it() -> None:
    total = np.full(400, 100)
    frames = uniform_sample(total, 10, 1, PhiloxDraws(0, 0, np.arange(400), 0), p_interval=(0.3, 0.5))[:, 0]
    span = np.ptp(frames, axis=1) + 1
    assert span.max() <= 50
    assert span.min() >= 0.3 * 100 - 5  # a frame of the first and one of the last of ten segments
    assert frames.min() < 5
    assert frames.max() > 94
    assert (np.diff(frames, axis=1) > 0).all()
    everywhere = uniform_sample(np.array([1, 2]), 4, 1, PhiloxDraws(0, 0, np.arange(2), 0), p_interval=(0.0, 1.0))
    assert set(everywhere.reshape(-1)) <= {0, 1}


@pytest.mark.parametrize("stream", STREAMS)
def test_mirroring_the_stream_is_the_stream_of_the_mirror(stream: str) -> None:
    clips = small(layout="nturgb+d", channels="xyz")
    flipped = ClipSet(**{**vars(clips), "keypoint": mirror(clips.keypoint, clips.layout)})
    options = {"stream": stream, "clip_len": 9, "normalize": "none"}
    expected = Pipeline(flipped, **options).batch(np.arange(12))[0]
    found = Pipeline(clips, **options, augment=Augment(flip=1.0)).batch(np.arange(12))[0]
    assert torch.equal(found, expected)
    half = Pipeline(synthetic(num_clips=400, frames=(3, 3)), clip_len=3, augment=Augment(flip=0.25))
    plain = Pipeline(half.clipset, clip_len=3)
    same = (half.batch(np.arange(400))[0] == plain.batch(np.arange(400))[0]).flatten(1).all(1)
    assert 0.65 < same.float().mean() < 0.85


def test_centring_alone_moves_the_body_and_keeps_the_axes() -> None:
    clips = sets()["xyz"]
    found = Pipeline(clips, clip_len=9, num_person=1, normalize="center", test_mode=True)
    raw = Pipeline(clips, clip_len=9, num_person=1, normalize="none", test_mode=True)
    assert "turn" not in found.description
    assert "spine" not in found.description
    complete = [
        i for i in range(len(clips)) if found.total_frames[i] == clips.total_frames[i] and clips.num_person[i] == 1
    ]
    assert complete
    x, y = (p.batch(np.array(complete))[0].double() for p in (found, raw))
    for i in range(len(complete)):
        shift = (y - x)[i][(y[i] != 0).all(-1)]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=2e-3)


def test_what_auto_chooses_is_said() -> None:
    flat = sets()["xys"]
    sized = ClipSet(**{**vars(flat), "img_shape": np.tile((1080, 1920), (12, 1))})
    assert "bounding box" in Pipeline(flat, clip_len=4).description
    assert "2-D by image size" in Pipeline(sized, clip_len=4).description
    assert "3-D: centre on joint 1, spine to z, shoulders to x" in Pipeline(sets()["xyz"], clip_len=4).description
    assert "as the clips do not say" in Pipeline(flat, clip_len=4, normalize="2d").description


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stream": "x"}, "unknown stream 'x'; expected one of j, b, jm, bm"),
        ({"semantics": "x"}, "unknown semantics 'x'"),
        ({"normalize": "x"}, "unknown normalisation 'x'"),
        ({"normalize": "3d"}, "normalize='3d' does not fit xys clips; choose 2d, box or none"),
        ({"clip_len": 0}, "clip_len is 0, expected 1 or more"),
        ({"num_clips": 0}, "num_clips is 0"),
        ({"num_person": -1}, "num_person is -1"),
    ],
)
def test_options_that_cannot_be(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Pipeline(small(), **options)


def test_more_that_cannot_be() -> None:
    with pytest.raises(UserError, match="normalize='box' does not fit xyz clips; choose 3d, center or none"):
        Pipeline(sets()["xyz"], normalize="box")
    with pytest.raises(UserError, match="layout 'hand21' has no flip_pairs"):
        Pipeline(small(layout="hand21"), augment=Augment(flip=0.5))
    with pytest.raises(UserError, match=r"augment.flip is 1.5, expected between 0 and 1"):
        Augment(flip=1.5)
    with pytest.raises(UserError, match=r"augment.noise is -1, expected 0 or more"):
        Augment(noise=-1)
    with pytest.raises(UserError, match="has no split 'x'; splits there are: train"):
        small().subset("x")
    with pytest.raises(UserError, match="an empty selection of its 12 clips"):
        small().subset(np.zeros(12, bool))
    with pytest.raises(UserError, match="synthetic: 0 clips of 8 classes"):
        synthetic(num_clips=0)


def test_generated_classes_can_be_told_apart() -> None:
    """A nearest neighbour on motion finds most classes of held-out clips, so training on them can show progress."""
    clips = synthetic(channels="xyz")
    assert synthetic(channels="xyz").fingerprint() == clips.fingerprint()
    features = []
    for split in ("train", "val"):
        p = Pipeline(clips.subset(split), clip_len=24, num_person=1, test_mode=True, stream="j")
        x, label = p.batch(np.arange(len(p)))
        x = x[:, 0, 0]
        features.append(((x - x.mean(1, keepdim=True)).std(1).flatten(1), label))
    (train, train_label), (val, val_label) = features
    assert (train_label[torch.cdist(val, train).argmin(1)] == val_label).float().mean() > 0.9
