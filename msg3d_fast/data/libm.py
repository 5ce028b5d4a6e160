"""The C library's functions of float64 arrays: numpy's own differ between processors in the last bit."""

import math
from collections.abc import Callable

import numpy as np


def arccos(x: np.ndarray) -> np.ndarray:
    return _each(math.acos, x)


def cos(x: np.ndarray) -> np.ndarray:
    return _each(math.cos, x)


def sin(x: np.ndarray) -> np.ndarray:
    return _each(math.sin, x)


def _each(function: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    return np.array([function(value) for value in x.ravel().tolist()], np.float64).reshape(x.shape)
