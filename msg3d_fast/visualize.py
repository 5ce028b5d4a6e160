"""Figures of a run as PNG bytes, learning curves and the confusion matrix, and a clip as an animated GIF."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont


def curves_figure(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss, accuracy and learning rate over the epochs.

    Args:
        history: one mapping per epoch with `epoch`, `lr`, `train_loss`, `train_top1` and, where there was a validation,
            `val_loss`, `val_top1`, `val_top5`, `val_mean_class`.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]

    def draw(axes: Any, key: str, label: str, **style: Any) -> None:
        points = [(epoch, row[key]) for epoch, row in zip(epochs, history, strict=True) if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else "", **style)

    draw(loss, "train_loss", "training", color="tab:blue")
    draw(loss, "val_loss", "validation", color="tab:orange")
    draw(accuracy, "train_top1", "training top-1", color="tab:blue")
    draw(accuracy, "val_top1", "validation top-1", color="tab:orange")
    draw(accuracy, "val_mean_class", "validation mean class", color="tab:orange", linestyle=":")
    draw(accuracy, "val_top5", "validation top-5", color="tab:green")
    draw(rate, "lr", "learning rate", color="tab:gray")
    for axes, title in ((loss, "loss"), (accuracy, "accuracy"), (rate, "learning rate at the end of the epoch")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    loss.set_ylim(bottom=0)
    accuracy.set_ylim(0, 1.02)
    loss.legend()
    accuracy.legend(loc="lower right")
    return _png(figure)


def confusion_figure(matrix: np.ndarray, names: Sequence[str] = ()) -> bytes:
    """Confusion matrix, each row divided by its sum; counts are written into the cells where there is room for them.

    Args:
        matrix: (classes, classes) counts, row the true class, column the predicted one.
        names: of the classes; numbers stand for the ones that are missing.
    """
    size = len(matrix)
    labels = [str(names[i]) if i < len(names) else str(i) for i in range(size)]
    labels = [label if len(label) <= 28 else label[:27] + "…" for label in labels]
    cell = 0.42 if size <= 40 else 0.17 if size <= 150 else 0.06  # inches
    side = max(4.0, cell * size)
    figure = Figure(figsize=(side + 3.2, side + 2.6), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")  # rare errors show
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    if size <= 150:
        font = 8 if size <= 40 else 6
        axes.set_xticks(range(size), labels, rotation=90, fontsize=font)
        axes.set_yticks(range(size), labels, fontsize=font)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(matrix.sum())} samples, top-1 {accuracy:.3f}")
    if size <= 40:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if share[row, column] > 0.3 else "black"
            count = int(matrix[row, column])
            axes.text(column, row, count, ha="center", va="center", fontsize=7, color=color)
    return _png(figure)


def skeleton_animation(
    poses: np.ndarray,
    bones: Sequence[tuple[int, int]],
    lines: Sequence[str] = (),
    *,
    upright: bool = False,
    fps: float = 15.0,
    size: int = 480,
) -> bytes:
    """A clip as an animated GIF, seen from the front: the first two coordinates. Joints that are all zero are missing.

    Args:
        poses: (M, T, V, C), C at least 2; the third coordinate or confidence is not shown.
        bones: pairs of joints.
        lines: of text over the picture.
        upright: whether the second coordinate grows upwards, as in space, and not downwards, as in images.
        fps: frames per second.
        size: pixels of the longer side.
    """
    poses = np.asarray(poses, np.float64)
    there, points = poses.any(-1), poses[..., :2] * ([1, -1] if upright else [1, 1])
    seen = points[there] if there.any() else np.zeros((1, 2))
    low, high = seen.min(0), seen.max(0)
    font = ImageFont.load_default(size=16)
    margin, head, extent = 20, 22 * len(lines) + 10, max(float((high - low).max()), 1e-9)
    scale = (size - 2 * margin) / extent
    width, height = (max(int((high - low)[i] * scale), 200 if i == 0 else 1) + 2 * margin for i in (0, 1))
    pixels = (points - (low + high) / 2) * scale + [width / 2, height / 2 + head]
    frames = []
    for t in range(poses.shape[1]):
        image = Image.new("RGB", (width, height + head), "white")
        draw = ImageDraw.Draw(image)
        for number, text in enumerate(lines):
            draw.text((margin, 8 + 22 * number), text, "black", font=font)
        for person, visible, color in zip(pixels[:, t], there[:, t], _PERSONS * len(poses), strict=False):
            for a, b in bones:
                if visible[a] and visible[b]:
                    draw.line([*person[a], *person[b]], color, width=3)
            for x, y in person[visible]:
                draw.ellipse([x - 4, y - 4, x + 4, y + 4], color)
        frames.append(image)
    buffer = io.BytesIO()
    later, duration = frames[1:], max(20, round(1000 / fps))  # viewers slow shorter frames down
    frames[0].save(buffer, "GIF", save_all=True, append_images=later, duration=duration, loop=0)
    return buffer.getvalue()


_PERSONS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
