import pytest
import torch
from torch.optim import lr_scheduler as torchs

from cifar_dist.config import TrainConfig
from cifar_dist.optim.schedule import Schedule

STEPS, PER_EPOCH = 120, 10


def ours(**options) -> list[float]:
    schedule = Schedule.from_config(TrainConfig(steps=STEPS, lr=0.4, **options), STEPS, PER_EPOCH)
    return [schedule.lr_at(step) for step in range(STEPS)]


def theirs(make) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler, rates = make(optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"schedule": "constant"}, lambda o: torchs.ConstantLR(o, 1.0)),
        ({"schedule": "step", "step_epochs": 3, "lr_factor": 0.5}, lambda o: torchs.StepLR(o, 30, 0.5)),
        (
            {"schedule": "multistep", "milestones": (0.25, 0.5, 0.75)},
            lambda o: torchs.MultiStepLR(o, [30, 60, 90], 0.1),
        ),
        ({"schedule": "linear"}, lambda o: torchs.LinearLR(o, 1.0, 0.0, total_iters=STEPS)),
        ({"schedule": "cosine"}, lambda o: torchs.CosineAnnealingLR(o, STEPS)),
        ({"schedule": "one_cycle", "warmup": 0.3}, lambda o: torchs.OneCycleLR(o, 0.4, STEPS, cycle_momentum=False)),
    ],
)
def test_each_schedule_equals_torchs_own(options, make):
    assert ours(**options) == pytest.approx(theirs(make), rel=1e-6, abs=1e-9)


def test_warm_up_rises_linearly_to_the_peak_and_never_trains_at_zero():
    rates = ours(schedule="cosine", warmup=0.1)
    assert rates[:12] == pytest.approx([0.4 * (i + 1) / 12 for i in range(12)])
    assert rates[12] == pytest.approx(0.4)
    assert min(rates) > 0


def test_a_linear_schedule_falls_from_the_peak_after_the_warm_up_to_one_part_in_the_last_step():
    rates = ours(schedule="linear", warmup=0.1)
    assert rates[:12] == pytest.approx([0.4 * (i + 1) / 12 for i in range(12)])
    assert rates[12:] == pytest.approx([0.4 * (108 - i) / 108 for i in range(108)])


@pytest.mark.parametrize("schedule", ["constant", "step", "multistep", "linear", "cosine", "one_cycle"])
def test_a_run_of_one_step_has_a_rate(schedule):
    for warmup in (0.0, 0.9):
        schedule_of_one = Schedule.from_config(TrainConfig(steps=1, lr=0.4, schedule=schedule, warmup=warmup), 1, 1)
        assert 0 < schedule_of_one.lr_at(0) <= 0.4
