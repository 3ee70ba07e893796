"""The logits that a run kept of its last validation and of its test."""

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cifar_dist.record.folder import predictions_file

PREDICTION_ARRAYS = ("targets", "logits", "sample_places", "sample_pixels")


@dataclass(frozen=True)
class Predictions:
    """The logits of every image of a split, after some step, in the order of the split; and a few of the images."""

    split: str  # val or test
    step: int
    targets: np.ndarray  # (M,) int64
    logits: np.ndarray  # (M, K) float32
    sample_places: np.ndarray  # (S,) int64: which images are kept, evenly spaced
    sample_pixels: np.ndarray  # (S, H, W, 3) uint8

    @cached_property
    def order(self) -> np.ndarray:
        """Return the classes (M, K) int64 of each image, most probable first; of equal ones the first class first."""
        return np.argsort(-self.logits, axis=1, kind="stable")

    @property
    def first(self) -> np.ndarray:
        return self.order[:, 0]

    @property
    def second(self) -> np.ndarray:
        return self.order[:, 1]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Return the softmax (M, K) float64."""
        shifted = np.exp(self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Return the probability (M,) float64 of each image's first guess."""
        return self.probabilities.max(axis=1)


def read_predictions(path: Path, splits: Iterable[str] = ("test", "val")) -> Predictions | None:
    """Return the run's predictions for the first of these splits it has any for; None where it has none that can be read."""
    for split in splits:
        try:
            with np.load(path / predictions_file(split)) as file:
                return Predictions(split, int(file["step"]), *(file[name] for name in PREDICTION_ARRAYS))
        except (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error):
            continue
    return None
