import pytest
from helpers.runs import stop_after

from cifar_dist.config import TrainConfig
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models import forward_macs
from cifar_dist.training import step
from cifar_dist.training.compute import macs_per_sample

SMALL, LARGE = 61_621_024, 118_147_360  # of speednet for 24 x 24 and 32 x 32 pixels, by hand: 12 x 24 x 23 x 23 + ...


def compute(**length: int) -> int:
    config = TrainConfig(model="speednet", early_size=24, batch_size=10, **length)
    return macs_per_sample(config, BatchPlan.from_config(config, 45, 1), 10)  # epochs of 5 steps


@pytest.mark.parametrize(
    ("length", "small", "large"),  # images of each size
    [
        ({"epochs": 8}, 4 * 45, 4 * 45),
        ({"epochs": 3}, 45, 2 * 45),  # the first of three epochs, not half of the steps
        ({"epochs": 1}, 0, 45),
        ({"steps": 12}, 45, 65),  # two epochs and two steps: the first of three
    ],
)
def test_early_images_are_smaller_for_as_long_as_the_loop_makes_them_so(length, small, large):
    expected = 3 * (small * SMALL + large * LARGE) / (small + large)
    assert compute(**length) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_longer_copy_counts_the_sizes_that_were_trained_on(train, monkeypatch, at_once):
    """By the sizes that the model really is given, over three runs of one another: 4, 6 and 9 epochs of 7 steps."""
    seen = []
    count_passes = step.count_passes

    def counted(trainer, number, batches):
        batches = list(batches)
        seen.extend((batch.images.shape[-1], len(batch.images)) for batch in batches)
        count_passes(trainer, number, batches)

    monkeypatch.setattr(step, "count_passes", counted)
    options = ("--model", "resnet20", "--early-size", "24", "--schedule", "constant")
    last = train(*options, "--epochs", "4", name="first")
    for epochs, start in (("6", None), ("9", "0")):
        more = (
            *options,
            "--resume",
            str(last.folder),
            "--epochs",
            epochs,
            *(("--schedule-start", start) if start else ()),
        )
        if not at_once:
            with monkeypatch.context() as patch:
                stop_after(patch, 7 * int(epochs) - 3)
                train(*more, name=epochs)
            more = (*options, "--epochs", epochs)
        last = train(*more, name=epochs)
        sizes = {side: sum(count for one, count in seen if one == side) for side in (24, 32)}
        by_hand = 3 * sum(count * forward_macs("resnet20", (), 4, side) for side, count in sizes.items())
        summary = last.json("summary.json")
        assert summary["macs_per_sample"] == pytest.approx(by_hand / sum(sizes.values()), abs=3)
    assert sizes[24] > 0


def test_without_them_compute_is_three_times_the_forward_pass():
    config = TrainConfig(model="lenet", epochs=2)
    assert macs_per_sample(config, BatchPlan.from_config(config, 200, 1), 2) == 3 * forward_macs("lenet", (), 2)


def test_a_run_writes_how_large_it_is_before_it_trains_and_at_its_end(train, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        stopped = train()
    expected = {"total_steps": 21, "macs_per_sample": 3 * forward_macs("lenet", (), 4)}
    assert expected.items() <= stopped.json("summary.json").items()
    (stopped.folder / "summary.json").unlink()
    monkeypatch.setattr("cifar_dist.training.run.train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("cifar_dist.training.run.summarise", lambda *_, **__: None)
    train()
    assert stopped.json("summary.json") == {"status": "running", **expected}
