"""The numbers of a page: results with their uncertainty at its head, and counts by class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cifar_dist.record import curves
from cifar_dist.record.lines import EvalLine, Line, Result
from cifar_dist.record.predictions import Predictions
from cifar_dist.record.reader import RunRecord
from cifar_dist.scores.intervals import wilson_interval
from cifar_dist.text import clock, percent


class Tile(NamedTuple):
    """A number at the head of the page."""

    label: str
    value: str
    note: str = ""


class Counts(NamedTuple):
    """First and second guesses over a split."""

    split: str  # val or test
    step: int | None
    confusion: np.ndarray  # (K, K) int64: row = true class, column = predicted class
    second: np.ndarray  # (K,) int64: images of each true class that were right at the second guess


class ClassRow(NamedTuple):
    """A class, or all together, in the table of classes."""

    name: str
    images: int
    correct: int
    accuracy: float | None  # None without images
    low: float | None  # of the 95 % interval
    high: float | None
    second: int
    top2: float | None
    taken_for: str  # the class its images are most often taken for; empty if never
    taken: int


def count(record: RunRecord, predictions: Predictions | None) -> Counts | None:
    """Count the predictions or, in a folder that keeps none, take what its test counted; None where there is neither."""
    if predictions:
        k = predictions.logits.shape[1]
        confusion = np.bincount(predictions.targets * k + predictions.first, minlength=k * k).reshape(k, k)
        hits = predictions.targets[predictions.second == predictions.targets]
        return Counts(predictions.split, predictions.step, confusion, np.bincount(hits, minlength=k))
    test = record.summary.get("test")
    if not test or "confusion_matrix" not in test:
        return None
    second = np.array(test["second_guess_correct"])
    return Counts("test", record.summary.get("best_step"), np.array(test["confusion_matrix"]), second)


def class_names(lines: Sequence[Line]) -> list[str]:
    """Return the classes that the last evaluation names, for a folder whose config.json can't be read; empty without one."""
    evaluated = (line for line in reversed(lines) if line["kind"] != "train")
    return next((list(line["per_class_accuracy"]) for line in evaluated if "per_class_accuracy" in line), [])


def class_rows(counts: Counts, classes: Sequence[str]) -> list[ClassRow]:
    """Return a row for every class, and one for all."""
    rows = []
    for c, name in enumerate(classes):
        others = counts.confusion[c].copy()
        others[c] = 0
        most = int(others.argmax())
        taken = int(others[most])
        images, correct = int(counts.confusion[c].sum()), int(counts.confusion[c, c])
        rows.append(_row(name, images, correct, int(counts.second[c]), classes[most] if taken else "", taken))
    images, correct = int(counts.confusion.sum()), int(counts.confusion.trace())
    return [*rows, _row("all", images, correct, int(counts.second.sum()), "", 0)]


def _row(name: str, images: int, correct: int, second: int, taken_for: str, taken: int) -> ClassRow:
    if not images:
        return ClassRow(name, 0, 0, None, None, None, 0, None, "", 0)
    low, high, _ = wilson_interval(correct / images, images)
    top2 = (correct + second) / images
    return ClassRow(name, images, correct, correct / images, low, high, second, top2, taken_for, taken)


def tiles(record: RunRecord, published: float | None) -> list[Tile]:
    """Return the numbers at the head of the page: those that are known by now. `published`: test accuracy, in [0, 1]."""
    summary, lines = record.summary, record.lines
    test = summary.get("test") or next((line for line in reversed(lines) if line["kind"] == "test"), None)
    validations = [line for line in lines if line["kind"] == "val"]
    best = max(validations, key=lambda line: line["accuracy"], default=None)
    val = summary.get("val") or best
    found = []
    if test:
        found.append(Tile("test accuracy", percent(test["accuracy"]), _interval(test)))
    if published is not None:
        note = (
            f"{100 * (test['accuracy'] - published):+.2f} points here".replace("-", "−") if test else "not tested yet"
        )
        found.append(Tile("the paper's test accuracy", percent(published), note))
    if val:
        found.append(Tile("validation accuracy", percent(val["accuracy"]), f"the best; {_interval(val)}"))
    for name, result in (("test", test), ("validation", None if test else val)):
        if result:
            found.append(
                Tile(f"{name} top-2 accuracy", percent(result.get("top2_accuracy")), "first or second guess right")
            )
            found.append(Tile(f"{name} loss", f"{result['loss']:.4f}", "cross-entropy, nats per image"))
            found += _map_errors(name, result)
    return [*found, *_gap(lines), *_progress(record, best)]


def _map_errors(name: str, result: Result) -> list[Tile]:
    if "quantisation_error" not in result:
        return []
    torn = "images whose best and second best unit are no neighbours"
    return [
        Tile(f"{name} quantisation error", f"{result['quantisation_error']:.2f}", "mean distance to the best unit"),
        Tile(f"{name} topographic error", percent(result.get("topographic_error")), torn),
    ]


def _interval(result: Result) -> str:
    low, high, _ = wilson_interval(result["accuracy"], result["num_images"])
    return f"95 % interval {100 * low:.2f} to {100 * high:.2f} %, {result['num_images']:,} images"


def _gap(lines: Sequence[Line]) -> list[Tile]:
    curve = curves.points(lines)
    if not curve or curve[-1].gap is None:
        return []
    opening = curves.gap_opening(curve)
    where = f"over-fitting since epoch {opening.epoch:g}" if opening else "no over-fitting so far"
    value = f"{100 * curve[-1].gap:+.1f} points".replace("-", "−")
    return [Tile("generalisation gap", value, f"training minus validation accuracy; {where}")]


def _progress(record: RunRecord, best: EvalLine | None) -> list[Tile]:
    summary, last = record.summary, record.lines[-1] if record.lines else None
    found = []
    best_step = summary.get("best_step") or (best and best["step"])
    if (step := summary.get("step", last and last["step"])) is not None:
        total = f" of {summary['total_steps']:,}" if "total_steps" in summary else ""
        done = f"{step:,}{total} steps done, {summary.get('epoch', last and last['epoch']):.4g} epochs"
        found.append(Tile("best step", "–" if best_step is None else f"{best_step:,}", done))
    if seconds := summary.get("seconds", last and last["seconds"]):
        speeds = [line["images_per_second"] for line in record.lines if line["kind"] == "train"]
        note = f"{np.median(speeds):,.0f} images/s, the median" if speeds else ""
        found.append(Tile("training time", clock(seconds), note))
    if record.starts and (parameters := record.starts[-1].get("num_parameters")):
        found.append(Tile("parameters", f"{parameters:,}"))
    return found
