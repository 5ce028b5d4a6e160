"""Preparing clips for training: batches from the memory-mapped store, beside upstream's sequence sample by sample.

    python -m pytest benchmarks -k data

The rivals work from annotations that are already in memory; ours reads the store. Clips per second = 128 / seconds. The
generated clips have 40 to 200 frames and one or two persons; 100 frames are sampled (u100) for two person slots.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

from msg3d_fast.data import ClipSet, Pipeline, open_dataset, pipeline, synthetic, write_store
from msg3d_fast.data.sampling import TEST_SEED

from .harness import compare

CLIPS, BATCH, LENGTH = 1000, 128, 100
STREAMS = {"j": "joint", "jm": "joint motion"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    made = synthetic("coco", 60, CLIPS, num_person=2, frames=(40, 200))
    made.keypoint[..., :2] = made.keypoint[..., :2] * 400 + 600  # pixels of a 1080 x 1920 image
    sized = ClipSet(**{**vars(made), "img_shape": np.tile((1080, 1920), (CLIPS, 1))})
    return open_dataset(write_store(sized, tmp_path_factory.mktemp("data") / "store"))


def sample_frames(total: int, seed: int | None, keypoint: np.ndarray | None) -> np.ndarray:
    """UniformSampleFrames on one clip; given the poses, with the loop over persons that upstream runs to no effect."""
    if seed is not None:
        np.random.seed(seed)  # noqa: NPY002 (what upstream does)
    if total < LENGTH:
        start = 0 if seed is not None else np.random.randint(total)  # noqa: NPY002
        inds = np.arange(start, start + LENGTH)
    elif total < 2 * LENGTH:
        gaps = np.zeros(LENGTH + 1, np.int64)
        gaps[np.random.choice(LENGTH + 1, total - LENGTH, replace=False)] = 1  # noqa: NPY002
        inds = np.arange(LENGTH) + np.cumsum(gaps)[:-1]
    else:
        border = np.array([i * total // LENGTH for i in range(LENGTH + 1)])
        inds = border[:-1] + np.random.randint(np.diff(border))  # noqa: NPY002
    inds = np.mod(inds, total)
    if keypoint is not None:
        present = []
        for frame in range(total):
            people = len(keypoint)
            while people and np.all(np.abs(keypoint[people - 1, frame]) < 1e-5):
                people -= 1
            present.append(people)
        changes = [a != b for a, b in pairwise(present)]
        unsteady = np.array([*changes, False]) | np.array([False, *changes])
        inds = np.where(unsteady[inds], inds, inds.astype(np.float32)).astype(np.int32)
    return inds


def one_sample(clips: ClipSet, i: int, stream: str, test: bool, person_loop: bool) -> np.ndarray:
    """PreNormalize2D, GenSkeFeat, UniformSampleFrames, PoseDecode and FormatGCNInput on one clip."""
    x = clips.clip(i).copy()
    height, width = map(int, clips.img_shape[i])
    x[..., 0] = (x[..., 0] - width / 2) / (width / 2)
    x[..., 1] = (x[..., 1] - height / 2) / (height / 2)
    if stream == "jm":
        motion = np.zeros_like(x)
        motion[:, :-1] = np.diff(x, axis=1)
        motion[:, :-1, :, 2] = (x[:, :-1, :, 2] + x[:, 1:, :, 2]) / 2
        x = motion
    inds = sample_frames(x.shape[1], TEST_SEED if test else None, x if person_loop else None)
    x = x[:, inds].astype(np.float32)
    if len(x) < 2:
        x = np.concatenate([x, np.zeros((2 - len(x), *x.shape[1:]), x.dtype)])
    return np.ascontiguousarray(x[None, :2])


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("kept", ["store", "memory"])
def test_data_batches(benchmark, monkeypatch, store: ClipSet, stream: str, kept: str) -> None:
    """A training batch of 128: normalised as it is read from the store, or gathered from the cached stream."""
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 0 if kept == "store" else 1 << 30)
    in_memory = ClipSet(**{**vars(store), "keypoint": np.array(store.keypoint)})

    def rival(indices: np.ndarray, test: bool, person_loop: bool) -> torch.Tensor:
        samples = [one_sample(in_memory, int(i), stream, test, person_loop) for i in indices]
        return torch.from_numpy(np.stack(samples))

    order = np.random.default_rng(0).permutation(CLIPS)
    tested = Pipeline(store, stream=stream, clip_len=LENGTH, test_mode=True, normalize="2d")
    for person_loop in (False, True):
        assert torch.equal(tested.batch(order)[0], rival(order, True, person_loop)), "no ratio of unequal results"

    trained = Pipeline(store, stream=stream, clip_len=LENGTH, normalize="2d")
    batches = np.array_split(order[: CLIPS // BATCH * BATCH], CLIPS // BATCH)
    turn = iter(range(1 << 30))
    compare(
        benchmark,
        lambda: trained.batch(batches[next(turn) % len(batches)], epoch=next(turn)),
        {
            "upstream's sequence": lambda: rival(batches[next(turn) % len(batches)], False, True),
            "the same without its loop over persons": lambda: rival(batches[next(turn) % len(batches)], False, False),
        },
        kind="data",
        case={"skeleton": "coco-17", "clips": BATCH, "frames": LENGTH, "stream": STREAMS[stream], "kept": kept},
    )
