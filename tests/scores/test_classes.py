import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from cifar_dist.scores.classes import ClassCounts, count_top

ORACLES = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}


def drawn(seed: int, images: int = 200, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets; of the last class there are neither images nor predictions, of the one before no predictions."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes - 1, images)
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), targets] += 0.8
    logits[:, -2:] = -50, -51
    return logits, targets


def confusion_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    confusion = np.zeros((logits.shape[1],) * 2, dtype=np.int64)
    np.add.at(confusion, (targets, logits.argmax(axis=1)), 1)
    return confusion


@pytest.mark.parametrize("name", ORACLES)
def test_scores_and_their_means_are_those_of_torchmetrics(name):
    for seed in range(64):
        logits, targets = drawn(seed)
        counts = ClassCounts.of(confusion_of(logits, targets))
        scores = getattr(counts, name)()
        both = torch.tensor(logits), torch.tensor(targets)
        each = ORACLES[name](*both, num_classes=6, average=None)
        assert [score or 0.0 for score in scores] == pytest.approx(each.tolist(), abs=1e-6)
        mean = ORACLES[name](*both, num_classes=6, average="macro")
        assert counts.mean(scores) == pytest.approx(mean.item(), abs=1e-6)


def test_what_has_no_images_or_predictions_has_no_score():
    counts = ClassCounts.of(np.array([[3, 1, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]))
    assert counts.false_positives.tolist() == [1, 2, 0, 0]
    assert counts.false_negatives.tolist() == [1, 0, 2, 0]
    assert counts.precision() == [3 / 4, 2 / 4, None, None]
    assert counts.recall() == [3 / 4, 1.0, 0.0, None]
    assert counts.f1() == [6 / 8, 4 / 6, 0.0, None]
    assert counts.mean(counts.precision()) == (3 / 4 + 2 / 4 + 0) / 3


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_that_of_torchmetrics(k):
    for seed in range(64):
        logits, targets = drawn(seed)
        both = torch.tensor(logits), torch.tensor(targets)
        share = multiclass_accuracy(*both, num_classes=6, average="micro", top_k=k)
        assert count_top(logits, targets, k) == round(share.item() * len(targets))


def test_of_equal_logits_the_first_classes_are_the_first_guesses():
    assert [count_top(np.zeros((3, 3)), np.arange(3), k) for k in (1, 2, 3)] == [1, 2, 3]
