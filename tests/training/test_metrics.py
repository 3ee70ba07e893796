import json

import pytest
import torch
import torch.nn.functional as F

from cifar_dist.inputs.labels import Labels
from cifar_dist.training.metrics import EvalResult, TrainSums

LOGITS = torch.randn(57, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(57) % 3  # class 3 has no image


def test_counts_and_losses_equal_those_taken_image_by_image():
    result = EvalResult.of(LOGITS, TARGETS)
    predicted = LOGITS.argmax(dim=1).tolist()
    for true in range(4):
        for guess in range(4):
            pairs = sum(t == true and p == guess for t, p in zip(TARGETS.tolist(), predicted, strict=True))
            assert result.confusion[true, guess] == pairs
    guesses = LOGITS.argsort(dim=1, descending=True)[:, 1].tolist()
    second = [sum(t == g == true for t, g in zip(TARGETS.tolist(), guesses, strict=True)) for true in range(4)]
    assert result.second.tolist() == second
    top2 = [t in row for t, row in zip(TARGETS.tolist(), LOGITS.topk(2).indices.tolist(), strict=True)]
    assert result.top2_accuracy == sum(top2) / 57
    assert result.num_images == 57
    assert result.loss == pytest.approx(F.cross_entropy(LOGITS.double(), TARGETS).item(), rel=1e-12)
    assert result.accuracy == sum(t == p for t, p in zip(TARGETS.tolist(), predicted, strict=True)) / 57


def test_a_result_is_rebuilt_from_its_record():
    result = EvalResult(torch.tensor([[3, 1], [0, 2]]), torch.tensor([1, 0]), 2.0)
    again = EvalResult.from_record(json.loads(json.dumps(result.counted(("cat", "dog")))))
    assert (again.accuracy, again.top2_accuracy, again.loss) == (5 / 6, 1.0, result.loss)


def test_of_equal_logits_the_first_class_is_the_first_guess_and_the_next_the_second():
    result = EvalResult.of(torch.zeros(3, 3), torch.arange(3))
    assert result.confusion[:, 0].tolist() == [1, 1, 1]
    assert result.second.tolist() == [0, 1, 0]


def test_the_second_guess_is_another_class_whatever_the_logits_are():
    result = EvalResult.of(torch.tensor([[0.0, -torch.inf, -torch.inf]]), torch.tensor([0]))
    assert (result.accuracy, result.top2_accuracy) == (1.0, 1.0)


def test_a_class_without_images_has_no_accuracy():
    result = EvalResult(torch.tensor([[3, 1], [0, 0]]), torch.tensor([1, 0]), 2.0)
    assert result.per_class_accuracy() == [0.75, None]
    assert result.to_dict(("cat", "dog"))["per_class_accuracy"] == {"cat": 0.75, "dog": None}


def test_train_sums_add_up_over_batches_of_any_size_however_often_somebody_looks():
    often, once = TrainSums(torch.device("cpu")), TrainSums(torch.device("cpu"))
    for piece in (slice(0, 10), slice(10, 10), slice(10, 57)):
        loss_sum = F.cross_entropy(LOGITS[piece], TARGETS[piece], reduction="sum")
        for sums in (often, once):
            sums.add(loss_sum, LOGITS[piece], Labels(TARGETS[piece]))
        assert often.vector.isfinite().all()
    assert torch.equal(often.vector, once.vector)
    loss_sum, correct = once.vector.tolist()
    assert correct == (LOGITS.argmax(1) == TARGETS).sum()
    assert loss_sum == pytest.approx(F.cross_entropy(LOGITS, TARGETS, reduction="sum").item(), rel=1e-5)


def test_a_model_that_predicts_nothing_has_no_correct_predictions():
    sums = TrainSums(torch.device("cpu"))
    sums.add(torch.tensor(2.0), None, Labels(TARGETS))
    assert sums.vector[0] == 2 and sums.vector[1].isnan()
