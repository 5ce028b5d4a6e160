"""Scores of a model on a split, and the numbers that are reported about them.

Metrics are functions of NumPy arrays, with MMAction2's definitions: scores (N, classes), larger is more likely; labels
(N,) class indices, or (N, classes) zeros and ones for the multi-label ones. Means over no element are 0.
"""

import csv
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import distributed, visualize
from .checkpoint import load_checkpoint
from .config import Config, TestConfig
from .data import Pipeline
from .errors import UserError
from .experiment import check_network, choose_backend, make_pipeline, open_clips
from .graph import get_layout
from .inference import fuse
from .model import Recognizer
from .progress import Progress
from .run_folder import RunFolder


def topk_accuracy(scores: np.ndarray, labels: np.ndarray, k: Iterable[int] = (1, 5)) -> list[float]:
    """Share of the samples whose label is among the k highest scores, for each k."""
    order = np.argsort(scores, axis=1)[:, ::-1]
    hit = order == np.asarray(labels)[:, None]
    return [float(hit[:, :count].any(axis=1).mean()) if len(hit) else 0.0 for count in k]


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Counts (classes, classes): row the true class, column the predicted one."""
    predicted, labels = np.asarray(predicted, np.int64), np.asarray(labels, np.int64)
    size = num_classes or int(max(predicted.max(initial=-1), labels.max(initial=-1))) + 1
    return np.bincount(labels * size + predicted, minlength=size * size).reshape(size, size)


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean recall over the classes that are true or predicted anywhere; one that is predicted only counts as 0."""
    matrix = confusion_matrix(scores.argmax(axis=1), labels, scores.shape[1])
    seen = (matrix.sum(0) + matrix.sum(1)) > 0
    recall = np.diag(matrix)[seen] / np.maximum(matrix.sum(1)[seen], 1)
    return float(recall.mean()) if seen.any() else 0.0


def probabilities(logits: np.ndarray, several: bool = False) -> np.ndarray:
    """Softmax over the classes (N, classes), or the sigmoid of each where a sample may have several."""
    if several:
        return np.exp(-np.logaddexp(0, -logits))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def average_clips(logits: np.ndarray, num_clips: int, average: str = "prob", several: bool = False) -> np.ndarray:
    """Mean over the clips of each sample: (N * clips, classes) -> (N, classes).

    Args:
        logits: clips of one sample stand together.
        num_clips: clips per sample.
        average: "prob" takes `probabilities` first, "score" leaves the mean of the logits.
        several: whether a sample may have several classes.
    """
    logits = np.asarray(logits, np.float64)
    if average == "prob":
        logits = probabilities(logits, several)
    return logits.reshape(-1, num_clips, logits.shape[1]).mean(axis=1)


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision of each class over the samples, averaged over the classes that have a positive sample."""
    precision = _average_precision(scores.T, labels.T)
    return float(np.nanmean(precision)) if np.isfinite(precision).any() else 0.0


def mmit_mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision of each sample over the classes, averaged over the samples (Multi-Moments in Time)."""
    precision = _average_precision(scores, labels)
    return float(np.nanmean(precision)) if np.isfinite(precision).any() else 0.0


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under each row's precision-recall curve, as steps; NaN for a row without positives.

    A threshold stands at every distinct score, so that tied elements enter the curve together.
    """
    areas = np.full(len(scores), np.nan)
    for row, (score, positive) in enumerate(zip(np.asarray(scores), np.asarray(labels) > 0, strict=True)):
        if not positive.any():
            continue
        order = np.argsort(-score, kind="stable")
        last_of_tie = np.r_[np.diff(score[order]) != 0, True]
        hits = np.cumsum(positive[order])[last_of_tie]
        precision = hits / (np.flatnonzero(last_of_tie) + 1)
        recall = np.r_[0.0, hits / hits[-1]]
        areas[row] = np.sum(np.diff(recall) * precision)
    return areas


def ready(model: Recognizer) -> nn.Module:
    """The network to test or predict with: the model in eval mode, folded wherever `fuse` works."""
    model.eval()
    native = model.backend == "native" and next(model.parameters()).device.type in ("cpu", "cuda")
    foldable = native or model.backend == "emulated"
    return fuse(model, skip_absent=model.backbone.skip_absent) if foldable else model


def scores_of(logits: Sequence[Tensor], num_clips: int, average: str, several: bool) -> np.ndarray:
    """Class probabilities float64 (N, classes) from logits in pieces, N * clips rows in all; see `predict_scores`."""
    averaged = average_clips(torch.cat([piece.double().cpu() for piece in logits]).numpy(), num_clips, average, several)
    return averaged if average == "prob" else probabilities(averaged, several)


@torch.inference_mode()
def predict_scores(
    model: Recognizer,
    pipeline: Pipeline,
    batch_size: int = 32,
    *,
    average: str = "prob",
    features: bool = False,
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Class probabilities of every sample, each computed once, by one process or shared out over several.

    Args:
        model: network, on the device to use; runs in eval mode, folded where `fuse` works, and is handed back in the
            mode it came in.
        pipeline: in test mode; the clips of a sample are averaged.
        batch_size: most clips per forward pass; does not change the result.
        average: "prob" or "score" as in `average_clips`; the mean of the logits becomes `probabilities` here.
        features: whether what the scores come from is wanted, too, of the same pass.
        quiet: no progress lines.

    Returns:
        float64 (N, classes), the same on every process; and None, or float64 (N, 4*base_channels):
        `Recognizer.features`, averaged over the clips of each sample. `cls_head.fc` of them is the mean of the clips'
        logits.
    """
    device, was_training = next(model.parameters()).device, model.training
    net = ready(model)
    number, head = len(pipeline), model.cls_head.fc
    scores, pooled = np.zeros((number, head.out_features)), np.zeros((number, head.in_features if features else 0))
    own = np.arange(number)[distributed.rank() :: distributed.world_size()]
    samples, several = max(1, batch_size // pipeline.num_clips), pipeline.clipset.multi_label
    with Progress("testing", len(own), quiet=quiet or distributed.rank() > 0) as progress:
        for start in range(0, len(own), samples):
            part = own[start : start + samples]
            x, _ = pipeline.batch(part, 0)  # (n, clips, M, T, V, C)
            pieces = [piece.to(device) for piece in x.flatten(0, 1).split(batch_size)]
            if features:
                pieces = [net.features(piece) for piece in pieces]
                pooled[part] = torch.cat(pieces).double().cpu().unflatten(0, (len(part), -1)).mean(1).numpy()
            logits = [(head if features else net)(piece) for piece in pieces]
            scores[part] = scores_of(logits, pipeline.num_clips, average, several)
            progress.advance(len(part))
    model.train(was_training)
    both = distributed.total(torch.from_numpy(np.concatenate([scores, pooled], 1)).to(device)).cpu().numpy()
    scores, pooled = np.split(both, [head.out_features], axis=1)
    return scores, pooled if features else None


def metrics_of(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of probabilities, the main one first.

    `top1`, `top5`, `mean_class` and `loss`, the mean of -log p of the label; where samples may have several labels,
    `mAP`, `mmit_mAP` and `loss`, the mean binary cross-entropy.
    """
    if labels.ndim == 2:
        sure = np.clip(np.where(labels > 0, scores, 1 - scores), 1e-12, None)
        mAP, mmit = mean_average_precision(scores, labels), mmit_mean_average_precision(scores, labels)
        return {"mAP": mAP, "mmit_mAP": mmit, "loss": float(-np.log(sure).mean())}
    top1, top5 = topk_accuracy(scores, labels)
    loss = -np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)).mean()
    return {"top1": top1, "top5": top5, "mean_class": mean_class_accuracy(scores, labels), "loss": float(loss)}


def per_class_table(scores: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> str:
    """CSV, one line per class: samples, correct ones, recall, precision, and the class it is most often taken for.

    Where samples may have several labels: the samples that have it, and the average precision.
    """
    if labels.ndim == 2:
        precision = ("" if np.isnan(area) else f"{area:.4f}" for area in _average_precision(scores.T, labels.T))
        rows = [(i, _class_name(names, i), int(labels[:, i].sum()), area) for i, area in enumerate(precision)]
        return csv_text(("class", "name", "samples", "average_precision"), rows)
    matrix = confusion_matrix(scores.argmax(axis=1), labels, scores.shape[1])
    wrong = matrix - np.diag(np.diag(matrix))
    rows = []
    for i, (samples, predicted, hits) in enumerate(zip(matrix.sum(1), matrix.sum(0), np.diag(matrix), strict=True)):
        other = int(wrong[i].argmax())
        mistaken = (_class_name(names, other), wrong[i, other]) if wrong[i, other] else ("", "")
        recall, precision = (f"{hits / count:.4f}" if count else "" for count in (samples, predicted))
        rows.append((i, _class_name(names, i), samples, hits, recall, predicted, precision, *mistaken))
    header = ("class", "name", "samples", "correct", "recall", "predicted", "precision", "mistaken_for", "times")
    return csv_text(header, rows)


def worst_clips(
    ids: Sequence[str], scores: np.ndarray, labels: np.ndarray, names: Sequence[str] = (), count: int = 100
) -> str:
    """CSV of the `count` clips whose own class has the lowest probability, lowest first."""
    own = scores[np.arange(len(labels)), labels]
    order, predicted = np.argsort(own, kind="stable")[:count], scores.argmax(axis=1)
    rows = [
        (
            ids[i],
            _class_name(names, labels[i]),
            f"{own[i]:.4f}",
            _class_name(names, predicted[i]),
            f"{scores[i, predicted[i]]:.4f}",
        )
        for i in order
    ]
    return csv_text(("id", "true", "probability", "predicted", "its_probability"), rows)


def _class_name(names: Sequence[str], number: int) -> str:
    return str(names[number]) if number < len(names) else str(number)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def write_report(
    folder: RunFolder,
    ids: Sequence[str] | np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    metrics: Mapping[str, Any],
    stream: str = "",
    features: np.ndarray | None = None,
) -> None:
    """Writes what a test leaves in its folder, metrics.json last.

    scores.npz (`ids`, `scores`, `labels`, `confusion`, `label_names`, `stream`), confusion.png, per_class.csv,
    worst_clips.csv and metrics.json; where samples may have several labels, no confusion matrix and no worst_clips.csv.
    With features, features.npz too (`ids`, `features`, `labels`, `label_names`, `stream`).

    Args:
        folder: locked run folder.
        ids: (N,) names of the samples.
        scores: probabilities (N, classes).
        labels: int (N,), or (N, classes) of zeros and ones.
        names: of the classes.
        metrics: content of metrics.json.
        stream: "j", "b", "jm" or "bm", where the scores are one stream's.
        features: (N, F) pooled features of the samples, or None.
    """
    shared = {
        "ids": np.asarray(ids),
        "labels": labels,
        "label_names": np.asarray(names),
        "stream": np.asarray(stream),
    }
    arrays = {**shared, "scores": scores.astype(np.float32)}
    if labels.ndim == 1:
        arrays["confusion"] = confusion_matrix(scores.argmax(axis=1), labels, scores.shape[1])
        folder.write("confusion.png", visualize.confusion_figure(arrays["confusion"], names))
        folder.write("worst_clips.csv", worst_clips(ids, scores, labels, names))
    folder.write("scores.npz", _npz(arrays))
    if features is not None:
        folder.write("features.npz", _npz({**shared, "features": features.astype(np.float32)}))
    folder.write("per_class.csv", per_class_table(scores, labels, names))
    folder.write("metrics.json", json.dumps(metrics, indent=2) + "\n")


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def report(
    model: Recognizer, pipeline: Pipeline, folder: RunFolder, config: TestConfig, *, features: bool = False
) -> dict[str, Any]:
    """Scores every sample, writes the report (see `write_report`) and returns the metrics.

    Args:
        model: network, on the device to use.
        pipeline: of the test split, with `config.num_clips` clips.
        folder: locked run folder.
        config: clips, batch size and averaging.
        features: write features.npz, too.

    Raises:
        UserError: scores that are not finite, of which nothing is written.
    """
    start = time.monotonic()
    scores, pooled = predict_scores(model, pipeline, config.batch_size, average=config.average, features=features)
    clips = pipeline.clipset
    if (bad := ~np.isfinite(scores).all(1)).any():
        raise UserError(
            f"{clips.name}: the scores of clip {clips.frame_dir[bad.argmax()]} are not finite ({int(bad.sum())} such "
            "clips); look at its poses, or take another checkpoint"
        )
    labels = np.asarray(clips.label, np.int64)
    metrics = {
        **metrics_of(scores, labels),
        "num_samples": len(clips),
        "num_clips": config.num_clips,
        "average": config.average,
        "backend": model.backend,
        "device": str(next(model.parameters()).device),
        "seconds": round(time.monotonic() - start, 2),
    }
    if folder.writes:
        write_report(folder, clips.frame_dir, scores, labels, clips.label_names, metrics, pipeline.stream, pooled)
    return metrics


def evaluate(
    config: Config, run_dir: str | Path, checkpoint: str | Path | None = None, *, features: bool = False
) -> dict[str, Any]:
    """Tests a checkpoint on the configuration's test split; alone or under torchrun.

    Args:
        config: data, test and device settings; the network is the checkpoint's, and must have the sizes of `model`.
        run_dir: where the report goes.
        checkpoint: of any of the upstreams or ours; by default the run folder's that `test.checkpoint` names.
        features: write the pooled features of every sample, too.

    Raises:
        UserError: what the user can put right, in one line.
    """
    device = distributed.choose_device(config.device)
    distributed.start(device)
    with RunFolder(run_dir, writes=distributed.rank() == 0) as folder:
        backend, note = choose_backend(config, device)
        if note and folder.writes:
            print(note, flush=True)
        path = Path(checkpoint or folder / f"{config.test.checkpoint}.ckpt")
        model = load_checkpoint(path, device=device, backend=backend)
        layout, classes = get_layout(model.hparams["layout"]), model.hparams["num_classes"]
        fitting = replace(config.model, layout=layout, num_classes=classes, in_channels=model.hparams["in_channels"])
        clips = open_clips(replace(config, model=fitting), path)
        check_network({**asdict(config.model), "layout": None}, model.hparams, path)
        split, slots = config.data.test_split, model.hparams["num_person"]
        pipeline = make_pipeline(config, clips, split, slots, num_clips=config.test.num_clips)
        return report(model, pipeline, folder, config.test, features=features)
