"""Pictures of a run, in its folder's plots/. Written once it ends; readable in print and without telling red from green."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_dist.models.base import Prototypes
from cifar_dist.record.curves import Point, gap_opening, points
from cifar_dist.record.lines import TrainLine
from cifar_dist.record.predictions import Predictions
from cifar_dist.record.reader import RunRecord
from cifar_dist.report.canvas import MIDTONE, NOTE, TRAIN, VAL, new_figure, save
from cifar_dist.report.class_plots import draw_confusion, draw_per_class
from cifar_dist.report.image_grids import Augmented, draw_augmented, draw_mistakes, draw_samples


def draw_pictures(
    record: RunRecord,
    predictions: Predictions | None,
    pixels: np.ndarray | None,
    augmented: Augmented | None,
    folder: Path,
    title: str,
    published: float | None,
) -> list[Path]:
    """Draw every picture that can be drawn from what there is, and return their paths.

    `pixels` (M, S, S, 3) uint8 are the images of `predictions`, in its order; `published` is as in `draw_curves`.
    """
    if record.status != "finished":
        title += f", {record.status} at epoch {record.summary.get('epoch', 0):.3g}"
    drawn = []
    if curve := points(record.lines):
        drawn.append(draw_curves(curve, folder / "curves.png", title, published))
    if training := [line for line in record.lines if line["kind"] == "train"]:
        limit = record.config.get("max_grad_norm")
        drawn.append(draw_learning_rate(training, folder / "learning_rate.png", title, limit))
    if predictions:
        classes = record.dataset["classes"]
        drawn.append(draw_per_class(predictions, classes, folder / "per_class.png", title))
        drawn.append(draw_confusion(predictions, classes, folder / "confusion_matrix.png", title))
        drawn.append(draw_samples(predictions, classes, folder / "samples.png", title))
        if pixels is not None:
            drawn.append(draw_mistakes(predictions, classes, pixels, folder / "mistakes.png", title))
    if augmented:
        steps, size = [*record.config.get("augment", [])], augmented.images.shape[1]
        if size == record.config.get("early_size"):
            steps.append(f"shrinking to {size} x {size} pixels")
        drawn.append(draw_augmented(augmented, steps, folder / "augmented.png", title))
    return drawn


def draw_curves(curve: Sequence[Point], path: Path, title: str, published: float | None = None) -> Path:
    """Draw loss and accuracy of training and validation by epoch, and mark where the gap between them opens.

    `published` is the paper's test accuracy, in [0, 1].
    """
    figure = new_figure(title, 10, 4)
    losses, accuracies = figure.subplots(1, 2)
    epochs = [p.epoch for p in curve]
    comparable = curve[-1].train_accuracy is not None  # a map's two losses are of different kinds
    _line(losses, epochs, [p.train_loss for p in curve], TRAIN, "o-", "training")
    _line(losses, epochs, [p.val_loss if comparable else None for p in curve], VAL, "s--", "validation")
    _line(accuracies, epochs, [_percent(p.train_accuracy) for p in curve], TRAIN, "o-", "training")
    _line(accuracies, epochs, [_percent(p.val_accuracy) for p in curve], VAL, "s--", "validation")
    accuracies.margins(y=0.1)
    if published is not None:
        label = f"the paper's test accuracy, {100 * published:g} %"
        accuracies.axhline(100 * published, color=NOTE, linestyle=":", label=label)
    start = gap_opening(curve)
    for axes, name in ((losses, "loss"), (accuracies, "accuracy in %")):
        if start:
            axes.axvline(start.epoch, color=NOTE, linewidth=1, label=f"the gap opens, epoch {start.epoch:g}")
        axes.set(xlabel="epoch", ylabel=name)
        _finish(axes, epochs)
    return save(figure, path)


def draw_learning_rate(lines: Sequence[TrainLine], path: Path, title: str, limit: float | None = None) -> Path:
    """Draw the learning rate of metrics.jsonl's training lines by epoch and, where they have it, the gradient's norm.

    `limit` is the norm to which gradients were clipped.
    """
    epochs = [line["epoch"] for line in lines]
    rates = np.array([line["lr"] for line in lines])
    norms = [line.get("gradient_norm") for line in lines]
    measured = any(norm is not None for norm in norms)
    figure = new_figure(title, 8, 5.5 if measured else 3.2)
    panels = figure.subplots(1 + measured, 1, sharex=True, squeeze=False)[:, 0]
    _line(panels[0], epochs, rates.tolist(), TRAIN, "o-")
    panels[0].set_ylabel("learning rate")
    if spans_decades(rates):
        panels[0].set_yscale("log")
    else:
        panels[0].set_ylim(bottom=0)
    if measured:
        _line(panels[1], epochs, norms, VAL, "o-")
        panels[1].set_ylabel("L2 norm of the gradient")
        panels[1].set_ylim(bottom=0)
        if limit is not None:
            panels[1].axhline(limit, color=NOTE, linestyle=":", label=f"clipped to {limit:g}")
    for axes in panels:
        _finish(axes, epochs)
    panels[-1].set_xlabel("epoch")
    figure.align_ylabels()
    return save(figure, path)


def spans_decades(rates: np.ndarray) -> bool:
    """Whether a schedule spends its time on rates two decades apart, as steps do; a cosine is only near 0 for a moment."""
    positive = rates[rates > 0]
    if not len(positive):
        return False
    low, high = np.quantile(positive, (0.1, 0.9))
    return bool(math.log10(high / low) > 1.9)


def draw_map(
    units: Prototypes, mean: Sequence[float], std: Sequence[float], classes: Sequence[str], path: Path
) -> None:
    """Draw a map's grid of weight vectors as images, and beside it each unit's majority class, paler where it is less pure.

    Without a ground: the page, which may be dark, shows it.
    """
    figure = Figure((16, 8.4), 150, layout="constrained")
    images, labels = figure.subplots(1, 2)
    pixels = units.images.cpu().numpy() * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))
    rows, columns = pixels.shape[:2]
    tiles = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
    images.imshow(tiles.transpose(0, 3, 1, 4, 2).reshape(rows * 34, columns * 34, 3).clip(0, 1))
    images.set_title(f"weight vectors of {rows} x {columns} units", color=MIDTONE)
    wins = units.wins.flatten(0, 1).cpu().numpy()
    totals, majority = wins.sum(axis=1), wins.argmax(axis=1)
    purity = wins.max(axis=1) / totals.clip(min=1)
    colours = np.array([matplotlib.colormaps["tab20"](i / 20)[:3] for i in range(20)])[majority % 20]
    faded = 1 - (1 - colours) * (0.15 + 0.85 * purity[:, None])
    faded[totals == 0] = 1.0
    labels.imshow(faded.reshape(rows, columns, 3))
    for unit, name in enumerate(majority):
        row, column = divmod(unit, columns)
        text = classes[name][:5] if totals[unit] else "-"
        labels.text(column, row, text, ha="center", va="center", fontsize=min(9.0, 110 / columns))
    labels.set_title("class of most training images each unit wins; paler: less pure, -: wins none", color=MIDTONE)
    for axes in (images, labels):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(MIDTONE)
    save(figure, path, transparent=True)


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float | None], colour: str, style: str, label: str | None = None
) -> None:
    """Draw the values that are not None; points are marked, unless there are many."""
    if any(value is not None for value in y):
        values = [np.nan if value is None else value for value in y]
        size, width = (4, 1.5) if len(x) < 30 else (0, 1)
        axes.plot(x, values, style, markersize=size, linewidth=width, color=colour, label=label)


def _finish(axes: Axes, epochs: Sequence[float]) -> None:
    """Let an axis of epochs begin at 0, since one point alone has no scale, and name the lines."""
    axes.set_xlim(0, 1.05 * max(epochs))
    if max(epochs) > 2:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
