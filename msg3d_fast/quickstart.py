"""The last page of the quick start: the trained network beside what the same split gives without one."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from . import baselines
from .config import Config
from .evaluation import metrics_of
from .experiment import make_pipeline, open_clips, person_slots

FRAMES = 16  # to which the baselines resample a clip


def compare(config: Config, trained: Mapping[str, float]) -> str:
    """A table of accuracies on the test split, the network's above those of three baselines computed here.

    Args:
        config: of the run; its joint stream, normalisation and splits.
        trained: metrics of the network on that split.
    """
    clips = open_clips(config)
    config = replace(config, data=replace(config.data, clip_len=FRAMES))
    slots = person_slots(config, clips)
    train = make_pipeline(config, clips, config.data.train_split, slots)
    test = make_pipeline(config, clips, config.data.test_split, slots)
    x, y = baselines.pose_features(train), np.asarray(train.clipset.label, np.int64)
    x_test, y_test = baselines.pose_features(test), np.asarray(test.clipset.label, np.int64)
    classes = clips.num_classes
    rows = {
        "MS-G3D": trained,
        "linear classifier": metrics_of(baselines.linear(x, y, x_test, classes), y_test),
        "nearest neighbour": metrics_of(baselines.nearest_neighbour(x, y, x_test, classes), y_test),
        "chance (largest class)": metrics_of(baselines.chance(y, len(y_test), classes), y_test),
    }
    lines = [f"{len(y)} clips to train on, {len(y_test)} to test on", ""]
    lines.append(f"{'':24}{'top-1':>8}{'top-5':>8}{'mean class':>12}")
    for name, metrics in rows.items():
        lines.append(f"{name:24}{metrics['top1']:8.3f}{metrics['top5']:8.3f}{metrics['mean_class']:12.3f}")
    lines += [
        "",
        "The hold-out is by recording: the same performers stand in both splits, so these numbers are optimistic.",
        "Baselines: normalised poses at 16 frames, flattened; logistic regression; Euclidean distance.",
    ]
    return "\n".join(lines)
