"""Read a pickle of plain data and NumPy arrays, and nothing else.

A pickle is a program: it can name any function and have it called. Here a name is looked up in a short table, the table
holds stand-ins that only check and copy bytes, and any other name ends the reading before anything is called.
Python's own reader written in Python is used, since damaged files can make the one written in C allocate without limit.
"""

import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ..errors import UserError


class Refused(UserError):
    """A pickle asked for something that data do not need."""


class DType:
    """Stands in for numpy.dtype: booleans, numbers and strings."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biufSU]\d*", code):
            raise Refused(f"arrays of type {str(code)[:40]!r}" if isinstance(code, str) else "arrays of no type")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise Refused("arrays with fields")
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class Array:
    """Stands in for numpy.ndarray; `value` is the array."""

    value: np.ndarray = np.empty(0)  # until its state is set

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, DType):
        raise Refused("an array whose contents are not plain bytes")
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(f"an array of shape {shape!r:.60}")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise ValueError(f"an array of shape {shape!r:.60} with {len(data)} bytes of {dtype.value}")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    if kind is not Array:
        raise Refused("an array of another class")
    return Array()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return _array(data, dtype, (), "C").item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"the codec {encoding!r:.40}" if isinstance(encoding, str) else "a codec")
    return text.encode("latin1")


def _byte_array(data: Any = b"") -> bytearray:
    if not isinstance(data, bytes):
        raise Refused("a byte array that is not made of bytes")
    return bytearray(data)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): DType,
    ("_codecs", "encode"): _encode,
    **{("builtins", name): kind for name, kind in (("set", set), ("frozenset", frozenset), ("bytearray", _byte_array))},
}
for _package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ALLOWED |= {
        (f"{_package}.multiarray", "_reconstruct"): _reconstruct,
        (f"{_package}.multiarray", "scalar"): _scalar,
        (f"{_package}.numeric", "_frombuffer"): _from_buffer,
    }


class _File:
    """A file that never returns less than was asked for, and never tries to read more than there is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise EOFError("it ends in the middle")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)
    allowed: Mapping[tuple[str, str], Callable[..., Any]] = _ALLOWED

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if (module, name) not in self.allowed:
            raise Refused(f"{module}.{name}"[:120])
        return self.allowed[module, name]

    def load_build(self) -> None:
        # Without this, a pickle could set attributes of the functions and classes in the table.
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) not in (Array, DType) or not isinstance(state, tuple):
            raise Refused(f"to set the state of a {type(target).__name__}")
        target.__setstate__(state)

    def load_bytearray8(self) -> None:
        # The inherited reader allocates what the file claims before it looks whether that much is there.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def load_plain(path: Path, also: Mapping[tuple[str, str], Callable[..., Any]] | None = None) -> Any:
    """The object in a pickle file, made of dict, list, tuple, set, str, bytes, numbers, None and `Array`.

    Args:
        path: the file.
        also: further names that the pickle may ask for, and the stand-ins that check what they are called with.

    Raises:
        UserError: the file asks for anything else (then nothing of it has run), or is cut off or damaged.
    """
    try:
        with path.open("rb") as file:
            unpickler = _Unpickler(_File(file, path.stat().st_size), encoding="latin1")
            unpickler.allowed = {**_ALLOWED, **(also or {})}
            return unpickler.load()
    except Refused as error:
        raise UserError(
            f"{path}: refused, nothing was run: the pickle asks for {error}; plain data need no such thing, so get the "
            "file from where you trust it"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever damaged bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a whole annotation pickle ({reason:.80}); it is damaged or cut off: fetch or write it again"
        ) from None
