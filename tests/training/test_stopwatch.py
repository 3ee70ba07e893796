"""What counts as training time, by a clock that goes on only when it is told to."""

from types import SimpleNamespace

import pytest

from cifar_dist.training import stopwatch
from cifar_dist.training.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_pauses_count_for_the_record_and_not_for_the_speed(clock):
    watch = Stopwatch()
    watch.start(samples=500)
    clock.now += 2
    with watch.paused():
        clock.now += 3
    with watch.paused():
        clock.now += 4
    clock.now += 1
    assert watch.elapsed_since_last_read() == 10
    assert watch.lap(samples=800) == 300 / 3
    clock.now += 5
    assert watch.lap(samples=900) == 100 / 5  # the pauses before belong to the lap before
    assert watch.elapsed_since_last_read() == 5
