"""Everything an evaluation says besides its counts, as JSON takes it, made from the logits of a split."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from cifar_dist.scores.calibration import Calibration, fit_temperature
from cifar_dist.scores.classes import ClassCounts, count_top
from cifar_dist.scores.intervals import wilson_interval

GUESSES = (1, 2, 5)  # as far as there are so many classes
Ends = tuple[float, float]  # of a 95 % interval


class ClassScores(TypedDict):
    """A class against all others. What can't be told, for want of images or predictions, is None."""

    images: int
    true_positives: int
    false_positives: int
    false_negatives: int
    precision: float | None
    recall: float | None  # the class's accuracy
    f1: float | None
    precision_interval: Ends | None
    recall_interval: Ends | None


class TopScore(TypedDict):
    """Images whose class is among the k most probable."""

    correct: int
    accuracy: float
    interval: Ends


class CalibrationRecord(TypedDict):
    """Bins of confidence, the lowest first; means are None in empty ones."""

    ece: float  # in [0, 1]
    nll: float  # nats per image
    bin_images: list[int]
    bin_correct: list[int]
    bin_confidence: list[float | None]
    bin_accuracy: list[float | None]


class Temperature(TypedDict):
    """What logits are divided by, fitted on validation images, and what that gives on the images evaluated."""

    value: float
    fitted_on_images: int
    validation_nll_before: float
    validation_nll_after: float
    after: CalibrationRecord


class Scores(TypedDict):
    """What `score` returns."""

    top: dict[str, TopScore]  # by k
    per_class: dict[str, ClassScores]
    mean_over_classes: dict[str, float]  # precision, recall and f1
    calibration: CalibrationRecord
    temperature: Temperature | None


Logits = tuple[np.ndarray, np.ndarray]  # logits (M, K) float32, targets (M,) int64


def score(confusion: np.ndarray, images: Logits, validation: Logits | None, classes: Sequence[str]) -> Scores:
    """Score a split by its counts (K, K) and logits; where there is a `validation` split a temperature is fitted on that."""
    logits, targets = images
    counts = ClassCounts.of(confusion)
    scores = {"precision": counts.precision(), "recall": counts.recall(), "f1": counts.f1()}
    return {
        "top": {str(k): _top(count_top(logits, targets, k), len(targets)) for k in GUESSES if k <= len(classes)},
        "per_class": {name: _class(counts, scores, c) for c, name in enumerate(classes)},
        "mean_over_classes": {name: counts.mean(values) for name, values in scores.items()},
        "calibration": _calibration(Calibration.of(logits, targets)),
        "temperature": None if validation is None else _temperature(images, validation),
    }


def _top(correct: int, images: int) -> TopScore:
    return {"correct": correct, "accuracy": correct / images, "interval": _ends(correct / images, images)}


def _class(counts: ClassCounts, scores: dict[str, list[float | None]], c: int) -> ClassScores:
    hits, false, missed = (int(of[c]) for of in (counts.true_positives, counts.false_positives, counts.false_negatives))
    precision, recall = scores["precision"][c], scores["recall"][c]
    return {
        "images": hits + missed,
        "true_positives": hits,
        "false_positives": false,
        "false_negatives": missed,
        "precision": precision,
        "recall": recall,
        "f1": scores["f1"][c],
        "precision_interval": None if precision is None else _ends(precision, hits + false),
        "recall_interval": None if recall is None else _ends(recall, hits + missed),
    }


def _calibration(found: Calibration) -> CalibrationRecord:
    return {
        "ece": found.ece,
        "nll": found.nll,
        "bin_images": found.images,
        "bin_correct": found.correct,
        "bin_confidence": found.confidence(),
        "bin_accuracy": found.accuracy(),
    }


def _temperature(images: Logits, validation: Logits) -> Temperature:
    value = fit_temperature(*validation)
    return {
        "value": value,
        "fitted_on_images": len(validation[1]),
        "validation_nll_before": Calibration.of(*validation).nll,
        "validation_nll_after": Calibration.of(*validation, value).nll,
        "after": _calibration(Calibration.of(*images, value)),
    }


def _ends(share: float, images: int) -> Ends:
    interval = wilson_interval(share, images)
    return interval.low, interval.high
