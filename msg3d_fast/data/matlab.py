"""Numeric matrices of a MATLAB file of level 5, the kind that `save` writes up to version 7.

    128 bytes of header, then elements: (type, size) and data, padded to 8 bytes; small ones within 8 bytes
    a matrix: flags · dimensions · name · numbers, which may be stored in a smaller type than the matrix has

Whatever else a file holds (text, cells, structures) is passed over. Sizes are checked before memory is asked for.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

LARGEST = 1 << 28  # bytes of one unpacked element
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def read_matrices(data: bytes) -> dict[str, np.ndarray]:
    """The real numeric matrices of a file by name, in column order as MATLAB has them.

    Raises:
        ValueError: not such a file, or damaged.
    """
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[:20].startswith(b"MATLAB 7.3"):
        raise ValueError("a MATLAB 7.3 file (HDF5); save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("not a MATLAB file of level 5")
    found = {}
    for kind, content in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj()
            content = memoryview(unpacked.decompress(bytes(content), LARGEST))
            if not unpacked.eof:
                raise ValueError("a compressed element that is cut off or too large")
            ((kind, content),) = _elements(content, order)
        if kind == _MATRIX and (matrix := _matrix(content, order)) is not None:
            found[matrix[0]] = matrix[1]
    return found


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    place = 0
    while place < len(data):
        if place + 8 > len(data):
            raise ValueError("cut off")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # a small element: size and type share the first word
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
            if size > 4:
                raise ValueError("a small element that is too large")
        else:
            place = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError("cut off")
        yield kind, data[start : start + size]


def _matrix(data: memoryview, order: str) -> tuple[str, np.ndarray] | None:
    parts = list(_elements(data, order))
    if len(parts) < 4:
        return None  # a cell or a structure
    (_, flags), (_, dimensions), (_, name), (kind, numbers), *rest = parts
    if len(flags) != 8 or len(dimensions) % 4:
        raise ValueError("a matrix whose flags or dimensions are damaged")
    about = struct.unpack(f"{order}II", flags)[0]
    target, is_complex = _CLASSES.get(about & 0xFF), bool(about & 0x800)
    if target is None or is_complex or rest:
        return None
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    if kind not in _TYPES or any(size < 0 for size in shape) or len(shape) > 8:
        raise ValueError("a matrix whose numbers or dimensions are damaged")
    stored = np.dtype(order + _TYPES[kind])
    if math.prod(shape) * stored.itemsize != len(numbers):
        raise ValueError(f"a matrix of {shape} with {len(numbers)} bytes of {stored.name}")
    values = np.frombuffer(numbers, stored).astype(target).reshape(shape, order="F")
    return bytes(name).decode("latin1"), values
