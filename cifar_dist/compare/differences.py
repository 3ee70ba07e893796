"""How much more accurate one group is than another, in all and in each class, and whether that may be chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from cifar_dist.compare.configuration import DATA
from cifar_dist.compare.groups import Comparison, Group
from cifar_dist.compare.runs import ComparedResult, ComparedRun
from cifar_dist.compare.statistics import ALPHA, holm, mcnemar, one_against_several, two_proportions, welch
from cifar_dist.record.predictions import read_predictions

ALL = "all"  # stands before the classes: over all images


class Test(NamedTuple):
    """A test of significance, and what it takes a sample of: other runs of the two configurations, or other images."""

    name: str
    over: Literal["runs", "images"]


WELCH = Test("Welch's t", "runs")
ONE_AGAINST_SEVERAL = Test("Student's t, one against several", "runs")
MCNEMAR = Test("exact McNemar, paired", "images")
PROPORTIONS = Test("two proportions, unpaired", "images")
MEANING = {
    "runs": "p over runs: whether the configurations differ by more than seeds of the same one do.",
    "images": "p over images: whether two single networks differ by more than the choice of images explains. "
    "Of other seeds it says nothing: that takes several runs of each.",
}


class Cell(NamedTuple):
    """One difference in accuracy, and its p-value, corrected for the others of its row; None where it can't be known."""

    delta: float | None
    p: float | None

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < ALPHA


@dataclass(frozen=True)
class Difference:
    """A group's accuracies minus the baseline's, in [-1, 1]: over all images, then by class."""

    test: Test
    cells: dict[str, Cell]


class Outcome(NamedTuple):
    """Which images of a split a run recognised."""

    targets: np.ndarray  # (M,) int64
    correct: np.ndarray  # (M,) bool


def differences(comparison: Comparison) -> list[Difference | None]:
    """Return each group's difference to the baseline; None for the baseline, for other data, and where no run counts."""
    baseline, split = comparison.baseline, comparison.metric.split
    if baseline is None or not _accuracies(baseline.counted, split).shape[1]:
        return [None] * len(comparison.groups)
    paired = _outcome(baseline.counted[0], split) if len(baseline.counted) == 1 else None
    return [
        _difference(group, baseline, split, paired) if _comparable(group, baseline) else None
        for group in comparison.groups
    ]


def meanings(found: Sequence[Difference | None]) -> list[str]:
    """Return what the p-values of these differences are over, in words: a sentence for each kind there is."""
    over = {difference.test.over for difference in found if difference and difference.cells[ALL].p is not None}
    return [text for kind, text in MEANING.items() if kind in over]


def _comparable(group: Group, baseline: Group) -> bool:
    return group is not baseline and bool(group.counted) and group.options[DATA] == baseline.options[DATA]


def _difference(group: Group, baseline: Group, split: str, paired: Outcome | None) -> Difference:
    ours, theirs = _accuracies(group.counted, split), _accuracies(baseline.counted, split)
    deltas = ours.mean(axis=0) - theirs.mean(axis=0)
    if min(len(ours), len(theirs)) > 1:
        test, p = WELCH, welch(ours, theirs)
    elif max(len(ours), len(theirs)) > 1:
        test, p = ONE_AGAINST_SEVERAL, one_against_several(ours, theirs)
    else:
        test, p = _of_single_runs(group.counted[0], baseline.counted[0], split, paired)
    p = holm(np.where(np.isnan(deltas), np.nan, p))
    names = [ALL, *baseline.counted[0].results[split]["per_class_accuracy"]]
    cells = zip(names, deltas.tolist(), p.tolist(), strict=True)
    return Difference(test, {name: Cell(_or_none(delta), _or_none(value)) for name, delta, value in cells})


def _of_single_runs(
    ours: ComparedRun, theirs: ComparedRun, split: str, paired: Outcome | None
) -> tuple[Test, np.ndarray]:
    """Return which test it is, and its p-values (1 + C,); `paired` is what `theirs` recognised, image by image."""
    outcome = _outcome(ours, split) if paired else None
    if paired and outcome and np.array_equal(paired.targets, outcome.targets):
        only_ours = outcome.targets[outcome.correct & ~paired.correct]
        only_theirs = outcome.targets[paired.correct & ~outcome.correct]
        num_classes = len(ours.results[split]["per_class_accuracy"])
        return MCNEMAR, mcnemar(_by_class(only_ours, num_classes), _by_class(only_theirs, num_classes))
    images, their_images = (_num_images(run.results[split]) for run in (ours, theirs))
    correct, their_correct = (_accuracies([run], split)[0] for run in (ours, theirs))
    return PROPORTIONS, two_proportions(correct * images, images, their_correct * their_images, their_images)


def _accuracies(runs: Sequence[ComparedRun], split: str) -> np.ndarray:
    """Return the accuracy (N, 1 + C) of each run over all images and in each class; nan for a class without images."""
    rows = [
        [r["accuracy"], *(r.get("per_class_accuracy") or {}).values()] for r in (run.results[split] for run in runs)
    ]
    return np.array(rows, dtype=np.float64)


def _by_class(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how many images (1 + C,) there are in all, and of each class."""
    return np.array([len(targets), *np.bincount(targets, minlength=num_classes)])


def _outcome(run: ComparedRun, split: str) -> Outcome | None:
    """Return what the weights the run kept recognise, from its predictions; None where it has none of them."""
    predictions = read_predictions(run.record.path, (split,))
    if predictions is None or predictions.step != run.record.summary.get("best_step"):
        return None
    return Outcome(predictions.targets, predictions.logits.argmax(axis=1) == predictions.targets)


def _num_images(result: ComparedResult) -> np.ndarray:
    """Return how many images (1 + C,) a result is over, in all and of each class; nan for classes where it isn't known."""
    total, classes = result.get("num_images") or np.nan, result["per_class_accuracy"]
    if counts := result.get("images_per_class"):
        return np.array([total, *counts], dtype=np.float64)
    shares = [share for share in classes.values() if share is not None]
    balanced = len(shares) == len(classes) and abs(sum(shares) / len(shares) - result["accuracy"]) < 1e-9
    return np.array([total, *[total / len(classes) if balanced else np.nan] * len(classes)])


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
