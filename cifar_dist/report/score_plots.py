"""Pictures of an evaluation: reliability before and after a temperature, and the scores of each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cifar_dist.report.canvas import (
    BLUE,
    LETTERS_PER_INCH,
    NOTE,
    VERMILLION,
    new_axes,
    new_figure,
    plain,
    save,
    shorten,
)
from cifar_dist.report.class_plots import MOST_BARS, draw_matrix
from cifar_dist.scores.intervals import wilson_interval
from cifar_dist.text import percent

GREEN = "#009E73"  # Okabe & Ito's
MARKS = {"precision": (">", VERMILLION), "recall": ("o", BLUE), "f1": ("D", GREEN)}
NAMES = {"precision": "precision", "recall": "recall (the class's accuracy)", "f1": "F1"}


def draw_evaluation(record: Mapping[str, Any], classes: Sequence[str], folder: Path, title: str) -> dict[str, Path]:
    """Draw all pictures of what eval.py recorded into a folder; returns their paths by what they show."""
    return {
        "reliability": draw_reliability(record, folder / "reliability.png", title),
        "classes": draw_scores(record["per_class"], folder / "classes.png", title),
        "confusion": draw_matrix(np.array(record["confusion_matrix"]), classes, folder / "confusion.png", title),
    }


def draw_reliability(record: Mapping[str, Any], path: Path, title: str) -> Path:
    """Draw accuracy by confidence, and below how many images are as sure; beside it the same at the fitted temperature."""
    panels = {"as they are": record["calibration"]}
    if fitted := record["temperature"]:
        panels[f"at temperature {fitted['value']:.3f}"] = fitted["after"]
    figure = new_figure(title, 4.6 * len(panels) + 0.4, 5.6)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (name, bins) in enumerate(panels.items()):
        _reliability(axes[0, column], bins)
        axes[0, column].set_title(f"{name}\nECE {percent(bins['ece'])}, NLL {bins['nll']:.4f}", fontsize=10)
        _confidences(axes[1, column], bins)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("share of images")
    axes[0, 0].legend(loc="upper left", fontsize=8)
    return save(figure, path)


def _reliability(axes: Axes, bins: Mapping[str, Any]) -> None:
    number = len(bins["bin_images"])
    centres = (np.arange(number) + 0.5) / number
    accuracy = np.array([np.nan if a is None else a for a in bins["bin_accuracy"]])
    confidence = np.array([np.nan if c is None else c for c in bins["bin_confidence"]])
    axes.plot((0, 1), (0, 1), color=NOTE, linestyle="--", linewidth=1.2, label="as sure as right")
    axes.bar(centres, accuracy, 0.92 / number, color=BLUE, alpha=0.55, label="accuracy, 95 % interval")
    counted = [i for i, images in enumerate(bins["bin_images"]) if images]
    ends = np.array([wilson_interval(accuracy[i], bins["bin_images"][i])[:2] for i in counted])
    reach = np.abs(ends.T - accuracy[counted])
    axes.errorbar(centres[counted], accuracy[counted], reach, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    axes.plot(centres, confidence, "D", color=VERMILLION, markersize=4, label="mean confidence")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)


def _confidences(axes: Axes, bins: Mapping[str, Any]) -> None:
    images = np.array(bins["bin_images"])
    axes.bar((np.arange(len(images)) + 0.5) / len(images), images / images.sum(), 0.92 / len(images), color=NOTE)
    axes.set(xlabel="confidence: probability of the first guess")
    axes.grid(alpha=0.3, axis="y")


def draw_scores(per_class: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> Path:
    """Draw precision, recall and F1 of each class as marks in its row, the best F1 on top; of very many the worst alone."""
    rows = sorted(per_class.items(), key=lambda item: -(item[1]["f1"] or 0.0))
    shown = rows[-MOST_BARS:]
    if len(shown) < len(rows):
        title += f", the {len(shown)} hardest of {len(rows)} classes"
    names = [shorten(name, 24) for name, _ in shown]
    height = 0.3 if len(shown) <= 30 else 0.17
    left = 0.3 + max(map(len, names)) / LETTERS_PER_INCH
    figure, axes = new_axes(f"{title}\n\n", (6.2, height * len(shown)), left, 0.4, 0.6)
    places = np.arange(len(shown))
    for name, (mark, colour) in MARKS.items():
        values = [np.nan if row[name] is None else 100 * row[name] for _, row in shown]
        axes.plot(values, places, mark, color=colour, markersize=7 if height > 0.2 else 4, label=NAMES[name])
    axes.set_yticks(places, map(plain, names), fontsize=10 if height > 0.2 else 7)
    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), xlabel="%")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=9)
    return save(figure, path)
