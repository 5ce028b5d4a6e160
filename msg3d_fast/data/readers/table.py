"""CSV, .npy and .npz files of one's own, whose layout a few lines of YAML describe (`prepare --table`).

    layout: coco                    # a known skeleton, or num_node, inward, center and joint_names
    channels: xys                   # xy, xys (with confidence) or xyz
    clip: video                     # column with the clip's id; without it every file is a clip
    frame: frame                    # column that orders the lines; without it their order counts
    person: track                   # column that tells persons apart; without it there is one
    label: action                   # column; without it folders or --labels tell the class
    split: part                     # column
    columns: "{joint}_{axis}"       # names of the columns, axes x, y, z and s; or a list of them, joint by joint
    img_shape: [1080, 1920]

For arrays, `array` names the one with the poses in an .npz, `axes` says what its axes are, such as TVC, MTVC or NMTVC
(N clips), and clip, label, split and `length` name arrays (N,); `columns`, `frame` and `person` do not apply.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml

from ...errors import UserError
from ...graph import Layout, get_layout
from ..clips import CHANNELS
from ..npz import read_arrays
from ..tree import Entry, Tree
from .job import MOST_FRAMES, UNLABELLED, Bad, Clip, Format, Job, Options, Skipped, check_semantics, left_out
from .labels import Labels, open_labels

_TEXT = (".csv", ".tsv", ".txt")
_KEYS = (
    "layout",
    "channels",
    "clip",
    "frame",
    "person",
    "label",
    "split",
    "columns",
    "img_shape",
    "array",
    "axes",
    "length",
)


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "a table")
    if options.table is None:
        raise UserError(f"{tree.root}: say with --table YAML how its tables are laid out; see the README")
    about = _description(options)
    layout = options.layout or get_layout(about["layout"])
    channels = options.channels or about.get("channels", "xy")
    if channels not in CHANNELS:
        raise UserError(f"{options.table}: channels are {channels!r:.20}, expected one of {', '.join(CHANNELS)}")
    wanted = (".npz", ".npy") if "axes" in about else _TEXT
    found = [entry for entry in tree.entries if entry.base.lower().endswith(wanted)]
    entries, _ = left_out(found, options)
    if not entries:
        raise UserError(f"{tree.root}: has no {' or '.join(wanted)} files")
    kind = Arrays if "axes" in about else Tables
    image = about.get("img_shape", options.img_shape)
    return kind(
        pieces=entries,
        layout=layout,
        channels=channels,
        about=about,
        labels=open_labels(options),
        img_shape=None if image is None else (int(image[0]), int(image[1])),
        columns=[] if "axes" in about else _columns(options, about, layout, channels),
    )


def _description(options: Options) -> dict[str, Any]:
    path = options.table
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason:.80}); see the README for what it holds") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: holds a {type(about).__name__}, expected settings such as layout: coco")
    if unknown := [key for key in about if key not in _KEYS]:
        raise UserError(f"{path}: unknown setting {unknown[0]!r:.40}; expected {', '.join(_KEYS)}")
    if "layout" not in about and options.layout is None:
        raise UserError(f"{path}: names no layout; give a known skeleton or num_node, inward, center and joint_names")
    image = about.get("img_shape")
    if image is not None and not (
        isinstance(image, list) and len(image) == 2 and all(isinstance(n, int) for n in image)
    ):
        raise UserError(f"{path}: img_shape is {image!r:.40}, expected [height, width]")
    axes = about.get("axes")
    if axes is not None and (
        not isinstance(axes, str) or len(set(axes)) != len(axes) or not {*"TVC"} <= {*axes} <= {*"NMTVC"}
    ):
        raise UserError(f"{path}: axes are {axes!r:.20}, expected letters of NMTVC, such as TVC")
    return about


def _columns(options: Options, about: dict[str, Any], layout: Layout, channels: str) -> list[str]:
    columns = about.get("columns", "{joint}_{axis}")
    if isinstance(columns, str):
        try:
            columns = [columns.format(joint=name, axis=axis) for name in layout.joint_names for axis in channels]
        except (KeyError, IndexError, ValueError):
            raise UserError(
                f"{options.table}: columns are {about['columns']!r:.40}, expected a pattern with {{joint}} and {{axis}}"
            ) from None
    expected = layout.num_joints * len(channels)
    if not isinstance(columns, list) or len(columns) != expected:
        found = len(columns) if isinstance(columns, list) else type(columns).__name__
        raise UserError(f"{options.table}: columns name {found} columns, expected {expected}: {channels} of each joint")
    return [str(name) for name in columns]


@dataclass(kw_only=True)
class _Described(Job):
    about: dict[str, Any]
    labels: Labels = field(default_factory=Labels)
    img_shape: tuple[int, int] | None = None
    columns: list[str] = field(default_factory=list)

    @property
    def _classes(self) -> tuple[str, ...]:
        return ("label", "split") if self.labelled else ()

    def _clip(self, name: str, pose: np.ndarray, label: Any, split: Any) -> Clip:
        """A clip whose class the file tells, or else folders or the list."""
        if not self.labelled:
            label = UNLABELLED
        elif label is None:
            label, told = self.labels.of(name)
            split = told if split is None else split
        if not np.nan_to_num(pose).any():
            raise Bad("every joint is 0 in all of its frames")
        return Clip(name, str(label), pose, self.img_shape, None if split is None else str(split))


class Tables(_Described):
    def read(self, piece: Entry) -> Iterator[Clip | Skipped]:
        text = io.StringIO(piece.read().decode("utf-8-sig"), newline="")
        head = text.readline()
        mark = max(",;\t", key=head.count)
        names = [name.strip() for name in next(csv.reader([head], delimiter=mark), [])]
        place = {name: i for i, name in enumerate(names)}
        wanted = ("clip", "frame", "person", *self._classes)
        told = {key: self.about[key] for key in wanted if key in self.about}
        if absent := [str(name) for name in (*told.values(), *self.columns) if str(name) not in place]:
            raise Bad(f"has no column {', '.join(absent[:3])}; found {', '.join(names)[:80]}")
        column = {key: place[str(name)] for key, name in told.items()}
        values = [place[name] for name in self.columns]
        whole = str(PurePosixPath(piece.name).with_suffix(""))
        lines: list[list[str]] = []
        for number, row in enumerate(csv.reader(text, delimiter=mark), 2):
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                raise Bad(f"line {number} has {len(row)} columns, the first line {len(names)}")
            if lines and "clip" in column and row[column["clip"]] != lines[-1][column["clip"]]:
                yield from self._group(whole, lines, column, values)
                lines = []
            lines.append(row)
        if not lines:
            raise Bad("has no lines below the first")
        yield from self._group(whole, lines, column, values)

    def _group(
        self, whole: str, lines: list[list[str]], column: dict[str, int], values: list[int]
    ) -> Iterator[Clip | Skipped]:
        name = lines[0][column["clip"]].strip() if "clip" in column else whole
        try:
            yield self._clip(
                name, self._pose(lines, column, values), *(self._same(lines, column, k) for k in ("label", "split"))
            )
        except (Bad, ValueError) as reason:
            yield Skipped(name, str(reason))

    @staticmethod
    def _same(lines: list[list[str]], column: dict[str, int], key: str) -> str | None:
        if key not in column:
            return None
        found = {line[column[key]].strip() for line in lines}
        if len(found) > 1 or not found - {""}:
            raise Bad(f"has {len(found)} values in its column {key}, expected one")
        return found.pop()

    def _pose(self, lines: list[list[str]], column: dict[str, int], values: list[int]) -> np.ndarray:
        numbers = _numbers([[line[i].strip() or "nan" for i in values] for line in lines])
        poses = numbers.reshape(len(lines), self.layout.num_joints, -1)
        frame, person = np.arange(len(lines)), np.zeros(len(lines), int)
        if "person" in column:
            ids = [line[column["person"]].strip() for line in lines]
            order = {one: m for m, one in enumerate(dict.fromkeys(ids))}
            person = np.array([order[one] for one in ids])
        if "frame" in column:
            stamps = _numbers([line[column["frame"]].strip() for line in lines])
            frame = np.unique(stamps, return_inverse=True)[1].reshape(-1)
        elif "person" in column:
            frame = np.array([(person[:i] == m).sum() for i, m in enumerate(person)])
        if len(np.unique(frame * (person.max() + 1) + person)) != len(lines):
            raise Bad("has two lines of one person in one frame")
        if int(frame.max()) >= MOST_FRAMES or (person.max() + 1) * (frame.max() + 1) > 100 * len(lines):
            raise Bad(f"has {person.max() + 1} persons over {frame.max() + 1} frames in {len(lines)} lines")
        data = np.zeros((person.max() + 1, frame.max() + 1, *poses.shape[1:]))
        data[person, frame] = poses
        return data


def _numbers(cells: list[Any]) -> np.ndarray:
    try:
        return np.array(cells).astype(np.float64)
    except ValueError as error:
        word = str(error).partition("'")[2].rpartition("'")[0]
        raise Bad(f"holds {word!r:.40} where a number belongs") from None


class Arrays(_Described):
    def read(self, piece: Entry) -> Iterator[Clip | Skipped]:
        if piece.member is not None:
            raise Bad("lies in a zip; unpack it")
        single = piece.base.lower().endswith(".npy")
        arrays = (
            {"array": np.load(piece.path, mmap_mode="r", allow_pickle=False)} if single else read_arrays(piece.path)
        )
        name = str(self.about.get("array", next(iter(arrays)) if len(arrays) == 1 else "keypoint"))
        if name not in arrays:
            raise Bad(f"has no array {name}; found {', '.join(arrays)[:80]}")
        axes, poses = self.about["axes"], arrays[name]
        if poses.ndim != len(axes) or poses.dtype.kind not in "fiu":
            raise Bad(f"{name} is a {poses.dtype} array of shape {poses.shape}, expected numbers {axes}")
        whole = str(PurePosixPath(piece.name).with_suffix(""))
        several = "N" in axes
        for axis in "MN":
            if axis not in axes:
                axes, poses = axis + axes, poses[None]
        poses = poses.transpose([axes.index(axis) for axis in "NMTVC"])
        told = {key: self._told(arrays, key, len(poses)) for key in ("clip", "length", *self._classes)}
        for i, pose in enumerate(poses):
            clip = f"{whole}_{i:05d}" if several else whole
            clip = clip if told["clip"] is None else str(told["clip"][i])
            try:
                if told["length"] is not None:
                    pose = pose[:, : int(told["length"][i])]
                label, split = (None if told.get(key) is None else told[key][i] for key in ("label", "split"))
                yield self._clip(clip, pose.astype(pose.dtype if pose.dtype.kind == "f" else np.float64), label, split)
            except Bad as reason:
                yield Skipped(clip, str(reason))

    def _told(self, arrays: dict[str, np.ndarray], key: str, count: int) -> np.ndarray | None:
        if key not in self.about:
            return None
        found = arrays.get(str(self.about[key]))
        if found is None or found.size != count or found.dtype.kind not in "iuU":
            what = "nothing" if found is None else f"a {found.dtype} array of shape {found.shape}"
            raise Bad(f"{key} is {what} ({self.about[key]}), expected text or integers, one for each of {count} clips")
        return found.reshape(-1)


FORMATS = (Format("table", "CSV, .npy and .npz of your own, described by --table YAML", lambda tree: False, _open),)
