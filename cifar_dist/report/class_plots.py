"""What a model makes of each class: accuracies with their uncertainty, and which classes it takes for which."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.patches import Rectangle

from cifar_dist.record.predictions import Predictions
from cifar_dist.report.canvas import LETTERS_PER_INCH, NOTE, RIGHT, WRONG, new_axes, plain, save, shorten
from cifar_dist.scores.intervals import wilson_interval

MOST_BARS = 100
MOST_COUNTS = 20  # classes, beyond which a matrix has no room for numbers
MOST_SLANTED = 40  # names, beyond which they stand upright
MOST_NAMES = 100
NAME_INCHES = 0.14  # that a name needs, in a matrix which grows with them


class ClassScore(NamedTuple):
    """How many of a class's images were recognised."""

    name: str
    correct: int
    total: int
    low: float  # Wilson's interval of the accuracy, in [0, 1]
    high: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def class_scores(predictions: Predictions, classes: Sequence[str]) -> list[ClassScore]:
    """Return the score of each class that has images, best first."""
    scores = []
    for c, name in enumerate(classes):
        guesses = predictions.first[predictions.targets == c]
        if total := len(guesses):
            correct = int((guesses == c).sum())
            interval = wilson_interval(correct / total, total)
            scores.append(ClassScore(name, correct, total, interval.low, interval.high))
    return sorted(scores, key=lambda score: -score.accuracy)


def draw_per_class(predictions: Predictions, classes: Sequence[str], path: Path, title: str) -> Path:
    """Draw the accuracy of each class as a bar, best on top, with its 95 % interval; of very many the worst alone."""
    scores = class_scores(predictions, classes)
    shown, overall = scores[-MOST_BARS:], sum(s.correct for s in scores) / sum(s.total for s in scores)
    row = 0.3 if len(shown) <= 30 else 0.17
    left_out = f", the {len(shown)} hardest of {len(scores)} classes" * (len(shown) < len(scores))
    names = [shorten(s.name, 24) for s in shown]
    left = 0.3 + max(map(len, names)) / LETTERS_PER_INCH
    title = f"{title}\n{describe(predictions)}{left_out}\n"
    figure, axes = new_axes(title, (5.5, row * len(shown)), left, 1.7, 0.6)
    places, accuracies = np.arange(len(shown)), np.array([100 * s.accuracy for s in shown])
    reach = np.abs(100 * np.array([(s.low, s.high) for s in shown]).T - accuracies)
    axes.barh(places, accuracies, 0.72, color=RIGHT, alpha=0.55)
    axes.errorbar(accuracies, places, xerr=reach, fmt="none", ecolor="black", elinewidth=1.2, capsize=min(3, 10 * row))
    for place, score in zip(places, shown, strict=True):
        text = f"{100 * score.accuracy:.1f} %   {score.correct:,} of {score.total:,}"
        axes.annotate(text, (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8)
    axes.axvline(100 * overall, color=NOTE, linestyle="--", linewidth=1.2)
    axes.set_title(f"all: {100 * overall:.2f} %", x=overall, fontsize=9, color=NOTE)
    axes.set_yticks(places, map(plain, names), fontsize=10 if row > 0.2 else 7)
    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), xlabel="accuracy in %, with its 95 % interval (Wilson)")
    axes.grid(alpha=0.3, axis="x")
    return save(figure, path)


def confusion_matrix(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Return the counts (K, K) int64: row = true class, column = predicted class."""
    cells = predictions.targets * num_classes + predictions.first
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def draw_confusion(predictions: Predictions, classes: Sequence[str], path: Path, title: str) -> Path:
    """Draw the confusion matrix of `predictions`."""
    return draw_matrix(confusion_matrix(predictions, len(classes)), classes, path, f"{title}\n{describe(predictions)}")


def draw_matrix(counts: np.ndarray, classes: Sequence[str], path: Path, title: str) -> Path:
    """Draw how many images of each true class (row) were taken for each class (column), shaded by their share of the row.

    `counts` (K, K) int64.
    """
    num_classes = len(classes)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    named = num_classes <= MOST_NAMES
    side = float(np.clip(0.72 * num_classes, 4.5, max(9, NAME_INCHES * num_classes * named)))
    names = [shorten(name, 14) for name in classes] if named else ["100"]
    room = 0.6 + max(map(len, names)) / LETTERS_PER_INCH
    figure, axes = new_axes(title, (side, side), room, 1.7, room)
    diagonal = np.eye(num_classes, dtype=bool)
    for gap, name, colour, hidden in ((0.3, "right", RIGHT, ~diagonal), (0.8, "wrong", WRONG, diagonal)):
        shades = LinearSegmentedColormap.from_list(name, ["white", colour])
        norm = PowerNorm(0.5, 0, 100)  # mistakes are rare, and yet must show
        image = axes.imshow(np.ma.array(shares, mask=hidden), cmap=shades, norm=norm)
        bar = figure.colorbar(image, cax=axes.inset_axes((1 + gap / side, 0.25, 0.2 / side, 0.5)), ticks=[])
        bar.ax.set_title(name, fontsize=9)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    bar.set_label("share of the row in %")
    for i in range(num_classes):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, linewidth=min(1.2, 20 / num_classes)))
    if num_classes <= MOST_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            weight, colour = ("bold" if row == column else "normal"), ("white" if shares[row, column] > 75 else "black")
            look = {"color": colour, "fontweight": weight, "fontsize": min(10, 110 / num_classes)}
            axes.text(column, row, f"{count}", look, ha="center", va="center")
    if named:
        crowded, points = num_classes > MOST_SLANTED, min(10, 54 * side / num_classes)  # 72 to an inch
        slant = {"rotation": 90} if crowded else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(num_classes), map(plain, names), fontsize=points, **slant)
        axes.set_yticks(range(num_classes), map(plain, names), fontsize=points)
    place = "" if named else ": its place in config.json, from 0"
    axes.set(xlabel=f"predicted class{place}", ylabel=f"true class{place}")
    return save(figure, path)


def describe(predictions: Predictions) -> str:
    images = {"test": "test images", "val": "validation images"}[predictions.split]
    return f"{len(predictions.targets):,} {images}, weights of step {predictions.step:,}"
