"""Learning rates against upstream's numbers and formulas."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msg3d_fast.config import TrainConfig
from msg3d_fast.errors import UserError
from msg3d_fast.schedule import base_lr, cosine_lr, make_schedule

GOLDEN = Path(os.environ.get("MSG3D_GOLDEN", Path(__file__).parent / "golden"))


def rates(steps_per_epoch: int, **changes: object) -> list[float]:
    config = replace(TrainConfig(epochs=8), **changes)
    lr = make_schedule(config, steps_per_epoch)
    return [lr(step) for step in range(config.epochs * steps_per_epoch)]


def test_cosine_is_upstreams() -> None:
    with np.load(GOLDEN / "metrics_misc.npz") as golden:
        epochs, iterations = golden["cosine_epochs_iters"].tolist()
        expected = golden["cosine_lr"]
    np.testing.assert_allclose(rates(iterations, epochs=epochs), expected, rtol=1e-9)


def test_steps_fall_at_the_milestones() -> None:
    found = rates(3, schedule="step", milestones=[2, 5], lr=0.05)
    expected = [0.05] * 6 + [0.005] * 9 + [0.0005] * 9
    assert found == pytest.approx(expected, rel=1e-12)
    assert rates(2, schedule="step") == [0.1] * 16
    assert rates(1, schedule="step", milestones=[1], gamma=0.5)[:2] == [0.1, 0.05]


def test_warm_up_rises_linearly_then_the_cosine_begins() -> None:
    found = rates(4, warmup_epochs=1.5)
    assert found[:6] == pytest.approx([0.1 * i / 6 for i in range(1, 7)])
    assert found[6:] == pytest.approx([cosine_lr(0.1, i, 26) for i in range(26)])
    stepped = rates(4, warmup_epochs=0.5, schedule="step", milestones=[3])
    assert stepped[:3] == pytest.approx([0.05, 0.1, 0.1])
    assert stepped[12] == pytest.approx(0.01)


def test_rate_follows_the_batch() -> None:
    assert base_lr(TrainConfig()) == 0.1
    assert base_lr(TrainConfig(lr_batch=128, batch_size=32)) == 0.025
    assert rates(1, lr_batch=64)[0] == 0.2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"milestones": [3]}, r"train\.milestones are given"),
        ({"schedule": "step", "milestones": [5, 3]}, r"are \[5, 3\], expected rising epochs between 1 and 7"),
        ({"schedule": "step", "milestones": [3, 3]}, "rising"),
        ({"schedule": "step", "milestones": [3, 8]}, "rising"),
        ({"warmup_epochs": 8.0}, r"train\.warmup_epochs is 8, expected less than the 8"),
    ],
)
def test_schedules_that_make_no_sense(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        rates(3, **changes)
