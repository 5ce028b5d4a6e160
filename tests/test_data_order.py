"""Epoch orders: every clip as often as asked, classes as often as asked, the same again for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
from clip_sets import small

from msg3d_fast.data import ClipSet, Order
from msg3d_fast.errors import UserError


def clips(counts: tuple[int, ...]) -> ClipSet:
    label = np.repeat(np.arange(len(counts)), counts)
    names = tuple(map(str, range(len(counts))))
    return replace(small(num_clips=len(label)), label=label, label_names=names)


def test_an_epoch_takes_every_clip_as_often_as_asked() -> None:
    ten = clips((10,))
    order = Order(ten, 3, seed=1)
    assert order.passes == 3
    assert sorted(order(2)) == list(range(30))
    assert (order(2) == Order(ten, 3, seed=1)(2)).all()
    assert (order(2) != order(3)).any()
    assert (order(2) != Order(ten, 3, seed=2)(2)).any()
    padded = order(2, multiple=4)
    assert len(padded) == 32
    assert (padded[:30] == order(2)).all()
    assert (padded[30:] == order(2)[:2]).all()


@pytest.mark.parametrize("class_prob", [[0.5, 1, 2.25], {0: 0.5, 2: 2.25}])
@pytest.mark.parametrize("repeat", [1, 3])
def test_classes_come_as_often_as_asked(class_prob: list | dict, repeat: int) -> None:
    """pyskl: floor(p * times) copies of all clips of the class and a random part of them once more."""
    counts = np.array([5, 3, 4])
    order = Order(clips(tuple(counts)), repeat, 0, class_prob)
    for epoch in range(3):
        found = order(epoch)
        assert len(set(found.tolist())) == len(found)  # no draw twice
        assert found.max() < order.passes * 12
        times = np.bincount(found % 12, minlength=12)
        for own, p in zip(np.split(times, np.cumsum(counts)[:-1]), (0.5, 1, 2.25), strict=True):
            whole, part = divmod(p * repeat, 1)
            assert set(own.tolist()) <= {int(whole), int(whole) + 1}
            assert (own > whole).sum() == int(part * len(own))
    assert (order(0) != order(1)).any()
    assert (order(1) == Order(clips(tuple(counts)), repeat, 0, class_prob)(1)).all()


def test_balanced_takes_every_class_equally_often() -> None:
    counts = (60, 20, 10, 0, 30)
    order = Order(clips(counts), 2, 0, "balanced")
    found = order(0)
    label = np.repeat(np.arange(5), counts)[found % 120]
    assert np.bincount(label, minlength=5).tolist() == [60, 60, 60, 0, 60]


@pytest.mark.parametrize(
    "class_prob", ["even", [1, 2], {3: 1.0}, {"walk": 1.0}, [1, -1, 1], [1, "a", 1], [1, 1, 5000], {1: True, 0: None}]
)
def test_numbers_that_do_not_fit_the_classes(class_prob: object) -> None:
    with pytest.raises(UserError, match=r"train\.class_prob is .*expected balanced, 3 numbers"):
        Order(clips((2, 2, 2)), class_prob=class_prob)


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(UserError, match="no clip"):
        Order(clips((2, 2)), class_prob=[0.1, 0])
    several = replace(clips((2, 2)), label=np.eye(4, 2, dtype=np.uint8))
    with pytest.raises(UserError, match="several"):
        Order(several, class_prob="balanced")
