"""In which order an epoch goes through the clips, and how often it takes those of each class."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import UserError
from .clips import ClipSet


class Order:
    """The order of every epoch.

    A position is pass * N + clip, so that a clip that comes several times in an epoch is drawn anew each time.

    Args:
        clips: N clips.
        repeat: passes of an epoch.
        seed: of the order.
        class_prob: how often a pass takes the clips of each class: 2.5 is twice all of them and once a random half;
            a number for each class, or a mapping from some of them (the others once). "balanced" takes every class
            equally often and N clips in all. pyskl's ClassSpecificDistributedSampler.

    Raises:
        UserError: a `class_prob` that does not fit the classes.
    """

    def __init__(
        self,
        clips: ClipSet,
        repeat: int = 1,
        seed: int = 0,
        class_prob: str | Sequence[float] | Mapping[int, float] | None = None,
    ) -> None:
        self.number, self.repeat, self.seed = len(clips), repeat, seed
        self._copies = None
        self.passes = repeat
        if class_prob is not None:
            copies = np.round(_factors(class_prob, clips) * repeat, 9)  # of the clips of each class in an epoch
            self._copies = [
                (np.flatnonzero(clips.label == c), float(copies[c])) for c in range(len(copies)) if copies[c]
            ]
            self.passes = max(1, int(np.ceil(copies.max())))
            if not self._positions(np.random.default_rng(0)).size:
                raise UserError("train.class_prob leaves no clip to train on; give larger numbers")

    def __call__(self, epoch: int, multiple: int = 1) -> np.ndarray:
        """Positions of the epoch; the first come again at the end until their number is a multiple of `multiple`."""
        rng = np.random.default_rng((self.seed, epoch))
        if self._copies is None:
            order = rng.permutation(self.number * self.repeat)
        else:
            order = rng.permutation(self._positions(rng))
        return np.resize(order, len(order) + -len(order) % multiple)

    def _positions(self, rng: np.random.Generator) -> np.ndarray:
        parts = [np.empty(0, np.int64)]
        for own, copies in self._copies or ():
            whole = int(copies)
            parts += [own + k * self.number for k in range(whole)]
            parts.append(rng.permutation(own)[: int(copies % 1 * len(own))] + whole * self.number)
        return np.concatenate(parts)


def _factors(class_prob: str | Sequence[float] | Mapping[int, float], clips: ClipSet) -> np.ndarray:
    classes = clips.num_classes
    if clips.multi_label:
        raise UserError("train.class_prob is for clips of one class each; use --train.class_weights for several")
    if class_prob == "balanced":
        counts = np.bincount(clips.label, minlength=classes)
        return np.where(counts, len(clips) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0)
    expected = f"expected balanced, {classes} numbers, or a mapping from class numbers below {classes} to them"
    if isinstance(class_prob, Mapping):
        known = all(isinstance(key, int) and 0 <= key < classes for key in class_prob)
        given = [class_prob.get(c, 1.0) for c in range(classes)] if known else []
    else:
        given = [] if isinstance(class_prob, str) else list(class_prob)
    numbers = all(isinstance(value, int | float) and 0 <= value <= 1000 for value in given)
    if len(given) != classes or not numbers:
        raise UserError(f"train.class_prob is {class_prob!r:.80}; {expected}, each from 0 to 1000")
    return np.array(given, np.float64)
