"""The authors' data path: pre_normalization row by row, whole clips padded, scores treated as a coordinate."""

from pathlib import Path

import numpy as np
import pytest
from clip_sets import npz_arrays, small
from hypothesis import given, settings
from hypothesis import strategies as st

from msg3d_fast import training
from msg3d_fast.config import load_config
from msg3d_fast.data import ClipSet, Pipeline, open_dataset, pipeline, write_store
from msg3d_fast.data.original import PreNormalization, pre_normalization
from msg3d_fast.errors import UserError
from msg3d_fast.graph import get_layout

NTU = get_layout("nturgb+d")


def holes(rng: np.random.Generator, people: int, frames: int) -> np.ndarray:
    """A clip (M, T, V, C) with whatever upstream meets: late and absent persons, gaps, missing joints."""
    x = rng.normal(0, 1, (people, frames, 25, 3)).astype(np.float32)
    x[rng.random((people, frames)) < rng.choice([0, 0.3, 0.9])] = 0
    x[rng.random((people, frames, 25)) < rng.choice([0, 0.1])] = 0
    x[rng.random(people) < 0.2] = 0
    if rng.random() < 0.4:
        x[rng.integers(people), : rng.integers(1, frames + 1)] = 0
    return x


def clip_set(clips: list[np.ndarray]) -> ClipSet:
    count = len(clips)
    return ClipSet(
        keypoint=np.concatenate([clip.reshape(-1, 25, 3) for clip in clips]),
        num_person=np.array([len(clip) for clip in clips]),
        total_frames=np.array([clip.shape[1] for clip in clips]),
        label=np.zeros(count, int),
        frame_dir=np.array([f"clip_{i}" for i in range(count)]),
        label_names=("a",),
        layout=NTU,
        channels="xyz",
    )


def padded(clip: np.ndarray, length: int) -> np.ndarray:
    """What the authors store: (1, C, T, V, M) for two persons."""
    dense = np.zeros((2, length, 25, 3), np.float32)
    dense[: len(clip), : clip.shape[1]] = clip[:2]
    return dense.transpose(3, 1, 2, 0)[None]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_rows_are_those_of_the_dense_arrays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips = [holes(rng, int(rng.integers(1, 4)), int(rng.integers(1, 8))) for _ in range(5)]
    length = int(rng.integers(7, 12))
    found = Pipeline(clip_set(clips), semantics="original", clip_len=length, num_person=2, test_mode=True)
    x, _ = found.batch(np.arange(5))
    for i, clip in enumerate(clips):
        expected = pre_normalization(padded(clip, length))[0].transpose(3, 1, 2, 0)  # (M, T, V, C)
        np.testing.assert_array_equal(x[i, 0].numpy(), expected)


def test_streams_of_a_store_that_is_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    clips = clip_set([holes(rng, 2, 9) for _ in range(4)])
    store = open_dataset(write_store(clips, tmp_path / "store", "float32"))
    options = {"semantics": "original", "clip_len": 12, "test_mode": False}
    for stream in ("j", "b", "jm", "bm"):
        cached, _ = Pipeline(clips, stream=stream, **options).batch(np.arange(4))
        monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
        np.testing.assert_array_equal(Pipeline(store, stream=stream, **options).batch(np.arange(4))[0], cached)
        monkeypatch.undo()
        if stream == "b":
            joints, _ = Pipeline(clips, **options).batch(np.arange(4))
            parents = joints[..., [dict(NTU.bones)[joint] for joint in range(25)], :]
            np.testing.assert_array_equal(cached, joints - parents)


def test_clips_without_normalisation_end_in_zeros() -> None:
    clips = small(layout="openpose", channels="xys")
    x, _ = Pipeline(clips, semantics="original", normalize="none", clip_len=15, stream="b").batch(np.arange(12))
    joints, _ = Pipeline(clips, semantics="original", normalize="none", clip_len=15).batch(np.arange(12))
    parents = [dict(clips.layout.bones)[joint] for joint in range(18)]
    np.testing.assert_array_equal(x, joints - joints[..., parents, :])  # the score's difference too
    for i in range(12):
        frames = clips.total_frames[i]
        assert not joints[i, :, :, frames:].any()
        np.testing.assert_array_equal(joints[i, 0, : clips.num_person[i], :frames], clips.clip(i)[:2])


def test_what_the_recipe_has_no_place_for() -> None:
    clips = small(layout="nturgb+d", channels="xyz")
    with pytest.raises(UserError, match=r"one has 12 frames; set --data\.clip_len=12"):
        Pipeline(clips, semantics="original", clip_len=11)
    with pytest.raises(UserError, match=r"--data\.clip_len=12"):
        Pipeline(clips, semantics="original", clip_len=11, normalize="none")
    with pytest.raises(UserError, match=r"set --test\.num_clips=1"):
        Pipeline(clips, semantics="original", clip_len=12, num_clips=10)
    assert "as the authors" in Pipeline(clips, semantics="original", clip_len=12).description
    assert PreNormalization(clips.subset(np.arange(2)), 12).total_frames.tolist() == [12, 12]


def test_the_recipe_trains(tmp_path: Path) -> None:
    arrays = npz_arrays(small(num_clips=9, layout="nturgb+d", channels="xyz"))
    arrays |= {"split_xsub_train": np.arange(9) < 5, "split_xsub_val": np.arange(9) >= 5}
    np.savez(tmp_path / "clips.npz", **arrays)
    small_sizes = ["model.base_channels=6", "model.num_gcn_scales=2", "model.num_g3d_scales=2", "model.num_classes=3"]
    short = ["data.clip_len=12", "train.epochs=2", "train.milestones=[1]", "train.batch_size=4", "device=cpu"]
    config = load_config("ntu60_xsub_original", [f"data.path={tmp_path / 'clips.npz'}", *small_sizes, *short])
    metrics = training.train(config, tmp_path / "run")
    assert (metrics["num_samples"], metrics["num_clips"]) == (4, 1)
    assert [line.split(",")[1] for line in (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]] == [
        "0.05",
        "0.005000000000000001",
    ]
