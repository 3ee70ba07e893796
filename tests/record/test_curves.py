import pytest

from cifar_dist.record.curves import PATIENCE, Point, gap_opening, name_gap, points


def train(step, samples, loss, accuracy):
    return {"kind": "train", "step": step, "epoch": step / 10, "samples": samples, "loss": loss, "accuracy": accuracy}


def val(step, loss, accuracy):
    where = {"kind": "val", "step": step, "epoch": step / 10, "samples": 0}
    return {**where, "loss": loss, "accuracy": accuracy, "num_images": 50}


def test_a_point_is_the_mean_over_images_since_the_last_validation():
    lines = [
        train(6, 60, 2.0, 0.2),
        train(10, 90, 1.0, 0.5),
        val(10, 1.5, 0.4),
        train(20, 180, 0.5, 0.9),
        val(20, 1.0, 0.6),
    ]
    first, second = points(
        [*lines, {"kind": "test", "step": 20, "epoch": 2.0, "loss": 1.0, "accuracy": 0.5, "samples": 180}]
    )
    assert (first.epoch, first.step, first.val_loss, first.val_accuracy) == (1.0, 10, 1.5, 0.4)
    assert first.train_loss == pytest.approx((60 * 2.0 + 30 * 1.0) / 90)
    assert first.train_accuracy == pytest.approx((60 * 0.2 + 30 * 0.5) / 90)
    assert second == Point(2.0, 20, 0.5, 0.9, 1.0, 0.6, 50)
    assert second.gap == pytest.approx(0.3)


def test_without_validation_there_is_a_point_for_every_epoch():
    lines = [train(5, 50, 2.0, 0.2), train(10, 100, 1.0, 0.4), train(15, 150, 0.8, 0.5), train(20, 200, 0.6, 0.7)]
    assert [(p.epoch, p.train_loss, p.val_loss) for p in points(lines)] == [(1.0, 1.5, None), (2.0, 0.7, None)]
    assert points([]) == []
    early = points([train(2, 20, 2.2, 0.1), train(5, 50, 2.0, 0.2)])  # before the first epoch's end
    assert [(p.epoch, p.train_loss) for p in early] == [(0.2, 2.2), (0.5, 2.0)]
    assert gap_opening(points(lines)) is None


def curve(val_losses, train_losses=None, accuracy=0.9, images=None):
    train_losses = train_losses or [1 / (i + 1) for i in range(len(val_losses))]
    return [
        Point(i + 1.0, i + 1, t, accuracy, v, 0.5, images)
        for i, (t, v) in enumerate(zip(train_losses, val_losses, strict=True))
    ]


def test_the_gap_opens_at_the_least_validation_loss_once_enough_in_a_row_are_worse():
    losses = [2.0, 1.5, 1.2, 1.3, 1.25, 1.4, 1.5]
    opened = [gap_opening(curve(losses[:n])) for n in range(1, 8)]
    assert [p.epoch if p else None for p in opened] == [None, None, None, None, None, 3.0, 3.0]
    assert PATIENCE == 3


def test_it_is_named_once_with_the_values():
    losses = [2.0, 1.5, 1.2, 1.3, 1.25, 1.4, 1.5]
    named = [name_gap(curve(losses[:n])) for n in range(1, 8)]
    assert [n for n, text in enumerate(named, start=1) if text] == [6]
    assert (
        "since epoch 3 the validation loss rose from 1.2000 to 1.4000 while the training loss fell from 0.3333 to 0.1667"
        in named[5]
    )


@pytest.mark.parametrize(
    ("images", "rises", "opens"),
    [
        (5000, (0.0034, 0.0042, 0.0019), False),  # of a run whose accuracy still rose: chance
        (5000, (0.0255, 0.0255, 0.0255), True),  # the standard error is 1.8 / sqrt(5000) = 0.02546
        (5000, (0.0254, 0.0254, 0.0254), False),
        (5000, (0.4, 0.01, 0.4), False),  # one of them may be as low as the best
        (50_000, (0.0254, 0.0254, 0.0254), True),
        (None, (0.0034, 0.0042, 0.0019), True),
    ],
)
def test_a_rise_within_what_the_choice_of_images_makes_is_none(images, rises, opens):
    assert bool(gap_opening(curve([2.0, 1.8, *(1.8 + rise for rise in rises)], images=images))) == opens


def test_worse_validation_with_worse_training_is_no_gap():
    assert gap_opening(curve([2.0, 1.0, 1.5, 1.6, 1.7], [1.0, 0.5, 0.8, 0.8, 0.8])) is None


def test_a_map_has_no_gap_because_its_losses_are_of_two_kinds():
    assert gap_opening(curve([2.0, 1.0, 1.5, 1.6, 1.7], accuracy=None)) is None
