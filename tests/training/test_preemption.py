import os
import signal
import time

import pytest
import torch

from cifar_dist.training import preemption
from cifar_dist.training.preemption import Ballot, StopSignals

FINE = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_every_stop_signal_becomes_a_decision(number):
    signals = StopSignals()
    signals.defer_interrupt()
    ballot = Ballot(signals, 1000, start_step=0)
    assert ballot.vote(1, FINE) == (None, False, False)
    os.kill(os.getpid(), number)
    assert ballot.vote(2, FINE).stop == number


def test_a_closed_terminal_is_ignored_where_it_was_before_as_nohup_has_it():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals()
    signal.raise_signal(signal.SIGHUP)
    assert signals.received is None


def test_a_signal_that_launchers_repeat_hurries_nobody():
    signals = StopSignals()
    signals.defer_interrupt()
    for number, times in ((signal.SIGUSR1, 0), (signal.SIGUSR2, 0), (signal.SIGTERM, 1), (signal.SIGINT, 2)):
        signal.raise_signal(number)
        assert signals.hurried == times
    assert signals.received == signal.SIGUSR1


def test_ctrl_c_ends_a_run_that_has_not_begun_training():
    StopSignals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_loss_is_noticed(value):
    assert Ballot(StopSignals(), 1000, 0).vote(1, FINE + value).diverged


def test_a_checkpoint_comes_due_with_time():
    ballot = Ballot(StopSignals(), 0.05, 0)
    assert not ballot.vote(1, FINE).checkpoint
    time.sleep(0.06)
    assert ballot.vote(2, FINE).checkpoint
    ballot.checkpoint_saved()
    assert not ballot.vote(3, FINE).checkpoint


def test_votes_come_about_twice_a_second_at_any_speed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock[0])
    for step_s, expected in ((0.001, 500), (0.1, 5), (3.0, 1), (0.0, 1000)):
        ballot = Ballot(StopSignals(), 1000, 0)
        assert ballot.due(1)
        clock[0] += step_s
        ballot.vote(1, FINE)
        assert ballot.next_step == 1 + expected
