"""What `predict` and `latency` share with `train.py`, and how they set this process up."""

from collections.abc import Mapping
from typing import Any

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.runtime.cpu import prepare_cpu
from cifar_dist.runtime.launch import check_launch, default_threads, env_int

SHARED = ("mixed_precision", "device", "threads")  # options that mean what they mean to train.py


def prepare(shared: Mapping[str, Any]) -> None:
    """Set this process's threads and memory up as evaluation has them. Raises `UserError`, as under a launcher of several."""
    if env_int("WORLD_SIZE", 1) > 1:
        raise UserError("this command works in one process; start it without a launcher")
    cores = default_threads()
    config = TrainConfig(epochs=1, **{"threads": cores, **shared})
    check_launch(config, None)
    prepare_cpu(config, 1, cores)
