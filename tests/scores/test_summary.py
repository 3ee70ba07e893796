"""What an evaluation says besides its counts, against scipy's intervals."""

import numpy as np
import pytest
from scipy.stats import binomtest

from cifar_dist.scores.summary import score


def wilson(correct: int, images: int):
    interval = binomtest(correct, images).proportion_ci(0.95, "wilson")
    return pytest.approx((interval.low, interval.high), abs=1e-9)


def test_intervals_are_over_what_each_share_is_of():
    """Of 60 images of a, 40 are recognised and 20 taken for b; of 10 of b, 7 are; c is neither met nor predicted."""
    targets = np.array([0] * 60 + [1] * 10)
    guesses = np.array([0] * 40 + [1] * 20 + [1] * 7 + [0] * 3)
    logits = np.eye(3, dtype=np.float32)[guesses]
    confusion = np.array([[40, 20, 0], [3, 7, 0], [0, 0, 0]])
    found = score(confusion, (logits, targets), None, ["a", "b", "c"])
    a, b, c = found["per_class"].values()
    assert (a["precision_interval"], a["recall_interval"]) == (wilson(40, 43), wilson(40, 60))
    assert (b["precision_interval"], b["recall_interval"]) == (wilson(7, 27), wilson(7, 10))
    assert (c["precision_interval"], c["recall_interval"]) == (None, None)
    assert list(found["top"]) == ["1", "2"] and found["top"]["1"]["interval"] == wilson(47, 70)
