"""The last page of the quick start: the trained network beside what the same split gives without one."""

from collections.abc import Mapping
from dataclasses import replace

from . import baselines
from .config import Config
from .evaluation import metrics_of
from .experiment import make_pipeline, open_clips, person_slots

FRAMES = 16  # to which the baselines resample a clip


def compare(config: Config, trained: Mapping[str, float]) -> str:
    """A table of accuracies on the test split, the network's above those of baselines computed here.

    Args:
        config: of the run; its data, normalisation and splits.
        trained: metrics of the network on that split.
    """
    clips = open_clips(config)
    slots, classes = person_slots(config, clips), clips.num_classes
    rows = {f"MS-G3D, stream {config.data.stream}": trained}
    for stream in ("j", "b"):
        resampled = replace(config, data=replace(config.data, clip_len=FRAMES, stream=stream))
        train, test = (
            make_pipeline(resampled, clips, split, slots) for split in (config.data.train_split, config.data.test_split)
        )
        x, y = baselines.pose_features(train), train.clipset.label
        x_test, y_test = baselines.pose_features(test), test.clipset.label
        for name, classify in (("linear", baselines.linear), ("nearest neighbour", baselines.nearest_neighbour)):
            rows[f"{name}, stream {stream}"] = metrics_of(classify(x, y, x_test, classes), y_test)
    rows["chance: largest class"] = metrics_of(baselines.chance(y, len(y_test), classes), y_test)
    lines = [f"{len(y)} clips to train on, {len(y_test)} to test on (streams: j joints, b bones)", ""]
    lines.append(f"{'':30}{'top-1':>8}{'top-5':>8}{'mean class':>12}")
    for name, metrics in rows.items():
        lines.append(f"{name:30}{metrics['top1']:8.3f}{metrics['top5']:8.3f}{metrics['mean_class']:12.3f}")
    lines += [
        "",
        "The hold-out is by recording: the same performers stand in both splits, so these numbers are optimistic.",
        f"Baselines: normalised poses at {FRAMES} frames, flattened; logistic regression; Euclidean distance.",
    ]
    return "\n".join(lines)
