"""The interval of a mean over runs, and tests between two configurations. Pure functions; accuracies are in [0, 1]."""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

from cifar_dist.scores.intervals import LEVEL, Interval

ALPHA = 1 - LEVEL  # what a corrected p-value must stay under to be marked


def mean_interval(values: Sequence[float]) -> Interval:
    """Return Student's t interval for the mean of 2 or more values, one a seed."""
    if min(values) == max(values):  # as it happens with few images; scipy would say nan
        return Interval(values[0], values[0], "t")
    low, high = stats.t.interval(LEVEL, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return Interval(float(low), float(high), "t")


def welch(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Welch's p-value (C,) for runs (N, C) against runs (M, C), N and M of 2 or more; nan without any spread."""
    return _t_test(a, b, equal_spread=False)


def one_against_several(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Student's p-value (C,) for runs (N, C) against (M, C), one of them a single run: as spread out as the others."""
    return _t_test(a, b, equal_spread=True)


def _t_test(a: np.ndarray, b: np.ndarray, equal_spread: bool) -> np.ndarray:
    spread = (np.ptp(a, axis=0) > 0) | (np.ptp(b, axis=0) > 0)
    p = np.full(a.shape[1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runs that agree exactly in a class, as few images can
        p[spread] = stats.ttest_ind(a[:, spread], b[:, spread], equal_var=equal_spread, axis=0).pvalue
    return p


def mcnemar(only_a: np.ndarray, only_b: np.ndarray) -> np.ndarray:
    """Return the exact two-sided p-value (C,) for the images (C,) that only a, or only b, recognised (McNemar 1947)."""
    fewer, discordant = np.minimum(only_a, only_b), only_a + only_b
    return np.minimum(1.0, 2 * stats.binom.cdf(fewer, discordant, 0.5))


def two_proportions(
    correct_a: np.ndarray, images_a: np.ndarray, correct_b: np.ndarray, images_b: np.ndarray
) -> np.ndarray:
    """Return the two-sided p-value (C,) of the pooled z test for two shares of unpaired images; nan where both are 0 or 1."""
    pooled = (correct_a + correct_b) / (images_a + images_b)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(pooled * (1 - pooled) * (1 / images_a + 1 / images_b))
        z = np.where(error > 0, (correct_a / images_a - correct_b / images_b) / error, np.nan)
    return 2 * stats.norm.sf(np.abs(z))


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values (C,) corrected for being a family of tests (Holm 1979); nan stays and doesn't count."""
    corrected = np.full_like(p, np.nan)
    (tested,) = np.nonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return corrected
