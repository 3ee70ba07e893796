"""`train.py`: train one model and test it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cifar_dist import __doc__ as description
from cifar_dist import distributed
from cifar_dist.augment import AUGMENTATIONS
from cifar_dist.cli.exits import FINISHED, INTERRUPTED, guarded
from cifar_dist.config import TrainConfig
from cifar_dist.data import check_data_name
from cifar_dist.errors import UserError, lookup
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config
from cifar_dist.preemption import StopSignals
from cifar_dist.resume import resume_source
from cifar_dist.run import train_run
from cifar_dist.sampling import check_batch


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    return guarded(lambda: _train(argv))


def _train(argv: Sequence[str]) -> int:
    signals = StopSignals()
    parser = OneLineParser(prog="train.py", description=description, allow_abbrev=False)
    add_flags(parser, TrainConfig)
    given = parser.parse(argv)
    config = with_launcher_precision(resolve_train_config(given), given)
    check_early(config)
    stopped = train_run(config, given, distributed.start(config), signals)
    return INTERRUPTED if stopped and not distributed.under_launcher() else FINISHED


def with_launcher_precision(config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """Take `accelerate launch --mixed_precision` where our own option wasn't given."""
    launchers = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if "mixed_precision" in given or launchers == "no":
        return config
    if launchers not in ("bf16", "fp16"):
        raise UserError(f"accelerate launch --mixed_precision {launchers} is not supported; use no, bf16 or fp16")
    return replace(config, mixed_precision=launchers)  # type: ignore[arg-type]


def check_early(config: TrainConfig) -> None:
    """Raise `UserError` for what can be known before any process group, download or folder."""
    for name in config.augment:
        lookup(AUGMENTATIONS, name, "augmentation")
    check_data_name(config.data)
    check_batch(config, distributed.env_int("WORLD_SIZE", 1))
    resume_source(config.resume)
