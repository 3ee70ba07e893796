"""`train.py` inside another program: the same run, in this process, which stays as it was."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from cifar_dist.cli.train import train_parser
from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError, lookup
from cifar_dist.options import resolve_train_config, to_words
from cifar_dist.runtime import collectives, launch
from cifar_dist.runtime.accelerator import join
from cifar_dist.runtime.cpu import use_onednn, uses_onednn
from cifar_dist.training.preemption import StopSignals
from cifar_dist.training.preflight import check_early
from cifar_dist.training.resume import folder_of
from cifar_dist.training.run import train_run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def train(**options: Any) -> Path:
    """Train and test as `train.py` does with these options, on this one process, and return the run folder.

    `train(model="lenet", epochs=3, augment=["crop", "flip"])` is `train.py --model lenet --epochs 3 --augment crop flip`.
    A signal, Ctrl-C as well, is raised again once the run is saved; the same call with the same `output_dir` goes on from there,
    also after `max_time`, which is counted from this call.
    Raises `UserError` for wrong options or data, `DivergedError` where the loss is no number any more, and `OSError`.
    """
    known = {f.name: f for f in fields(TrainConfig)}
    for name in options:
        lookup(known, name, "option of train")
    if launch.env_int("WORLD_SIZE", 1) > 1:
        raise UserError("train() works in one process; several take a launcher and train.py (see launch/README.md)")
    if threading.current_thread() is not threading.main_thread():
        raise UserError("train() handles signals, which only the main thread can; call it there, or start train.py")
    if AcceleratorState._shared_state:
        raise UserError("train() needs Accelerate to itself, and this process already uses it; start train.py instead")
    words = to_words(options)
    with as_before():
        signals = StopSignals(began=time.monotonic())
        given = train_parser(words).parse(words)
        config = resolve_train_config(given)
        check_early(config)
        join(config)
        path = folder_of(config)
        config = replace(config, output_dir=str(path))
        stopped = train_run(config, given, signals)
    if stopped and stopped != signal.SIGALRM:  # which nobody sent
        signal.raise_signal(stopped)
    return path


@contextmanager
def as_before() -> Iterator[None]:
    """Give signal handlers and the settings of torch and Accelerate back; numbers below 1e-38 go on being 0."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    threads, onednn, deterministic = (
        torch.get_num_threads(),
        uses_onednn(),
        torch.are_deterministic_algorithms_enabled(),
    )
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's own
        collectives.stop()
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(threads)
        use_onednn(onednn)
        torch.use_deterministic_algorithms(deterministic)
