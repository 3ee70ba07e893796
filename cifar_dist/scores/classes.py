"""Scores of single classes and of guesses: integers first, and shares that derive from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassCounts:
    """What a confusion matrix says of each class, one against all others; (K,) int64 each."""

    true_positives: np.ndarray
    false_positives: np.ndarray  # images of other classes taken for this one
    false_negatives: np.ndarray  # images of this class taken for others

    @classmethod
    def of(cls, confusion: np.ndarray) -> "ClassCounts":
        """Count `confusion` (K, K) int64: row = true class, column = predicted class."""
        hits = confusion.diagonal().copy()
        return cls(hits, confusion.sum(axis=0) - hits, confusion.sum(axis=1) - hits)

    def precision(self) -> list[float | None]:
        """Share of each class's predictions that are right; None for a class that is never predicted."""
        return shares(self.true_positives, self.true_positives + self.false_positives)

    def recall(self) -> list[float | None]:
        """Share of each class's images that are recognised, which is its accuracy; None for a class without images."""
        return shares(self.true_positives, self.true_positives + self.false_negatives)

    def f1(self) -> list[float | None]:
        """Harmonic mean of precision and recall; None for a class that has neither images nor predictions."""
        return shares(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    def mean(self, scores: Sequence[float | None]) -> float:
        """Return the unweighted mean over the classes that have images or predictions, where a score that is None counts as 0."""
        met = self.true_positives + self.false_positives + self.false_negatives > 0
        counted = [score or 0.0 for score, there in zip(scores, met, strict=True) if there]
        return sum(counted) / len(counted)


def shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    """Return parts / wholes, both (K,) int64; None where the whole is 0."""
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]


def count_top(logits: np.ndarray, targets: np.ndarray, k: int) -> int:
    """Return how many of M images have their class among the k most probable; of equal logits the first class comes first.

    `logits` (M, K) float, `targets` (M,) int64.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return int((order == targets[:, None]).any(axis=1).sum())
