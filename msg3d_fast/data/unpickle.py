"""Read a pickle of plain data and NumPy arrays, and nothing else.

A pickle is a program: it can name any function and have it called. Here a name is looked up in a short table, the table
holds stand-ins that only check and copy bytes, and any other name ends the reading before anything is called.
Python's own reader written in Python is used, since damaged files can make the one written in C allocate without limit.

On demand, long strings of bytes stay in the file until an array made of them is looked at, so that a file of any size
can be gone through clip by clip.
"""

import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


_DEFERRED = 256  # bytes from which a string stays in the file


@dataclass(frozen=True)
class Deferred:
    """Bytes that lie in a file; `text` where they are written as UTF-8 of as many latin-1 characters."""

    path: Path
    place: int
    size: int
    text: bool

    def load(self) -> bytes:
        """The bytes.

        Raises:
            OSError, ValueError: the file cannot be read, or has changed.
        """
        with self.path.open("rb") as file:
            file.seek(self.place)
            data = file.read(self.size)
        if len(data) != self.size:
            raise ValueError("it ends in the middle")
        return data.decode("utf-8").encode("latin1") if self.text else data


class Array:
    """Stands in for numpy.ndarray: shape and type are known, `value` reads the numbers."""

    shape: tuple[int, ...] = (0,)  # until its state is set
    dtype: np.dtype = np.dtype(np.float64)
    _data: "bytes | bytearray | Deferred" = b""
    _order = "C"

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        self._set(data, dtype, shape, "F" if fortran else "C")

    def _set(self, data: Any, dtype: Any, shape: Any, order: str) -> None:
        if isinstance(data, str):  # as Python 2 wrote them
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray | Deferred) or not isinstance(dtype, DType):
            raise Refused("an array whose contents are not plain bytes")
        if any(not isinstance(size, int) or size < 0 for size in shape):
            raise ValueError(f"an array of shape {shape!r:.60}")
        needed = math.prod(shape) * dtype.value.itemsize
        found = data.size if isinstance(data, Deferred) else len(data)
        fits = needed <= found <= 2 * needed if isinstance(data, Deferred) and data.text else needed == found
        if not fits:
            raise ValueError(f"an array of shape {shape!r:.60} with {found} bytes of {dtype.value}")
        self._data, self.dtype, self.shape, self._order = data, dtype.value, tuple(shape), order

    def __reduce__(self) -> tuple:
        """To another process of this program, unread."""
        return _restored, (self._data, self.dtype, self.shape, self._order)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def value(self) -> np.ndarray:
        """The array, read anew each time it is asked for.

        Raises:
            OSError, ValueError: its bytes cannot be read, or are not as many as the shape needs.
        """
        data = self._data.load() if isinstance(self._data, Deferred) else self._data
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self._order == "F" else "C")

    @value.setter
    def value(self, array: np.ndarray) -> None:
        self._data, self.dtype, self.shape, self._order = array.tobytes(), array.dtype, array.shape, "C"


def _restored(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> Array:
    array = Array()
    array._data, array.dtype, array.shape, array._order = data, dtype, shape, order
    return array


def _reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    if kind is not Array:
        raise Refused("an array of another class")
    return Array()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    array = Array()
    array._set(data, dtype, (), "C")
    return array.value.item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array._set(data, dtype, shape, order)
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes | Deferred:
    if isinstance(text, Deferred) and text.text and encoding in ("latin1", "latin-1"):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"the codec {encoding!r:.40}" if isinstance(encoding, str) else "a codec")
    return text.encode("latin1")


def _byte_array(data: Any = b"") -> bytearray | Deferred:
    if isinstance(data, Deferred) and not data.text:
        return data
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

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self._file, self._left = file, self.size

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise EOFError("it ends in the middle")
        self._left -= count
        return self._file.read(count)

    def defer(self, size: int, text: bool) -> Deferred:
        """The next bytes, left where they are."""
        if size > self._left:
            raise EOFError("it ends in the middle")
        place = self.size - self._left
        self._left -= size
        self._file.seek(size, 1)
        return Deferred(self.path, place, size, text)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)
    allowed: Mapping[tuple[str, str], Callable[..., Any]] = _ALLOWED

    def __init__(self, file: _File, defer: bool) -> None:
        super().__init__(file, encoding="latin1")
        self._bytes, self._defer = file, defer

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

    def load_frame(self) -> None:
        # Frames only say how far to read ahead.
        if int.from_bytes(self.read(8), "little") > self._bytes.size:
            raise EOFError("it ends in the middle")

    def _load_string(self, count: str, text: bool, convert: Callable[[bytes], Any]) -> None:
        (size,) = struct.unpack(count, self.read(struct.calcsize(count)))
        if size < 0:
            raise ValueError("a string of negative length")
        self.append(self._bytes.defer(size, text) if self._defer and size >= _DEFERRED else convert(self.read(size)))

    def load_text(self) -> None:
        self._load_string("<I", True, _text)

    def load_long_text(self) -> None:
        self._load_string("<Q", True, _text)

    def load_bytes(self) -> None:
        self._load_string("<I", False, bytes)

    def load_long_bytes(self) -> None:
        self._load_string("<Q", False, bytes)

    def load_byte_array(self) -> None:
        self._load_string("<Q", False, bytearray)

    def load_old_string(self) -> None:
        self._load_string("<i", False, lambda data: data.decode("latin1"))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.FRAME[0]] = load_frame
    dispatch[pickle.BINUNICODE[0]] = load_text
    dispatch[pickle.BINUNICODE8[0]] = load_long_text
    dispatch[pickle.BINBYTES[0]] = load_bytes
    dispatch[pickle.BINBYTES8[0]] = load_long_bytes
    dispatch[pickle.BYTEARRAY8[0]] = load_byte_array
    dispatch[pickle.BINSTRING[0]] = load_old_string


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def load_plain(
    path: Path, also: Mapping[tuple[str, str], Callable[..., Any]] | None = None, *, defer: bool = False
) -> Any:
    """The object in a pickle file, made of dict, list, tuple, set, str, bytes, numbers, None and `Array`.

    Args:
        path: the file.
        also: further names that the pickle may ask for, and the stand-ins that check what they are called with.
        defer: leave strings of 256 bytes and more in the file, as `Deferred`, until an array made of them is looked at.

    Raises:
        UserError: the file asks for anything else (then nothing of it has run), or is cut off or damaged.
    """
    try:
        with path.open("rb") as file:
            unpickler = _Unpickler(_File(file, path), defer)
            unpickler.allowed = {**_ALLOWED, **(also or {})}
            return unpickler.load()
    except Refused as error:
        raise UserError(
            f"{path}: refused, nothing was run: the pickle asks for {error}; plain data need no such thing, so get the "
            "file from where you trust it"
        ) from None
    except KeyError as error:
        raise UserError(
            f"{path}: not a whole annotation pickle (no instruction has the number {error}); it is damaged or cut off: "
            "fetch or write it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever damaged bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a whole annotation pickle ({reason:.80}); it is damaged or cut off: fetch or write it again"
        ) from None
