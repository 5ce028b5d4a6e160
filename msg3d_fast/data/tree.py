"""The files of a source: those of a folder, of the zips in it, of one zip, or the one file. Nothing is unpacked."""

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..errors import UserError

LARGEST = 1 << 30  # bytes of one file that is read whole


@dataclass(frozen=True)
class Entry:
    """One file: `name` inside the source, `path` and perhaps `member` of the zip that it lies in.

    `stamp` changes when the content does: the CRC of a member, the time of the last change of a file.
    """

    name: str
    path: str
    member: str | None
    size: int
    stamp: int

    @property
    def base(self) -> str:
        return PurePosixPath(self.name).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def folders(self) -> tuple[str, ...]:
        return PurePosixPath(self.name).parts[:-1]

    def read(self, limit: int = LARGEST) -> bytes:
        """The content.

        Raises:
            ValueError, OSError, zipfile.BadZipFile: too large, unreadable or damaged.
        """
        if self.size > limit:
            raise ValueError(f"has {self.size / 2**20:.0f} MiB, more than any such file should have")
        if self.member is None:
            with open(self.path, "rb") as file:
                return file.read(limit + 1)
        return _archive(self.path).read(self.member)

    def head(self, size: int = 1 << 12) -> bytes:
        """Its first bytes, empty if it cannot be read."""
        try:
            if self.member is None:
                with open(self.path, "rb") as file:
                    return file.read(size)
            with _archive(self.path).open(self.member) as file:
                return file.read(size)
        except Exception:  # whatever damaged archives lead to; reading it all will say what
            return b""


@lru_cache(maxsize=4)
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


class Tree:
    """The files of a source, sorted by name.

    Raises:
        UserError: there is no such file or folder, it cannot be read, or a zip is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            info = self.root.stat()
            if stat.S_ISDIR(info.st_mode):
                entries = list(_folder(self.root))
            elif zipfile.is_zipfile(self.root) and self.root.suffix != ".npz":
                entries = list(_members(self.root, ""))
            else:
                entries = [Entry(self.root.name, str(self.root), None, info.st_size, info.st_mtime_ns)]
        except OSError as error:
            raise UserError(
                f"{self.root}: cannot be read: {error.strerror or error}; give a file, a zip or a folder"
            ) from None
        self.entries = sorted(entries, key=lambda entry: entry.name)

    def matching(self, pattern: str) -> list[Entry]:
        """The files whose base name is all of the pattern (upper and lower case alike)."""
        found = re.compile(pattern, re.IGNORECASE)
        return [entry for entry in self.entries if found.fullmatch(entry.base)]


def _folder(root: Path) -> Iterator[Entry]:
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders[:] = sorted(name for name in folders if _is_data(name))
        for name in sorted(filter(_is_data, files)):
            path = Path(folder) / name
            inside = path.relative_to(root).as_posix()
            try:
                info = path.stat()
            except OSError:  # a link to nothing
                continue
            if name.lower().endswith(".zip"):
                yield from _members(path, f"{inside}/")
            else:
                yield Entry(inside, str(path), None, info.st_size, info.st_mtime_ns)


def _members(path: Path, prefix: str) -> Iterator[Entry]:
    try:
        members = _archive(str(path)).infolist()
    except Exception as error:  # whatever damaged bytes lead to
        raise UserError(f"{path}: not a whole zip ({str(error)[:80]}); fetch it again, or move it away") from None
    for info in members:
        if not info.is_dir() and all(map(_is_data, PurePosixPath(info.filename).parts)):
            yield Entry(prefix + info.filename, str(path), info.filename, info.file_size, info.CRC)


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
