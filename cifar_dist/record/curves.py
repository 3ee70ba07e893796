"""A run's record as curves: training and validation side by side, and where the gap between them opens."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cifar_dist.record.lines import Line, TrainLine

PATIENCE = 3  # validations in a row that must be worse than the best before we call it over-fitting


class Point(NamedTuple):
    """Training since the point before, as a mean over its images, and the validation at the end of it."""

    epoch: float
    step: int
    train_loss: float
    train_accuracy: float | None  # in [0, 1]; None for a model that predicts nothing while it trains
    val_loss: float | None = None  # None where nothing is held out
    val_accuracy: float | None = None
    val_images: int | None = None  # None where the record doesn't say

    @property
    def gap(self) -> float | None:
        """Training minus validation accuracy."""
        if self.train_accuracy is None or self.val_accuracy is None:
            return None
        return self.train_accuracy - self.val_accuracy


def points(lines: Iterable[Line]) -> list[Point]:
    """Return a point for every validation in metrics.jsonl or, where there is none, for every epoch; before its end, for every line."""
    lines = list(lines)
    validated = any(line["kind"] == "val" for line in lines)
    found: list[Point] = []
    pending: list[tuple[int, TrainLine]] = []
    samples = 0
    for line in lines:
        if line["kind"] == "train":
            pending.append((line["samples"] - samples, line))
            samples = line["samples"]
        if not pending or line["kind"] == "test":
            continue
        if line["kind"] == "val":
            found.append(_point(pending, line["loss"], line["accuracy"], line.get("num_images")))
        elif not validated and float(line["epoch"]).is_integer():
            found.append(_point(pending))
        else:
            continue
        pending = []
    return found or [_point([one]) for one in pending]


def _point(
    pending: Sequence[tuple[int, TrainLine]],
    val_loss: float | None = None,
    val_accuracy: float | None = None,
    val_images: int | None = None,
) -> Point:
    images = sum(count for count, _ in pending)
    last = pending[-1][1]
    loss = sum(count * line["loss"] for count, line in pending) / images
    shares = [count * line["accuracy"] for count, line in pending if line["accuracy"] is not None]
    accuracy = sum(shares) / images if len(shares) == len(pending) else None
    return Point(last["epoch"], last["step"], loss, accuracy, val_loss, val_accuracy, val_images)


def merged(lines: Sequence[TrainLine], most: int) -> tuple[list[Point], int]:
    """Return `most` points at most of training lines, and how many lines in a row make one: the least number that does.

    A point is the mean over its lines' images: what a line would have said, had fewer been written.
    """
    size = max(1, -(-len(lines) // most))
    counts = [
        line["samples"] - before for line, before in zip(lines, [0, *(line["samples"] for line in lines)], strict=False)
    ]
    pairs = list(zip(counts, lines, strict=True))
    return [_point(pairs[start : start + size]) for start in range(0, len(pairs), size)], size


def gap_opening(curve: Sequence[Point]) -> Point | None:
    """Return where over-fitting begins: the point of least validation loss, if the last PATIENCE all lie higher by more than
    a standard error, and the training loss is lower by now (Pandey 2020: training error small while error on new data is
    large); else None."""
    validated = [p for p in curve if p.gap is not None]  # a map's two losses are of different kinds
    if not validated:
        return None
    best = min(range(len(validated)), key=lambda i: validated[i].val_loss or 0.0)
    start, since = validated[best], validated[best + 1 :][-PATIENCE:]
    least_rise = min(((p.val_loss or 0.0) - (start.val_loss or 0.0) for p in since), default=0.0)
    opens = len(since) == PATIENCE and least_rise > _standard_error(start) and since[-1].train_loss < start.train_loss
    return start if opens else None


def _standard_error(point: Point) -> float:
    """Return about how much the validation loss owes to the choice of its images; 0 where their number isn't known.

    Over images the cross-entropy has a standard deviation of about its mean, as an exponential distribution has.
    """
    return (point.val_loss or 0.0) / math.sqrt(point.val_images) if point.val_images else 0.0


def name_gap(curve: Sequence[Point]) -> str | None:
    """Return a sentence if the gap has opened with the last point, not before; else None."""
    start = gap_opening(curve)
    if start is None or gap_opening(curve[:-1]):
        return None
    now = curve[-1]
    return (
        f"the generalisation gap opens: since epoch {start.epoch:g} the validation loss rose from {start.val_loss:.4f} to "
        f"{now.val_loss:.4f} while the training loss fell from {start.train_loss:.4f} to {now.train_loss:.4f} (over-fitting)"
    )
