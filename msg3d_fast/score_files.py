"""Scores that a test left behind, of ours or any upstream's, read without running anything in them.

    msg3d_fast  scores.npz       ids, probabilities, labels, label_names, stream
    mmaction2   --dump out.pkl   a list of dicts: pred_score, gt_label, sometimes an id; tensors
    pyskl       --out out.pkl    a list of arrays (classes,), in the order of the annotation file
    original    save_score .pkl  {sample name: logits}

Sources: mmengine `evaluator/metric.py`, mmaction2 `report_accuracy.py`; pyskl `tools/test.py`; MS-G3D `main.py`.
"""

import io
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data.unpickle import Array, Refused, load_plain
from .errors import UserError

ID_KEYS = ("frame_dir", "video_id", "sample_id", "filename")  # where a dump may hold the name of a sample


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One file's scores.

    Args:
        name: what messages call it.
        scores: float64 (N, classes), probabilities or logits.
        ids: str (N,), or None where the file has none.
        labels: int64 (N,), int64 (N, classes) of zeros and ones, or None.
        label_names: of the classes, or ().
        stream: "j", "b", "jm", "bm", or "" where the file does not tell.
    """

    name: str
    scores: np.ndarray
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    stream: str = ""

    def __post_init__(self) -> None:
        shape = self.scores.shape
        if self.scores.ndim != 2 or not self.scores.size:
            raise UserError(f"{self.name}: scores have the shape {shape}, expected (samples, classes)")
        if not np.isfinite(self.scores).all():
            row = int(np.flatnonzero(~np.isfinite(self.scores).all(axis=1))[0])
            raise UserError(f"{self.name}: the scores of sample {self._called(row)} are not finite; test again")
        for what, array in (("ids", self.ids), ("labels", self.labels)):
            if array is not None and len(array) != shape[0]:
                raise UserError(f"{self.name}: {len(array)} {what} for {shape[0]} rows of scores; test again")
        if self.labels is not None and self.labels.shape not in (shape[:1], shape):
            raise UserError(
                f"{self.name}: labels have the shape {self.labels.shape}, expected {shape[:1]}, or {shape} of zeros "
                "and ones; test again"
            )
        if self.ids is not None and len(set(self.ids.tolist())) < shape[0]:
            names, counts = np.unique(self.ids, return_counts=True)
            twice = names[counts > 1]
            raise UserError(f"{self.name}: {len(twice)} ids occur more than once, the first is {twice[0]}; test again")

    def _called(self, row: int) -> str:
        return str(row) if self.ids is None else str(self.ids[row])

    @property
    def probabilities(self) -> np.ndarray:
        """The scores if they are probabilities, else the softmax of each row, or where samples have several labels the
        sigmoid of each score."""
        if self.labels is not None and self.labels.ndim == 2:
            inside = (self.scores >= 0).all() and (self.scores <= 1).all()
            return self.scores if inside else np.exp(-np.logaddexp(0, -self.scores))
        if (self.scores >= 0).all() and np.allclose(self.scores.sum(axis=1), 1, atol=1e-3):
            return self.scores
        shifted = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def named(self, ids: Sequence[str] | np.ndarray, labels: np.ndarray, origin: str) -> "Scores":
        """The same with the ids and labels of `origin`, whose samples are those of this file in the same order.

        Raises:
            UserError: another number of samples, or labels that contradict the file's own.
        """
        if len(ids) != len(self.scores):
            raise UserError(f"{self.name}: {len(self.scores)} samples without ids, {origin} has {len(ids)}")
        if self.labels is not None and self.labels.ndim == labels.ndim == 1 and (self.labels != labels).any():
            row = int((self.labels != labels).argmax())
            raise UserError(
                f"{self.name}: sample {row} has label {self.labels[row]}, in {origin} it is {ids[row]} with label "
                f"{labels[row]}; give the split that was tested, in the order of the test"
            )
        return replace(self, ids=np.asarray(ids), labels=np.asarray(labels))


def read_scores(path: str | Path) -> Scores:
    """The scores in a file, or in the scores.npz of a run folder.

    Raises:
        UserError: no such file, none of the formats, damaged, or a pickle that asks for more than data.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "scores.npz"
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); give a scores.npz, the run folder of a test, or the "
            "pickle of an upstream's test"
        ) from None
    if start[:2] == b"PK":
        return _read_npz(path)
    if start[:1] not in (
        b"\x80",
        b"(",
        b"]",
        b"}",
    ):  # binary pickles, and what a list or dict starts with in older ones
        raise UserError(f"{path}: starts with {start!r}, expected a scores.npz or the pickle of an upstream's test")
    return _from_pickle(load_plain(path, _TENSORS), str(path))


def _read_npz(path: Path) -> Scores:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a whole .npz ({reason:.80}); test again") from None
    if absent := [name for name in ("ids", "scores") if name not in arrays]:
        raise UserError(f"{path}: has no {', '.join(absent)} (found {', '.join(arrays)}); expected what a test writes")
    if arrays["scores"].dtype.kind not in "fiu" or arrays["ids"].ndim != 1:
        raise UserError(f"{path}: scores or ids are no arrays of numbers and names; test again")
    return Scores(
        name=str(path),
        scores=arrays["scores"].astype(np.float64),
        ids=arrays["ids"].astype(str),
        labels=_labels(arrays.get("labels")),
        label_names=tuple(arrays["label_names"].astype(str).reshape(-1).tolist()) if "label_names" in arrays else (),
        stream=str(arrays.get("stream", "")),
    )


def _labels(found: np.ndarray | None) -> np.ndarray | None:
    return None if found is None or found.dtype.kind not in "iub" else found.astype(np.int64)


def _from_pickle(content: Any, name: str) -> Scores:
    if isinstance(content, dict) and content:
        return Scores(
            name=name, scores=_rows(list(content.values()), name), ids=np.array([str(key) for key in content])
        )
    if isinstance(content, list) and content and all(isinstance(sample, dict) for sample in content):
        return _from_dump(content, name)
    if isinstance(content, list) and content:
        return Scores(name=name, scores=_rows(content, name))
    raise UserError(
        f"{name}: holds a {type(content).__name__}, expected MMAction2's --dump (a list of dicts), pyskl's --out (a "
        "list of arrays) or the authors' scores (a dict by sample name)"
    )


def _from_dump(samples: list[dict[str, Any]], name: str) -> Scores:
    def column(*keys: str) -> list[Any] | None:
        for key in keys:
            if all(key in sample for sample in samples):
                values = [sample[key] for sample in samples]
                # MMAction2 1.0 wraps what later versions hold directly.
                return [value["item"] if isinstance(value, dict) and "item" in value else value for value in values]
        return None

    scores, labels = column("pred_score", "pred_scores"), column("gt_label", "gt_labels")
    if scores is None:
        raise UserError(f"{name}: its samples have no pred_score (found {', '.join(map(str, samples[0]))[:80]})")
    ids = column(*ID_KEYS)
    rows = _rows(scores, name)
    truth = None if labels is None else _rows(labels, name)
    if truth is not None:
        truth = truth.astype(np.int64)
        truth = truth[:, 0] if truth.shape[1] == 1 and rows.shape[1] > 1 else truth
    return Scores(
        name=name, scores=rows, labels=truth, ids=None if ids is None else np.array([str(one) for one in ids])
    )


def _rows(values: Sequence[Any], name: str) -> np.ndarray:
    rows = [np.asarray(value.value if isinstance(value, Array) else value) for value in values]
    for row in rows:
        if row.dtype.kind not in "fiub" or row.size != rows[0].size:
            raise UserError(
                f"{name}: samples have {rows[0].size} and {row.size} numbers, expected one per class in each"
            )
    return np.stack([row.reshape(-1) for row in rows]).astype(np.float64)


def _storage(data: Any) -> Any:
    """What torch.storage._load_from_bytes stands for: a file of `torch.save` within the pickle."""
    if not isinstance(data, bytes):
        raise Refused("a tensor whose contents are not plain bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise Refused("a tensor whose contents are no numbers")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Array:
    """A tensor as an array; its numbers must lie within what the file holds."""
    if not isinstance(storage, torch.TypedStorage):
        raise Refused("a tensor without contents")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor of a strange shape")
    flat = torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(flat):
        raise ValueError(f"a tensor that reaches to {last} of {len(flat)} numbers")
    array = Array()
    array.value = flat.as_strided(tuple(size), tuple(stride), offset).numpy().copy()
    return array


_TENSORS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): dict,
}
