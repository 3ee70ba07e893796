"""Pictures of a run, in its folder's plots/. Written once it ends; readable in print and without telling red from green."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_dist.curves import Point, gap_opening
from cifar_dist.models.som import Som

# Of Okabe & Ito's palette, which colour-blind readers can tell apart.
TRAIN, VAL, NOTE = "#0072B2", "#D55E00", "#555555"


def draw_curves(curve: Sequence[Point], path: Path, title: str, published: float | None = None) -> None:
    """Draw loss and accuracy of training and validation by epoch, and mark where the gap between them opens.

    `published` is the paper's test accuracy, in [0, 1].
    """
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [p.epoch for p in curve]
    comparable = curve[-1].train_accuracy is not None  # a map's two losses are of different kinds
    _line(losses, epochs, [p.train_loss for p in curve], "training", TRAIN, "-")
    _line(losses, epochs, [p.val_loss if comparable else None for p in curve], "validation", VAL, "--")
    _line(accuracies, epochs, [_percent(p.train_accuracy) for p in curve], "training", TRAIN, "-")
    _line(accuracies, epochs, [_percent(p.val_accuracy) for p in curve], "validation", VAL, "--")
    accuracies.margins(y=0.1)
    if published is not None:
        accuracies.axhline(100 * published, color=NOTE, linestyle=":", linewidth=1)
        note = f"the paper's test accuracy, {100 * published:g} %"
        accuracies.annotate(
            note, (1, 100 * published), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", color=NOTE
        )
    start = gap_opening(curve)
    for axes, name in ((losses, "loss"), (accuracies, "accuracy in %")):
        if start:
            axes.axvline(start.epoch, color=NOTE, linewidth=1)
            where = (start.epoch, 0.03 if axes is accuracies else 0.95)
            axes.annotate(" the gap opens", where, xycoords=("data", "axes fraction"), color=NOTE)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.suptitle(title)
    _save(figure, path)


def draw_map(model: Som, mean: Sequence[float], std: Sequence[float], classes: Sequence[str], path: Path) -> None:
    """Draw a map's grid of weight vectors as images, and beside it each unit's majority class, paler where it is less pure."""
    figure, (images, labels) = plt.subplots(1, 2, figsize=(16, 8.4), layout="constrained")
    weights = model.weight.detach().cpu().numpy().reshape(model.rows, model.columns, 3, 32, 32)
    pixels = weights * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))
    tiles = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
    images.imshow(tiles.transpose(0, 3, 1, 4, 2).reshape(model.rows * 34, model.columns * 34, 3).clip(0, 1))
    images.set_title(f"weight vectors of {model.rows} x {model.columns} units")
    wins = model.wins.cpu().numpy()
    totals, majority = wins.sum(axis=1), wins.argmax(axis=1)
    purity = wins.max(axis=1) / totals.clip(min=1)
    colours = np.array([plt.get_cmap("tab20")(i / 20)[:3] for i in range(20)])[majority % 20]
    faded = 1 - (1 - colours) * (0.15 + 0.85 * purity[:, None])
    faded[totals == 0] = 1.0
    labels.imshow(faded.reshape(model.rows, model.columns, 3))
    for unit, name in enumerate(majority):
        row, column = divmod(unit, model.columns)
        text = classes[name][:5] if totals[unit] else "-"
        labels.text(column, row, text, ha="center", va="center", fontsize=min(9.0, 110 / model.columns))
    labels.set_title("class of most training images each unit wins; paler: less pure, -: wins none")
    for axes in (images, labels):
        axes.set_xticks([])
        axes.set_yticks([])
    _save(figure, path)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float | None], label: str, colour: str, style: str) -> None:
    if any(value is not None for value in y):
        marker = "o" if len(x) < 30 else ""
        values = [np.nan if value is None else value for value in y]
        axes.plot(x, values, style, marker=marker, markersize=3, color=colour, label=label)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
