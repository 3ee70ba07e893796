"""Signals, time limits and broken losses: what one rank notices, all ranks act on at the same step."""

import math
import os
import signal
import sys
import time
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from cifar_dist.runtime.collectives import is_speaker, max_across_ranks
from cifar_dist.runtime.launch import one_machine
from cifar_dist.text import seconds_of

ENDING_S = 5.0  # that --max-time leaves for the end of a process
VOTE_EVERY_S = 0.5  # about how long a signal waits for the next vote, at any speed of training


class StopSignals:
    """Turns the signals that ask for a stop into a flag; the run goes on until the next vote.

    Ctrl-C still ends a run at once until `defer_interrupt`: before training there is nothing to save.
    """

    def __init__(self, began: float | None = None) -> None:
        """`began`: when what --max-time counts began, on the monotonic clock (default: with this process)."""
        self.began = time.monotonic() - seconds_since_start() if began is None else began
        self.received: signal.Signals | None = None
        # Where there are several machines, their launchers notice, and may go on without this one.
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        self.launcher = os.getppid() if elastic and one_machine() else None
        # How often Ctrl-C or SIGTERM came. The others are repeated by slurm/job.sh, for processes that are still starting.
        self.hurried = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._note)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, self._note)

    def notice_lost_launcher(self) -> None:
        """Stop where the launcher was killed: it can't end its processes any more, and nobody else knows of them."""
        if self.launcher and os.getppid() != self.launcher and not self.received:
            self.received = signal.SIGTERM
            if is_speaker():
                print("the launcher is gone, so the run saves a checkpoint and stops", file=sys.stderr, flush=True)

    def defer_interrupt(self) -> None:
        """From now on Ctrl-C asks for a stop like the others."""
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.received = self.received or signal.Signals(number)
        self.hurried += number in (signal.SIGINT, signal.SIGTERM)


class Decision(NamedTuple):
    """What all ranks agreed on. Equal on every rank."""

    stop: signal.Signals | None
    diverged: bool  # a loss is nan or infinite
    checkpoint: bool


class Ballot:
    """Decides by collective vote, at steps that every rank computes alike, about every `VOTE_EVERY_S` seconds."""

    def __init__(
        self, signals: StopSignals, checkpoint_every_s: float, start_step: int, max_time: str | None = None
    ) -> None:
        self.signals = signals
        self.checkpoint_every_s = checkpoint_every_s
        self.last_checkpoint = time.monotonic()
        self.ends = math.inf  # when this process must have ended, on the monotonic clock
        if max_time:
            self.ends = signals.began + (seconds_of(max_time) or math.inf)
        self.longest_pause = 0.0  # from a vote to the end of what was saved then
        self.last_vote, self.last_step, self.next_step = time.monotonic(), start_step, start_step + 1

    def due(self, step: int) -> bool:
        return step >= self.next_step

    def vote(self, step: int, loss_sum: Tensor) -> Decision:
        """Agree after `step` steps; `loss_sum` () is any float64 that holds a nan once a loss did. One all-reduce and sync."""
        now = time.monotonic()
        self.signals.notice_lost_launcher()
        # Another checkpoint, and what comes after the last one: the page, W&B, leaving.
        late = now + 2 * self.longest_pause + ENDING_S >= self.ends
        number = int(self.signals.received or (signal.SIGALRM if late else 0))
        step_s = (now - self.last_vote) / max(1, step - self.last_step)
        checkpoint = now - self.last_checkpoint >= self.checkpoint_every_s
        ballot = torch.tensor([number, 0.0, checkpoint, step_s], dtype=torch.float64, device=loss_sum.device)
        ballot[1] = (~torch.isfinite(loss_sum)).double()
        stop, diverged, checkpoint, step_s = max_across_ranks(ballot).tolist()
        self.last_vote, self.last_step = now, step
        self.next_step = step + max(1, min(1000, math.floor(VOTE_EVERY_S / max(step_s, 1e-6))))
        return Decision(signal.Signals(int(stop)) if stop else None, bool(diverged), bool(checkpoint))

    def checkpoint_saved(self) -> None:
        self.last_checkpoint = time.monotonic()
        self.longest_pause = max(self.longest_pause, self.last_checkpoint - self.last_vote)


def seconds_since_start() -> float:
    """Return how long ago this process was started, imports included."""
    return time.time() - psutil.Process().create_time()
