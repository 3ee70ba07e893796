"""Child processes that run to their end, and the signals that are passed on to them."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LAUNCHER = {  # so that the launcher of several processes, where a child is one, passes all of them on and waits (launch/README.md)
    "PET_SIGNALS_TO_HANDLE": ",".join(number.name for number in SIGNALS),
    "PET_SHUTDOWN_TIMEOUT": "90",
}


class Children:
    """Starts children, from any number of threads; while it is entered, in the main thread, signals go on to all of them."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._groups: set[int] = set()  # a child's id is that of its process group too
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Children":
        # nohup has the children ignore it, too.
        wanted = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._pass_on) for number in wanted}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Run `command` to its end, its output added to `log`; returns its exit status, or minus the signal that ended it."""
        with log.open("ab") as output:
            # A session of its own: a terminal's Ctrl-C reaches the child through us, once.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**LAUNCHER, **os.environ, **environment},
                start_new_session=True,
            )
        self._groups.add(child.pid)
        if self.received:  # while the child was being started, so it was not passed on
            send(child.pid, self.received)
        status = child.wait()
        while self.received and lives(child.pid):  # a launcher may end before the processes it started
            time.sleep(0.2)
        self._groups.discard(child.pid)
        return status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stop(number)

    def stop(self, number: int) -> None:
        """Do, from any thread, what a signal from outside does: pass it on, and remember the first."""
        self.received = self.received or signal.Signals(number)
        for group in list(self._groups):
            send(group, number)


def send(group: int, number: int) -> None:
    """Send a signal to all of a process group."""
    with suppress(ProcessLookupError, PermissionError):  # it has ended; macOS says so in another way
        os.killpg(group, number)


def lives(group: int) -> bool:
    """Whether a process of the group still runs; one that has ended and that nobody waits for doesn't count."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
