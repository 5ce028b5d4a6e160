"""The authors' arrays: {train,val}_data_joint.npy, float (N, 3, T, V, M), read clip by clip, and {train,val}_label.pkl.

A label file is a pickle of (names, class numbers). Frames stay as they are, 300 of them; a second person who is absent
is not stored. The authors' bones are not read: they follow from the joints (stream b). On Kinetics they also differ,
since the authors subtract the scores where MMAction2 takes their mean.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import UserError
from ..layouts import choose_layout
from ..tree import Tree
from ..unpickle import Array, load_plain
from .job import Bad, Clip, Format, Job, Options, check_semantics, one_line

_DATA = r"(\w+?)_data(_joint)?\.npy"


def _matches(tree: Tree) -> bool:
    return bool(tree.matching(_DATA) or tree.matching(r"\w+_data_bone\.npy"))


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "a source of the authors' arrays", ("mmaction2", "original"))
    found = tree.matching(_DATA)
    if not found:
        raise UserError(
            f"{tree.root}: holds the authors' bones only; give the joints, stream b computes bones from them"
        )
    if any(entry.member for entry in found):
        raise UserError(f"{tree.root}: holds arrays in a zip, where they cannot be mapped into memory; unpack it")
    if len(folders := {entry.folders for entry in found}) > 1:
        names = ", ".join(sorted("/".join(folder) or "." for folder in folders))
        raise UserError(f"{tree.root}: holds arrays in several folders ({names}); prepare them one by one")
    pieces: list[tuple[str, str, int, str, int]] = []
    identity: list[Any] = []
    shapes = set()
    for entry in found:
        part = re.fullmatch(_DATA, entry.base, re.IGNORECASE)[1]
        shape = _header(Path(entry.path))[1]
        names, labels = _labels(Path(entry.path).with_name(f"{part}_label.pkl"), shape[0])
        shapes.add((shape[3], shape[1]))
        identity.append((entry.name, entry.size, entry.stamp, names[:1]))
        pieces += [
            (entry.path, part, i, name, label) for i, (name, label) in enumerate(zip(names, labels, strict=True))
        ]
    if len(shapes) > 1:
        raise UserError(f"{tree.root}: its arrays differ in joints or channels; prepare them one by one")
    ((joints, width),) = shapes
    channels = options.channels or ("xy" if width == 2 else "xys" if joints == 18 else "xyz")
    layout = choose_layout(joints, channels, options.layout, str(tree.root))
    notes = ["the authors' arrays are normalised: train on them with --data.normalize=none"]
    return Authors(pieces=pieces, layout=layout, channels=channels, notes=notes, arrays=identity)


def _header(path: Path) -> tuple[int, tuple[int, ...], np.dtype]:
    """Where the numbers of an array begin, its shape (N, C, T, V, M) and its type."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start, size = file.tell(), path.stat().st_size
    except Exception as error:  # whatever damaged bytes lead to
        raise UserError(f"{path}: not a whole .npy ({one_line(error)}); it is damaged or cut off") from None
    if len(shape) != 5 or dtype.kind != "f" or shape[1] not in (2, 3) or min(shape) < 1 or fortran:
        raise UserError(
            f"{path}: holds a {dtype} array of shape {shape}, expected floats (N, 2 or 3 channels, T, V, M)"
        )
    if start + math.prod(shape) * dtype.itemsize != size:
        raise UserError(f"{path}: has {size} bytes, which is not what its shape {shape} needs: cut off or damaged")
    return start, shape, dtype


def _labels(path: Path, count: int) -> tuple[list[str], list[int]]:
    content = load_plain(path)
    parts = (
        [part.value.tolist() if isinstance(part, Array) else part for part in content]
        if isinstance(content, tuple | list)
        else []
    )
    if len(parts) != 2 or not all(isinstance(part, list | tuple) and len(part) == count for part in parts):
        raise UserError(f"{path}: expected a pair of {count} names and {count} labels, one for each clip of the array")
    names, labels = parts
    if bad := [one for one in labels if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < 1 << 20]:
        raise UserError(f"{path}: holds the label {bad[0]!r:.20}, expected class numbers from 0")
    if bad := [one for one in names if not isinstance(one, str)]:
        raise UserError(f"{path}: holds the name {bad[0]!r:.20}, expected text")
    return [
        PurePosixPath(one.replace("\\", "/")).name.removesuffix(".skeleton").removesuffix(".json") for one in names
    ], list(labels)


@dataclass(kw_only=True)
class Authors(Job):
    arrays: list[Any]

    def name(self, piece: Any) -> str:
        return piece[3]

    def identity(self) -> list[Any]:
        return self.arrays

    def read(self, piece: Any) -> Iterator[Clip]:
        path, part, i, name, label = piece
        start, shape, dtype = _header(Path(path))
        size = math.prod(shape[1:]) * dtype.itemsize
        # Read, not mapped: a file that shrinks meanwhile is then an error, where a mapped page would kill the process.
        with open(path, "rb") as file:
            file.seek(start + i * size)
            pose = np.frombuffer(file.read(size), dtype).reshape(shape[1:]).transpose(3, 1, 2, 0)  # (M, T, V, C)
        present = np.flatnonzero(pose.any((1, 2, 3)))
        if not len(present):
            raise Bad("nobody is in any of its frames")
        yield Clip(name, label, pose[: int(present[-1]) + 1], None, part)


FORMATS = (Format("authors", "the authors' {train,val}_data_joint.npy with {train,val}_label.pkl", _matches, _open),)
