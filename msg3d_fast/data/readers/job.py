"""What every reader of raw data has: a job says which pieces there are, and reads each into clips.

A reader is one file of this folder. It makes a `Job` from a `Tree`; the job goes to the worker processes, each of which
reads pieces and hands back clips, or says why it cannot. Nothing of the data set as a whole is ever in memory.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...graph import Layout, get_layout
from ..clips import CHANNELS, clean, pose_digest
from ..store_writer import Batch, Record, stored_rows
from ..tree import Entry, Tree

SEMANTICS = ("mmaction2", "pyskl", "original")
MOST_FRAMES = 1 << 17  # of one clip: more is a damaged number
MOST_VALUES = 1 << 28  # numbers in one clip
UNLABELLED = 0  # the class of clips whose class nobody asks for


class Bad(Exception):
    """Why a file or a clip cannot be used: one line that follows its name."""


@dataclass(frozen=True)
class Options:
    """What the user says about a source; what is None is told from the source, or does not apply.

    Raises:
        UserError: a number that no source can have.
    """

    layout: Layout | None = None
    channels: str | None = None
    semantics: str = "mmaction2"
    missing: Path | None = None
    labels: Path | None = None
    table: Path | None = None
    skeletons: Path | None = None
    box_thr: float | None = None
    valid_ratio: float | None = None
    max_person: int | None = None
    img_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.max_person is not None and self.max_person < 1:
            raise UserError(f"max_person is {self.max_person}, expected 1 or more")
        for name in ("valid_ratio", "box_thr"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}, expected 0 to 1")
        if self.img_shape is not None and min(self.img_shape) < 1:
            raise UserError(f"img_shape is {tuple(self.img_shape)}, expected height and width in pixels")


@dataclass(frozen=True)
class Clip:
    """One clip as read: `pose` (M, T, V, C), the id `name`, its class and perhaps image size (h, w) and split.

    A class is a number, a list of them where a clip may have several, or a name; names are numbered in the end.
    """

    name: str
    label: int | list[int] | str
    pose: np.ndarray
    img_shape: tuple[int, int] | None = None
    split: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A clip that cannot be used, where its piece holds others that can."""

    name: str
    reason: str


@dataclass(kw_only=True)
class Job(ABC):
    """A source that was looked through. Subclasses say how a piece is read and which protocols there are.

    Args:
        pieces: what `read` takes, in order; small, and picklable. Files by default.
        layout: the skeleton.
        channels: "xy", "xys" or "xyz".
        notes: what the user is told.
        parallel: whether worker processes can read pieces.
        labelled: whether a clip needs a class; for prediction it does not, and every one is `UNLABELLED`.
    """

    pieces: Sequence[Any]
    layout: Layout
    channels: str
    notes: list[str] = field(default_factory=list)
    parallel: bool = True
    labelled: bool = True

    @abstractmethod
    def read(self, piece: Any) -> Iterator[Clip | Skipped]:
        """The clips of a piece.

        Raises:
            Bad, or whatever damaged bytes lead to.
        """

    def name(self, piece: Any) -> str:
        """What the user calls a piece."""
        return piece.name if isinstance(piece, Entry) else str(piece)

    def label_names(self, records: Sequence[Record]) -> Sequence[str]:
        """Names of the classes; by default those of the clips in order, or else numbers."""
        names = {record.label for record in records if isinstance(record.label, str)}
        if names and not all(name.isdigit() and len(name) < 7 for name in names):
            return sorted(names)
        if names:
            return [str(c) for c in range(max(map(int, names)) + 1)]
        classes = (max(r.label, default=-1) if isinstance(r.label, list) else r.label for r in records)
        return [str(c) for c in range(max(classes, default=-1) + 1)]

    def splits(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """bool (N,) masks by name; by default the splits that the clips name."""
        found = sorted({record.split for record in records if record.split is not None})
        return {name: np.array([record.split == name for record in records], bool) for name in found}

    def remarks(self, splits: dict[str, np.ndarray], records: Sequence[Record]) -> list[str]:
        """What there is to say about the clips that were found, such as counts that differ from the published ones."""
        return []

    def identity(self) -> list[Any]:
        """What stands for the source: names, sizes and stamps of the pieces."""
        return [(p.name, p.size, p.stamp) if isinstance(p, Entry) else p for p in self.pieces]

    def without(self) -> "Job":
        """The job as the worker processes need it: they get their pieces one by one."""
        return replace(self, pieces=())


@dataclass(frozen=True)
class Format:
    """A kind of source: how it is told, and how a job is made of it."""

    name: str
    title: str
    matches: Callable[[Tree], bool]
    open: Callable[[Tree, Options], Job]


def read_pieces(job: Job, dtype: np.dtype, pieces: Sequence[Any]) -> Batch:
    """Read pieces into the float type of a store; what cannot be used is named, whatever is wrong with it."""
    batch, rows = Batch(), []
    for piece in pieces:
        found: list[Clip | Skipped] = []
        try:
            for one in job.read(piece):
                found.append(one)
        except Bad as reason:
            found.append(Skipped(job.name(piece), str(reason)))
        except Exception as error:  # whatever damaged bytes lead to: one bad file must not end the work
            found.append(Skipped(job.name(piece), f"damaged ({one_line(error)})"))
        for one in found:
            if isinstance(one, Clip):
                try:
                    record, pose, missing = _stored(job, one, dtype)
                except (Bad, OverflowError) as reason:
                    one = Skipped(one.name, str(reason))
                else:
                    batch.records.append(record)
                    batch.missing += missing
                    rows.append(pose.tobytes())
            if isinstance(one, Skipped):
                batch.skipped.append((one.name, " ".join(one.reason.split())))
    batch.rows = b"".join(rows)
    return batch


def _stored(job: Job, clip: Clip, dtype: np.dtype) -> tuple[Record, np.ndarray, int]:
    pose = clip.pose
    expected = (job.layout.num_joints, CHANNELS[job.channels])
    if pose.ndim != 4 or pose.shape[2:] != expected or pose.dtype.kind != "f":
        raise Bad(
            f"its pose is a {pose.dtype} array of shape {pose.shape}, expected (M, T, {expected[0]}, {expected[1]})"
        )
    num_person, total_frames = pose.shape[:2]
    if not num_person or not total_frames:
        raise Bad(f"has {num_person} persons over {total_frames} frames")
    if total_frames > MOST_FRAMES or pose.size > MOST_VALUES:
        raise Bad(f"has {num_person} persons over {total_frames} frames; cut it into clips")
    rows = pose.reshape(-1, *expected)
    missing = 0
    if not np.isfinite(rows).all():
        rows = rows.copy()
        missing = clean(rows)
    rows = stored_rows(rows, dtype)
    image = None if clip.img_shape is None else [int(size) for size in clip.img_shape]
    digest = pose_digest(rows, total_frames, dtype).hex()
    return Record(clip.name, clip.label, num_person, total_frames, digest, image, clip.split), rows, missing


def one_line(error: BaseException) -> str:
    """What an exception says, on one short line."""
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{text:.100}" if text else type(error).__name__


def check_semantics(options: Options, name: str, offered: tuple[str, ...] = ("mmaction2",)) -> str:
    """The semantics, where a format offers them."""
    if options.semantics not in offered:
        raise UserError(f"semantics {options.semantics!r}: {name} offers {', '.join(offered)}")
    return options.semantics


def fixed_layout(options: Options, name: str, what: str) -> Layout:
    """The layout that a format always has; another one is refused."""
    layout = get_layout(name)
    if options.layout is not None and options.layout != layout:
        raise UserError(f"layout {options.layout.name!r}: {what} is {name}; leave the layout out")
    return layout


def numbers(text: bytes, what: str = "its text") -> np.ndarray:
    """The numbers of a text between white space, float64; parsed in one go.

    Raises:
        Bad: something else than numbers.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns where it stops at something that is no number
        try:
            values = np.fromstring(text, sep=" ")
        except (DeprecationWarning, ValueError):
            values = np.empty(0)
    # NumPy reads "1-2" as two numbers: hold the count to that of the words.
    if len(values) != (words := len(text.split())):
        raise Bad(f"{what} holds something else than numbers" if words else f"{what} is empty")
    return values


def table(text: bytes, columns: int, what: str) -> np.ndarray:
    """A text of so many numbers per line, float64 (lines, columns); blank lines do not count.

    Raises:
        Bad: something else than numbers, or a line of another length.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    widths = {len(line.split()) for line in lines}
    if widths - {columns}:
        raise Bad(f"{what}: a line has {min(widths - {columns})} numbers, expected {columns}")
    return numbers(text, what).reshape(-1, columns)


def left_out(entries: list[Entry], options: Options) -> tuple[list[Entry], set[str]]:
    """The files that the list of `options.missing` does not name, and the first word of each of its lines.

    Raises:
        UserError: the list cannot be read.
    """
    if options.missing is None:
        return entries, set()
    try:
        lines = options.missing.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{options.missing}: cannot be read: {error.strerror}; give a list of names, one a line"
        ) from None
    words = {Path(line.split()[0]).stem for line in lines if line.split()}
    return [entry for entry in entries if entry.stem not in words], words


def same_as(found: dict[str, int], published: dict[str, int]) -> str:
    """One line on counts that are known."""
    wrong = [
        f"{name} {found.get(name, 0)} (published {count})"
        for name, count in published.items()
        if found.get(name, 0) != count
    ]
    return f"counts differ from the published ones: {', '.join(wrong)}" if wrong else "counts are the published ones"
