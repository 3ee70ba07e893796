import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_dist.scores.calibration import BINS, Calibration, fit_temperature, mean_nll


def drawn(seed: int, images: int = 300, classes: int = 7, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right about half the time, and surer of it the greater the sharpness."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), targets] += 1
    return (sharpness * logits).astype(np.float32), targets


def test_the_error_is_that_of_torchmetrics():
    for seed in range(64):
        logits, targets = drawn(seed)
        probabilities = torch.tensor(logits).double().softmax(dim=1)
        expected = multiclass_calibration_error(probabilities, torch.tensor(targets), 7, n_bins=BINS, norm="l1")
        assert Calibration.of(logits, targets).ece == pytest.approx(expected.item(), abs=1e-6)


def test_bins_are_those_of_a_loop_over_images():
    logits, targets = drawn(0)
    found = Calibration.of(logits, targets, temperature=2.0)
    for b in range(BINS):
        inside = []
        for row, target in zip(np.exp(log_softmax(logits.astype(float) / 2, axis=1)), targets, strict=True):
            if b / BINS < row.max() <= (b + 1) / BINS:
                inside.append((row.max(), row.argmax() == target))
        assert (found.images[b], found.correct[b]) == (len(inside), sum(right for _, right in inside))
        assert found.confidence_sums[b] == pytest.approx(sum(sure for sure, _ in inside))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last():
    logits = np.log(np.array([[0.5, 0.5, 1e-300], [1.0, 1e-300, 1e-300]]))
    logits[0] = [0, 0, -800]
    found = Calibration.of(logits, np.array([0, 1]))
    assert found.images[7] == 1  # 0.5 lies within (7/15, 8/15]
    assert (found.images[-1], found.correct[-1]) == (1, 0)
    third = Calibration.of(np.zeros((1, 3)), np.array([0]))
    assert third.images[4] == 1  # 1/3 is the upper edge of the fifth


def test_sums_do_not_depend_on_the_order_of_the_images():
    logits, targets = drawn(1)
    order = np.random.default_rng(2).permutation(len(targets))
    assert Calibration.of(logits[order], targets[order]) == Calibration.of(logits, targets)


def test_the_nll_is_that_of_torch():
    logits, targets = drawn(2)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits).double() / 1.7, torch.tensor(targets))
    assert mean_nll(logits, targets, 1.7) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 8.0])
def test_the_temperature_is_the_one_that_scipy_finds(sharpness):
    logits, targets = drawn(3, sharpness=sharpness)

    def nll(log_t: float) -> float:
        return -log_softmax(logits.astype(float) / math.exp(log_t), axis=1)[np.arange(len(targets)), targets].mean()

    best = minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(math.exp(best.x), rel=1e-5)
    assert mean_nll(logits, targets, temperature) <= best.fun + 1e-12


def test_logits_that_are_never_wrong_have_the_coldest_temperature_and_useless_ones_the_warmest():
    logits = 5 * np.eye(4)
    assert fit_temperature(logits, np.arange(4)) == pytest.approx(0.01)
    assert fit_temperature(-logits, np.arange(4)) == pytest.approx(100)
