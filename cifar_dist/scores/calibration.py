"""Whether a model is as often right as it is sure: bins of confidence, their error, and a temperature that mends it.

After Guo, Pleiss, Sun & Weinberger, *On Calibration of Modern Neural Networks* (2017). Sums are `math.fsum`'s, which are the
same in any order.
"""

import math
from dataclasses import dataclass

import numpy as np

BINS = 15  # as in the paper
WARMEST = 100.0  # a fitted temperature lies between 1 / WARMEST and WARMEST
HALVINGS = 60  # of that range, until float64 knows no better


@dataclass(frozen=True)
class Calibration:
    """Images by the probability of their first guess, in BINS bins of equal width, each with its upper edge."""

    images: list[int]
    correct: list[int]
    confidence_sums: list[float]
    nll: float  # mean negative log-likelihood, nats per image

    @classmethod
    def of(cls, logits: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> "Calibration":
        """Count `logits` (M, K) float, divided by the temperature, against `targets` (M,) int64."""
        logs = log_softmax(logits, temperature)
        guesses = logits.argmax(axis=1)
        confidence = np.exp(logs[np.arange(len(logs)), guesses])
        right = guesses == targets
        bins = (np.ceil(confidence * BINS).astype(np.int64) - 1).clip(0, BINS - 1)
        return cls(
            np.bincount(bins, minlength=BINS).tolist(),
            np.bincount(bins[right], minlength=BINS).tolist(),
            [math.fsum(confidence[bins == b]) for b in range(BINS)],
            mean_nll(logits, targets, temperature),
        )

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: the mean over images of |accuracy - confidence| of their bin."""
        gaps = (abs(right - sure) for right, sure in zip(self.correct, self.confidence_sums, strict=True))
        return math.fsum(gaps) / sum(self.images)

    def accuracy(self) -> list[float | None]:
        """Share of each bin's images that are right; None for an empty bin."""
        return [c / n if n else None for c, n in zip(self.correct, self.images, strict=True)]

    def confidence(self) -> list[float | None]:
        """Mean probability of the first guess in each bin; None for an empty bin."""
        return [s / n if n else None for s, n in zip(self.confidence_sums, self.images, strict=True)]


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the logarithms (M, K) float64 of the probabilities that logits (M, K) give at a temperature."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    logs: np.ndarray = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return logs


def mean_nll(logits: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of `targets` (M,), nats per image."""
    return -math.fsum(log_softmax(logits, temperature)[np.arange(len(targets)), targets]) / len(targets)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature by which logits (M, K) are to be divided for the least mean NLL of `targets` (M,).

    In 1 / temperature the NLL is convex, so its slope changes sign once: halve the interval that holds the place. Where there is
    none, as with logits that are never wrong, the result is an end of the range: 1 / WARMEST or WARMEST.
    """
    wide = logits.astype(np.float64)
    true = wide[np.arange(len(targets)), targets]
    low, high = -math.log(WARMEST), math.log(WARMEST)  # of log(1 / temperature)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        expected = (np.exp(log_softmax(wide, math.exp(-middle))) * wide).sum(axis=1)
        if math.fsum(expected - true) > 0:  # the slope
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)
