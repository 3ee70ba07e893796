"""`train.py`: train one model and test it."""

from collections.abc import Sequence

from cifar_dist import __doc__ as description
from cifar_dist.config import TrainConfig
from cifar_dist.exits import FINISHED, INTERRUPTED, guarded
from cifar_dist.inputs.augment import AUGMENTATIONS
from cifar_dist.models import ALIASES, MODELS
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config, with_launchers
from cifar_dist.recipes import RECIPES
from cifar_dist.runtime import launch
from cifar_dist.runtime.accelerator import join
from cifar_dist.training.preemption import StopSignals
from cifar_dist.training.preflight import check_early
from cifar_dist.training.run import train_run

AFTER_A_FAILURE = "what was saved before is kept, and the same command goes on from it"


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    signals = StopSignals()
    return guarded(lambda: _train(argv, signals), AFTER_A_FAILURE, lambda: signals.received)


def _train(argv: Sequence[str], signals: StopSignals) -> int:
    tables = {"models": [*MODELS, *ALIASES], "recipes": RECIPES, "augmentations": AUGMENTATIONS}
    lists = "; ".join(f"{name}: {', '.join(table)}" for name, table in tables.items())
    parser = OneLineParser(prog="train.py", usage="%(prog)s [options]", description=description, epilog=lists)
    add_flags(parser, TrainConfig)
    given = with_launchers(parser.parse(argv))
    config = resolve_train_config(given)
    check_early(config)
    join(config)
    stopped = train_run(config, given, signals)
    return INTERRUPTED if stopped and not launch.under_launcher() else FINISHED
