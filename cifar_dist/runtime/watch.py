"""Who is waited for: every rank says each few seconds where it is, and the first names those that say nothing or lag behind.

A collective whose other ranks hang waits for half an hour without a word (`accelerator.TIMEOUT`), and then says which
collective it was, but not who was missing or why.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from cifar_dist.runtime.collectives import notice_board, rank, world_size
from cifar_dist.text import clock, ranks

BEAT_S = 5.0
SILENCE_S = 30.0  # without a beat: the process, its machine or the network hangs
STANDSTILL_S = 60.0  # of all ranks, some of them elsewhere than others
PACKAGE = Path(__file__).parent.parent


class HasStep(Protocol):
    step: int


@dataclass
class Beat:
    """What a rank said last, and how long ago."""

    rank: int
    count: int = -1
    step: int = 0
    where: str = "starting"  # the innermost function of ours that its main thread is in
    still_s: float = 0.0  # how long it has been there
    host: str = "?"
    process: int = 0
    heard: float = 0.0  # when, by the listener's clock

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.process})"


class Watch:
    """Beats while it is entered, where there are several ranks; rank 0 listens to all, and rank 1 to rank 0."""

    def __init__(self) -> None:
        self.progress: HasStep | None = None  # of the run, once there is one
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._listener = Listener(hears_all=rank() == 0)

    def __enter__(self) -> "Watch":
        if world_size() > 1:
            threading.Thread(target=self._beat, daemon=True).start()
        if world_size() > 1 and rank() < 2:
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _beat(self) -> None:
        here, place, since = Beat(rank(), host=socket.gethostname(), process=os.getpid()), ("", -1), 0.0
        others = {0: range(1, world_size()), 1: range(1)}.get(here.rank, range(0))
        board: Any = None
        while not self._over.wait(BEAT_S):
            seen = innermost(self._main), self.progress.step if self.progress else 0
            if seen != place:
                place, since = seen, time.monotonic()
            here.count, (here.where, here.step), here.still_s = here.count + 1, place, time.monotonic() - since
            with suppress(RuntimeError):  # torch's, where nobody answers; the listener notices
                board = board or notice_board(timedelta(seconds=SILENCE_S))
                board.set(f"beat/{here.rank}", json.dumps(vars(here)))
                there = [key for key in (f"beat/{r}" for r in others) if board.check([key])]
                self._listener.hear(here, *(json.loads(board.get(key)) for key in there))

    def _listen(self) -> None:
        """Say what there is to say. A thread of its own: the board may not answer for as long as it likes."""
        while not self._over.wait(BEAT_S):
            for line in self._listener.judge(time.monotonic()):
                print(line, file=sys.stderr, flush=True)


class Listener:
    """Judges what is heard; each thing is said once, and when it is over."""

    def __init__(self, hears_all: bool) -> None:
        self.hears_all = hears_all
        self.beats: dict[int, Beat] = {}
        self.heard = time.monotonic()  # when the board answered last
        self.silent: set[int] = set()
        self.standing = 0.0  # how long a standstill was when it was said last
        self.cut_off = False

    def hear(self, here: Beat, *others: dict[str, Any]) -> None:
        """Take in this rank's beat, and what the board has of others."""
        self.heard = time.monotonic()
        for said in (vars(here), *others):
            before = self.beats.get(said["rank"])
            if not before or said["count"] != before.count:
                self.beats[said["rank"]] = Beat(**{**said, "heard": self.heard})

    def judge(self, now: float) -> list[str]:
        """Return what is to be said now."""
        before, self.cut_off = self.cut_off, now - self.heard >= SILENCE_S
        if self.cut_off:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            line = f"rank 0, or its launcher, has not answered at {where} for {now - self.heard:.0f} s, and the others wait for it"
            return [] if before else [line]
        beats = dict(self.beats)
        silent = {r for r, beat in beats.items() if now - beat.heard >= SILENCE_S}
        lines = [
            f"{b.name} has said nothing for {now - b.heard:.0f} s, and the others wait for it; it was at step {b.step}, in {b.where}"
            for b in (beats[r] for r in sorted(silent - self.silent))
        ]
        lines += [f"{beats[r].name} is back" for r in sorted(self.silent - silent)]
        self.silent = silent
        return lines + (self._standstill(beats) if self.hears_all and not silent else [])

    def _standstill(self, beats: dict[int, Beat]) -> list[str]:
        """Return who is where if nobody moves and not all are at the same place: after one minute, two, four."""
        still_s = min((beat.still_s for beat in beats.values()), default=0.0)
        places = defaultdict(list)
        for beat in beats.values():
            places[beat.step, beat.where].append(beat.rank)
        if still_s < STANDSTILL_S or len(places) == 1:
            self.standing = 0.0
            return []
        if still_s < 2 * self.standing:
            return []
        self.standing = still_s
        fewest_first = sorted(places.items(), key=lambda item: len(item[1]))
        groups = "; ".join(f"{ranks(who)} at step {step}, in {where}" for (step, where), who in fewest_first)
        return [f"no rank has moved for {clock(still_s)}: {groups}"]


def innermost(thread: int) -> str:
    """Return the innermost function of this package that a thread is in: `training/step.py, backward`."""
    frame = sys._current_frames().get(thread)
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)}, {frame.f_code.co_name}"
        frame = frame.f_back
    return "no function of this package"
