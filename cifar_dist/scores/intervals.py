"""The interval of one run's accuracy. Without scipy, which takes a second to import: training writes pages too."""

from math import sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


class Interval(NamedTuple):
    """An interval that holds the true value in `LEVEL` of all experiments."""

    low: float
    high: float
    method: Literal["t", "wilson"]


def wilson_interval(accuracy: float, num_images: int) -> Interval:
    """Return Wilson's interval (1927) for the accuracy of one run: the chance of other images, not of other seeds."""
    spread = Z**2 / num_images
    middle = (accuracy + spread / 2) / (1 + spread)
    half = Z * sqrt(accuracy * (1 - accuracy) / num_images + spread / (4 * num_images)) / (1 + spread)
    return Interval(max(0.0, middle - half), min(1.0, middle + half), "wilson")
