"""Scores of several streams or runs joined by sample id, weighted and added.

    fused = sum_i w_i * p_i / sum_i w_i            average="prob": probabilities
    fused = softmax(sum_i w_i * s_i / sum_i w_i)   average="score": logits, or log p where a file holds probabilities

Two joint and bone streams are added 1:1, joint, bone and their motions 2:2:1:1 (pyskl). Members are joined by id, never
by position: sets that differ are refused.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import data
from .errors import UserError
from .evaluation import metrics_of, write_report
from .run_folder import RunFolder
from .score_files import Scores, read_scores

FOUR_STREAMS = {"j": 2.0, "b": 2.0, "jm": 1.0, "bm": 1.0}
STEPS = {2: 20, 3: 10}  # parts that the search cuts the sum of the weights into; 8 for four members and more


def ensemble(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    tune: Sequence[str | Path] = (),
    average: str = "prob",
    data_path: str | Path | None = None,
    split: str | None = None,
) -> dict[str, Any]:
    """Fuses score files and writes the same report as a test (see `evaluation.write_report`).

    Args:
        files: scores.npz, run folders, MMAction2's --dump, pyskl's --out or the authors' scores; at least two.
        out: folder of the report; created if need be.
        weights: one per file; by default 2:2:1:1 for four files (by stream, where the files tell it), else equal.
        tune: one file per member, in the same order, of samples that the weights are searched on.
        average: "prob" adds probabilities, "score" logits.
        data_path: data set that tells ids and labels where the files do not.
        split: split of it that was tested.

    Returns:
        The metrics of the fusion; `members` holds each file with its weight and its own metrics.

    Raises:
        UserError: files that cannot be read or do not hold the same samples, wrong weights, labels nobody knows.
    """
    if len(files) < 2:
        raise UserError(f"ensemble: {len(files)} score file, expected two or more")
    if split is not None and data_path is None:
        raise UserError(f"ensemble: --split {split} is a part of a data set; give --data FILE with it, or leave it out")
    if weights is not None and tune:
        raise UserError("ensemble: weights are given and to be searched; leave out one of --weights and --tune")
    if tune and len(tune) != len(files):
        raise UserError(f"ensemble: {len(tune)} files to tune on for {len(files)} members; give one for each, in order")
    members = join(_with_ids([read_scores(path) for path in files], data_path, split))
    chosen = default_weights(members) if weights is None else _checked(weights, len(members))
    notes = {}
    if tune:
        held = join(_with_ids([read_scores(path) for path in tune], data_path, None))
        chosen = search_weights(held, average)
        shared = len(set(held[0].ids.tolist()) & set(members[0].ids.tolist()))
        notes = {"tuned_on": len(held[0].ids), "tuned_on_reported": shared}
    first = members[0]
    fused = fuse_scores(members, chosen, average)
    metrics = {
        **metrics_of(fused, first.labels),
        "num_samples": len(fused),
        "average": average,
        **notes,
        "members": [
            {"file": one.name, "stream": one.stream, "weight": weight, **metrics_of(one.probabilities, one.labels)}
            for one, weight in zip(members, chosen, strict=True)
        ],
    }
    with RunFolder(out, option="--out") as folder:
        write_report(folder, first.ids, fused, first.labels, first.label_names, metrics)
    return metrics


def join(members: Sequence[Scores]) -> list[Scores]:
    """The members with their samples in the order of the first, all with the labels that any of them knows.

    Raises:
        UserError: other samples, classes or labels in one than in the first, or no labels at all.
    """
    first, joined = members[0], []
    knowing = next((one for one in members if one.labels is not None), None)
    if knowing is None:
        raise UserError(
            f"{first.name}: neither it nor the others hold labels; add --data=FILE and --split=NAME to tell them"
        )
    labels = knowing.labels[_positions(knowing, first)]
    names = next((one.label_names for one in members if one.label_names), ())
    for one in members:
        order = _positions(one, first)
        if one.scores.shape[1] != first.scores.shape[1]:
            raise UserError(
                f"{one.name}: scores {one.scores.shape[1]} classes, {first.name} {first.scores.shape[1]}; fuse models "
                "of the same classes"
            )
        if one.labels is not None and one.labels.ndim != labels.ndim:
            kinds = {1: "one label", 2: "several labels"}
            raise UserError(
                f"{one.name}: its samples have {kinds[one.labels.ndim]} each, those of {knowing.name} "
                f"{kinds[labels.ndim]}; fuse tests of one data set"
            )
        if one.labels is not None and (differs := (one.labels[order] != labels)).any():
            row = int(np.flatnonzero(differs.reshape(len(labels), -1).any(axis=1))[0])
            raise UserError(
                f"{one.name}: {first.ids[row]} has label {one.labels[order][row]}, in {knowing.name} it has "
                f"{labels[row]}; fuse tests of one data set"
            )
        if one.label_names and one.label_names != names:
            where = next(
                (i for i, pair in enumerate(zip(one.label_names, names, strict=False)) if len(set(pair)) > 1), 0
            )
            raise UserError(
                f"{one.name}: class {where} is {one.label_names[where]!r}, in another file {names[where]!r}; fuse "
                "tests of one data set"
            )
        joined.append(replace(one, scores=one.scores[order], ids=first.ids, labels=labels, label_names=tuple(names)))
    bad = labels.ndim == 1 and ((labels < 0) | (labels >= first.scores.shape[1]))
    if np.any(bad):
        raise UserError(
            f"{knowing.name}: {first.ids[bad.argmax()]} has label {labels[bad.argmax()]}, the scores are of "
            f"{first.scores.shape[1]} classes; give the labels of the same data set"
        )
    return joined


def fuse_scores(members: Sequence[Scores], weights: Sequence[float], average: str = "prob") -> np.ndarray:
    """Probabilities (N, classes) of joined members, see the head of this file."""
    share = np.asarray(weights, np.float64) / np.sum(weights)
    if average == "prob":
        return sum(w * one.probabilities for w, one in zip(share, members, strict=True))
    fused = sum(w * _logits(one) for w, one in zip(share, members, strict=True))
    return Scores(name="the fusion", scores=fused).probabilities


def default_weights(members: Sequence[Scores]) -> list[float]:
    """2:2:1:1 for four members, by stream where all tell theirs, else equal weights."""
    streams = [one.stream for one in members]
    if len(members) != 4:
        return [1.0] * len(members)
    if sorted(streams) == sorted(FOUR_STREAMS):
        return [FOUR_STREAMS[stream] for stream in streams]
    return [1.0] * 4 if all(streams) else list(FOUR_STREAMS.values())


def search_weights(members: Sequence[Scores], average: str = "prob") -> list[float]:
    """The weights with the highest top-1 accuracy on these samples; among equals the lowest loss.

    Every way to cut 1 into equal steps over the members is tried for up to four members; more are searched one at a
    time.
    """
    number = len(members)
    steps = STEPS.get(number, 8)

    def quality(weights: Sequence[float]) -> tuple[float, float]:
        found = metrics_of(fuse_scores(members, weights, average), members[0].labels)
        return next(iter(found.values())), -found.get("loss", 0.0)

    if number <= 4:
        cuts = itertools.combinations_with_replacement(range(steps + 1), number - 1)
        tries = [np.diff([0, *cut, steps]) / steps for cut in cuts]
        return [float(weight) for weight in max(tries, key=quality)]
    best = np.ones(number)
    for _ in range(3):
        for i in range(number):
            tries = [np.r_[best[:i], value, best[i + 1 :]] for value in np.linspace(0, 2, steps + 1)]
            best = max((one for one in tries if one.any()), key=quality)
    return [float(weight) for weight in best / best.sum()]


def _with_ids(members: list[Scores], path: str | Path | None, split: str | None) -> list[Scores]:
    """The members, with ids and labels of the data set for those that have none."""
    without = [one for one in members if one.ids is None]
    if path is None:
        if without:
            raise UserError(
                f"{without[0].name}: holds no ids, so it cannot be joined; add --data=FILE and --split=NAME of the "
                "clips that were tested, in the order of the test"
            )
        return members
    clips = data.open_dataset(path, split)
    origin = str(path) + ("" if split is None else f", split {split}")
    members = [one if one.ids is not None else one.named(clips.frame_dir, clips.label, origin) for one in members]
    if any(one.labels is not None for one in members):
        return members
    label_of = dict(zip(clips.frame_dir.tolist(), clips.label.tolist(), strict=True))
    if absent := [name for name in members[0].ids.tolist() if name not in label_of]:
        raise UserError(f"{origin}: lacks {_some(absent)} of {members[0].name}; give the data set that was tested")
    labels = np.array([label_of[name] for name in members[0].ids.tolist()])
    return [replace(members[0], labels=labels, label_names=tuple(clips.label_names)), *members[1:]]


def _positions(one: Scores, first: Scores) -> np.ndarray:
    """Where each sample of `first` stands in `one`."""
    where = {name: position for position, name in enumerate(one.ids.tolist())}
    wanted = first.ids.tolist()
    if len(where) != len(wanted) or any(name not in where for name in wanted):
        only_first, only_one = sorted(set(wanted) - where.keys()), sorted(where.keys() - set(wanted))
        parts = [f"lacks {_some(only_first)}"] if only_first else []
        parts += [f"alone has {_some(only_one)}"] if only_one else []
        raise UserError(
            f"{one.name}: {len(where)} samples, {first.name} has {len(wanted)}: it {' and '.join(parts)}; test all on "
            "the same split"
        )
    return np.array([where[name] for name in wanted])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _logits(one: Scores) -> np.ndarray:
    probabilities = one.probabilities
    return np.log(np.maximum(probabilities, 1e-12)) if probabilities is one.scores else one.scores


def _checked(weights: Sequence[float], number: int) -> list[float]:
    if len(weights) != number or not all(np.isfinite(weights)) or min(weights) < 0 or not any(weights):
        raise UserError(
            f"ensemble: weights {' '.join(f'{weight:g}' for weight in weights)} for {number} files; expected one of 0 "
            "or more for each, not all 0"
        )
    return [float(weight) for weight in weights]
