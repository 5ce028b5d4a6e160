"""Where random numbers come from.

`PhiloxDraws` is counter based: word j of sample i in epoch e is Philox4x32-10(counter (j//4, i, e, purpose), key seed).
So a sample's draws depend on nothing but (seed, epoch, i): not on its batch, the worker that prepares it or a resume.
`LegacyDraws` takes them from one `numpy.random.RandomState` per sample, in upstream's order.

Methods take `rows`, the samples (positions in the batch) that draw; results have one row for each.
Source of Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Draws(Protocol):
    """A source of random numbers for a batch of samples."""

    def integers(self, high: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """int64 like `high` (len(rows), ...), uniform in [0, high)."""
        ...

    def subsets(self, size: int, count: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """bool (len(rows), size) with count[i] True in row i, every choice equally likely."""
        ...

    def uniform(self, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        """float64 (len(rows), *shape), uniform between 0 and 1."""
        ...

    def normal(self, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        """float64 (len(rows), *shape), standard normal."""
        ...


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 of four uint64 arrays that hold 32-bit words (they broadcast); returns four such arrays."""
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


class PhiloxDraws:
    """Draws that are a pure function of (seed, epoch, sample).

    Args:
        seed: any int; its low 64 bits count.
        epoch: int >= 0, one for all samples or one for each.
        samples: int (B,), number of each sample within the data set.
        purpose: keeps apart the draws that different steps make for the same sample.
    """

    def __init__(self, seed: int, epoch: int | np.ndarray, samples: np.ndarray, purpose: int = 0) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._samples = np.asarray(samples).astype(np.uint64)
        self._epoch = np.broadcast_to(np.asarray(epoch).astype(np.uint64), self._samples.shape)
        self._purpose = np.uint64(purpose)
        self._used = np.zeros(len(self._samples), np.uint64)  # blocks of four words that each sample has drawn

    def _words(self, count: int, rows: np.ndarray) -> np.ndarray:
        blocks = -(-count // 4)
        block = self._used[rows, None] + np.arange(blocks, dtype=np.uint64)
        self._used[rows] += np.uint64(blocks)
        words = philox((block, self._samples[rows, None], self._epoch[rows, None], self._purpose), self._key)
        return np.stack(words, axis=-1).reshape(len(rows), -1)[:, :count]

    def integers(self, high: np.ndarray, rows: np.ndarray) -> np.ndarray:
        words = self._words(int(np.prod(high.shape[1:])), rows).reshape(high.shape)
        return (words * high.astype(np.uint64) >> _SHIFT).astype(np.int64)

    def subsets(self, size: int, count: np.ndarray, rows: np.ndarray) -> np.ndarray:
        rank = np.empty((len(rows), size), np.int64)
        order = np.argsort(self._words(size, rows), axis=1)
        np.put_along_axis(rank, order, np.broadcast_to(np.arange(size), rank.shape), axis=1)
        return rank < count[:, None]

    def uniform(self, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        words = self._words(int(np.prod(shape)), rows)
        return ((words + 0.5) * 2.0**-32).reshape(len(rows), *shape)

    def normal(self, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        radius, angle = self.uniform((2, int(np.prod(shape))), rows).swapaxes(0, 1)
        return (np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)).reshape(len(rows), *shape)


class LegacyDraws:
    """Draws from one `numpy.random.RandomState` per sample, call for call as upstream makes them."""

    def __init__(self, states: Sequence[np.random.RandomState]) -> None:
        self._states = states

    def integers(self, high: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.array([self._states[r].randint(bound) for r, bound in zip(rows, high, strict=True)], np.int64)

    def subsets(self, size: int, count: np.ndarray, rows: np.ndarray) -> np.ndarray:
        chosen = np.zeros((len(rows), size), bool)
        for i, r in enumerate(rows):
            chosen[i, self._states[r].choice(size, count[i], replace=False)] = True
        return chosen

    def uniform(self, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        return np.array([self._states[r].random_sample(shape) for r in rows])

    def normal(self, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        return np.array([self._states[r].standard_normal(shape) for r in rows])
