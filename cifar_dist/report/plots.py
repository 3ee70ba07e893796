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
from cifar_dist.record.curves import Point, gap_opening, merged, points
from cifar_dist.record.lines import TrainLine
from cifar_dist.record.predictions import Predictions
from cifar_dist.record.reader import RunRecord
from cifar_dist.record.training_images import TrainingImages
from cifar_dist.report.canvas import MIDTONE, NOTE, TRAIN, VAL, new_figure, save
from cifar_dist.report.class_plots import draw_confusion, draw_per_class
from cifar_dist.report.image_grids import draw_augmented, draw_mistakes, draw_samples, draw_training_images

MOST_POINTS = 700  # of a curve of training lines: its axes have a few pixels more


def draw_pictures(
    record: RunRecord,
    predictions: Predictions | None,
    pixels: np.ndarray | None,
    training_images: TrainingImages | None,
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
        drawn.append(draw_training_lines(training, folder / "training_lines.png", title))
        limit = record.config.get("max_grad_norm")
        drawn.append(draw_learning_rate(training, folder / "learning_rate.png", title, limit))
    if predictions:
        classes = record.dataset["classes"]
        drawn.append(draw_per_class(predictions, classes, folder / "per_class.png", title))
        drawn.append(draw_confusion(predictions, classes, folder / "confusion_matrix.png", title))
        drawn.append(draw_samples(predictions, classes, folder / "samples.png", title))
        if pixels is not None:
            drawn.append(draw_mistakes(predictions, classes, pixels, folder / "mistakes.png", title))
    if training_images:
        plain, augmented = training_images
        drawn.append(draw_training_images(plain, folder / "training_images.png", title))
        steps, size = [*record.config.get("augment", [])], augmented.images.shape[1]
        if size == record.config.get("early_size"):
            steps.append(f"shrinking to {size} x {size} pixels")
        if steps:
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


def draw_training_lines(lines: Sequence[TrainLine], path: Path, title: str) -> Path:
    """Draw the loss and, where they have it, the accuracy of metrics.jsonl's training lines by step (as Li and Ghasemi do).

    Where there are more lines than pixels, a point is the mean over several lines, and the title says how many.
    """
    curve, size = merged(lines, MOST_POINTS)
    how = "each the mean since the one before" if size == 1 else f"a point is the mean of {size} of them"
    measured = any(p.train_accuracy is not None for p in curve)
    figure = new_figure(f"{title}\n{len(lines):,} training lines, {how}", 8, 5.5 if measured else 3.2)
    panels = figure.subplots(1 + measured, 1, sharex=True, squeeze=False)[:, 0]
    steps = [p.step for p in curve]
    _line(panels[0], steps, [p.train_loss for p in curve], TRAIN, "o-")
    panels[0].set_ylabel("training loss")
    if measured:
        _line(panels[1], steps, [_percent(p.train_accuracy) for p in curve], TRAIN, "o-")
        panels[1].set_ylabel("training accuracy in %")
    for axes in panels:
        _finish(axes, steps)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    panels[-1].set_xlabel("step")
    figure.align_ylabels()
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
    """Draw a map's grid four times: weight vectors as images, U-matrix, each unit's majority class, and how many images it wins.

    A class is paler where it is less pure. Without a ground: the page, which may be dark, shows it.
    """
    figure = Figure((16, 16.4), 110, layout="constrained")
    (images, ridges), (labels, hits) = figure.subplots(2, 2)
    pixels = units.images.cpu().numpy() * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))
    rows, columns = pixels.shape[:2]
    tiles = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
    images.imshow(tiles.transpose(0, 3, 1, 4, 2).reshape(rows * 34, columns * 34, 3).clip(0, 1))
    _title(images, f"weight vectors of {rows} x {columns} units")
    _scale(ridges, units.u_matrix.cpu().numpy(), "U-matrix: mean distance to the neighbours' weight vectors")
    _draw_majorities(labels, units.wins.cpu().numpy(), classes)
    _title(labels, "class of most training images each unit wins; paler: less pure, -: wins none")
    _scale(hits, units.wins.sum(dim=2).cpu().numpy(), "training images each unit wins")
    for axes in (images, ridges, labels, hits):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(MIDTONE)
    save(figure, path, transparent=True)


def _draw_majorities(axes: Axes, wins: np.ndarray, classes: Sequence[str]) -> None:
    """Draw the majority class of each unit, by what it wins (rows, columns, K)."""
    rows, columns, _ = wins.shape
    totals, majority = wins.sum(axis=2), wins.argmax(axis=2)
    purity = wins.max(axis=2) / totals.clip(min=1)
    colours = np.array([matplotlib.colormaps["tab20"](i / 20)[:3] for i in range(20)])[majority % 20]
    faded = 1 - (1 - colours) * (0.15 + 0.85 * purity[..., None])
    faded[totals == 0] = 1.0
    axes.imshow(faded)
    for row, column in np.ndindex(rows, columns):
        text = classes[majority[row, column]][:5] if totals[row, column] else "-"
        axes.text(column, row, text, ha="center", va="center", fontsize=min(11.0, 150 / columns))


def _scale(axes: Axes, values: np.ndarray, title: str) -> None:
    """Draw a number for each unit (rows, columns) as a shade, with its scale."""
    image = axes.imshow(values, cmap="cividis")
    figure = axes.figure
    assert isinstance(figure, Figure)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, location="bottom", aspect=40, pad=0.01)
    bar.ax.tick_params(colors=MIDTONE, labelsize=12)
    bar.outline.set_edgecolor(MIDTONE)
    _title(axes, title)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=MIDTONE, fontsize=13)


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
