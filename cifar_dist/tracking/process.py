"""Training's side: starts the process that sends the run, says what it reports, and gives it a bounded time at the end."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from cifar_dist.console import Console
from cifar_dist.record.folder import WANDB_LOG
from cifar_dist.tracking.link import Link, Mode, open_link, read_link

PATIENCE_S = 3.0  # before we say what we are waiting for
PACKAGE_PARENT = Path(__file__).parents[2]


def start_follower(folder: Path, mode: str, stdin: int) -> "subprocess.Popen[bytes]":
    """Start the process that sends the run in `folder` until its standard input is closed: that is how it learns of our end.

    It has a session of its own, so that no signal meant for us reaches it, and none of our files stays open in it.
    """
    paths = filter(None, (str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "cifar_dist.tracking.follower", str(folder.resolve()), mode]
    with (folder / WANDB_LOG).open("ab") as log:
        return subprocess.Popen(
            command, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def follow(folder: Path, mode: str) -> None:
    """Send what the run in `folder`, which has ended, has not sent yet; returns when that is done or has failed."""
    start_follower(folder, mode, stdin=subprocess.DEVNULL).wait()


def kill_tree(pid: int) -> None:
    """Kill a process and all it started: wandb gives its service a session of its own."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                one.kill()


def reason(link: Link | None) -> str:
    return f" ({link.note})" if link and link.note else ""


class Tracker:
    """The process that shows a run in Weights & Biases. Rank 0 only. Whatever becomes of it, training goes on."""

    def __init__(self, folder: Path, mode: Mode, console: Console) -> None:
        self.folder, self.console = folder, console
        self.process: subprocess.Popen[bytes] | None = None
        self.told = False
        if mode == "disabled":
            return
        try:
            open_link(folder)
            self.process = start_follower(folder, mode, stdin=subprocess.PIPE)
        except OSError as error:
            console.warn(f"no Weights & Biases: {error}")

    def tell(self) -> None:
        """Say once where the run is shown online, as soon as that is known."""
        link = None if self.told or not self.process else read_link(self.folder)
        if link and link.mode == "online":
            self.told = True
            self.console.say(f"Weights & Biases: {link.url}")

    def stop_was_asked(self) -> bool:
        """Whether somebody has pressed the stop button there."""
        link = read_link(self.folder) if self.process else None
        return bool(link and link.stop_asked)

    def finish(self, timeout_s: float, impatient: Callable[[], bool] = lambda: False) -> None:
        """Let it send what is left, for at most `timeout_s` or until somebody is `impatient`, and say what became of it."""
        if not self.process:
            return
        self.process.stdin.close()  # type: ignore[union-attr]
        start, said = time.monotonic(), False
        while self.process.poll() is None and time.monotonic() - start < timeout_s and not impatient():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
            if not said and time.monotonic() - start > PATIENCE_S:
                self.console.say(f"waiting for Weights & Biases, {timeout_s:g} s at most; Ctrl-C stops that", "dim")
                said = True
        if self.process.poll() is None:
            kill_tree(self.process.pid)
            self.process.wait()
        self.tell()
        self.process = None
        log = self.folder / WANDB_LOG
        if log.exists() and not log.stat().st_size:
            log.unlink()
        self._say_what_is_left()

    def _say_what_is_left(self) -> None:
        link = read_link(self.folder)
        sync = f"python -m cifar_dist sync {shlex.quote(str(self.folder))}"
        if link and link.complete:
            return
        if link and link.mode == "online":
            self.console.warn(f"Weights & Biases has not all of it; {sync} sends the rest" + reason(link))
        else:
            self.console.say(f"Weights & Biases: offline; {sync} uploads it" + reason(link))
