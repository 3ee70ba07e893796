import pytest
import torch
import torch.nn.functional as F

from cifar_dist.inputs.labels import Labels, count_correct, join_labels
from cifar_dist.models.losses import cross_entropy_sum
from cifar_dist.models.som import Som

LOGITS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
TARGETS, OTHERS = torch.arange(40) % 5, torch.arange(40) // 8
SHARE = torch.rand(40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_summed_over_images(smoothing):
    loss_sum = cross_entropy_sum(LOGITS, Labels(TARGETS), smoothing)
    torch.testing.assert_close(loss_sum / 40, F.cross_entropy(LOGITS, TARGETS, label_smoothing=smoothing))
    assert count_correct(LOGITS, Labels(TARGETS)) == (LOGITS.argmax(1) == TARGETS).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_are_torchs_loss_with_class_probabilities(smoothing):
    probabilities = F.one_hot(TARGETS, 5) * SHARE.unsqueeze(1) + F.one_hot(OTHERS, 5) * (1 - SHARE).unsqueeze(1)
    labels = Labels(TARGETS, OTHERS, SHARE)
    loss_sum = cross_entropy_sum(LOGITS, labels, smoothing)
    torch.testing.assert_close(loss_sum / 40, F.cross_entropy(LOGITS, probabilities, label_smoothing=smoothing))
    expected = probabilities.double()[torch.arange(40), LOGITS.argmax(1)].sum()
    torch.testing.assert_close(count_correct(LOGITS, labels), expected)


@pytest.mark.parametrize("mixed", [False, True])
def test_correct_predictions_are_exact_for_any_cut_of_a_batch(mixed):
    shares = torch.randint(2**24, (40,), generator=torch.Generator().manual_seed(2)) * 2.0**-24  # as they are drawn
    whole = Labels(TARGETS, OTHERS, shares) if mixed else Labels(TARGETS)
    for cut in range(41):
        pieces = [Labels(*(v if v is None else v[part] for v in whole)) for part in (slice(cut), slice(cut, 40))]
        assert count_correct(LOGITS, join_labels(pieces)) == count_correct(LOGITS, whole)
        counts = [count_correct(LOGITS[:cut], pieces[0]), count_correct(LOGITS[cut:], pieces[1])]
        assert sum(counts) == count_correct(LOGITS, whole)


def test_no_images_have_no_loss():
    empty = Labels(TARGETS[:0], OTHERS[:0], SHARE[:0])
    for labels in (empty, Labels(TARGETS[:0])):
        assert cross_entropy_sum(LOGITS[:0], labels, 0.1) == 0
        assert count_correct(LOGITS[:0], labels) == 0


def test_a_maps_loss_is_its_own():
    model = Som(5, 2, 3, 1.0, 0.5)
    distances = model(torch.randn(40, 3, 32, 32))
    (progress, sigma), winners = (0.25, 0.5**0.25), distances.argmin(dim=1)
    squares = [[(a // 3 - b // 3) ** 2 + (a % 3 - b % 3) ** 2 for b in range(6)] for a in range(6)]
    pull = torch.exp(-torch.tensor(squares)[winners] / (2 * sigma**2))
    expected = 0.5 * (pull * distances).sum()
    torch.testing.assert_close(model.loss_sum(distances, Labels(TARGETS), 0.0, progress), expected)
