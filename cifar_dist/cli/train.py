"""`train.py`: train one model and test it."""

import re
from collections.abc import Sequence
from dataclasses import fields

from cifar_dist import __doc__ as description
from cifar_dist.config import GROUPS, TrainConfig
from cifar_dist.exits import FINISHED, INTERRUPTED, guarded
from cifar_dist.inputs.augment import AUGMENTATIONS
from cifar_dist.models import ALIASES, MODELS
from cifar_dist.options import OneLineParser, add_flags, option_value, resolve_train_config, with_launchers
from cifar_dist.recipes import RECIPES
from cifar_dist.runtime import launch
from cifar_dist.runtime.accelerator import join
from cifar_dist.training.preemption import StopSignals
from cifar_dist.training.preflight import check_early
from cifar_dist.training.run import train_run

EVERYDAY = next(iter(GROUPS.values()))
HELP, HELP_ALL = "--help", "--help-all"
AFTER_A_FAILURE = "what was saved before is kept, and the same command goes on from it"


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    signals = StopSignals()
    return guarded(lambda: _train(argv, signals), AFTER_A_FAILURE, lambda: signals.received)


def _train(argv: Sequence[str], signals: StopSignals) -> int:
    given = with_launchers(train_parser(argv).parse(argv))
    config = resolve_train_config(given)
    check_early(config)
    join(config)
    stopped = train_run(config, given, signals)
    return INTERRUPTED if stopped and not launch.under_launcher() else FINISHED


def train_parser(argv: Sequence[str]) -> OneLineParser:
    """Return the parser of these arguments; its help shows the defaults that are in force with the model and recipe among them."""
    if not {"-h", HELP, HELP_ALL} & set(argv):
        parser = OneLineParser(prog="train.py", add_help=False)
        parser.lists_all = HELP_ALL
        add_flags(parser, TrainConfig)
        return parser
    tables = {"models": [*MODELS, *ALIASES], "recipes": RECIPES, "augmentations": AUGMENTATIONS}
    lists = re.sub(r"/1, .*/", "/1 to /", "; ".join(f"{name}: {', '.join(table)}" for name, table in tables.items()))
    chosen = {name: value for name in ("model", "recipe") if (value := option_value(argv, name))}
    config, everything = resolve_train_config(chosen), HELP_ALL in argv
    about = (
        f"{description} In brackets: what recipe {config.recipe} has for {config.model}, unless another value is given."
    )
    more = "" if everything else f"{HELP_ALL} explains the other {len(fields(TrainConfig)) - len(EVERYDAY)} options. "
    parser = OneLineParser(
        prog="train.py", usage="%(prog)s [options]", description=about, epilog=more + lists, add_help=False
    )
    add_flags(parser, TrainConfig, values=config, explained=() if everything else EVERYDAY)
    parser.add_argument(
        "-h", HELP, HELP_ALL, action="help", help="this: the everyday options with their defaults, or all of them"
    )
    return parser
