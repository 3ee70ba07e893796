"""`train.py`: train one model and test it."""

from collections.abc import Sequence

from cifar_dist import __doc__ as description
from cifar_dist import distributed
from cifar_dist.augment import AUGMENTATIONS, check_augmentations
from cifar_dist.cli.exits import FINISHED, INTERRUPTED, guarded
from cifar_dist.config import TrainConfig
from cifar_dist.data import check_data_name
from cifar_dist.models import ALIASES, MODELS, check_image_size, check_model
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config, with_launcher_precision
from cifar_dist.preemption import StopSignals
from cifar_dist.recipes import RECIPES
from cifar_dist.resume import resume_source
from cifar_dist.run import train_run
from cifar_dist.sampling import check_batch

AFTER_A_FAILURE = "what was saved before is kept, and the same command goes on from it"


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    return guarded(lambda: _train(argv), AFTER_A_FAILURE)


def _train(argv: Sequence[str]) -> int:
    signals = StopSignals()
    tables = {"models": [*MODELS, *ALIASES], "recipes": RECIPES, "augmentations": AUGMENTATIONS}
    lists = "; ".join(f"{name}: {', '.join(table)}" for name, table in tables.items())
    parser = OneLineParser(prog="train.py", description=description, epilog=lists, allow_abbrev=False)
    add_flags(parser, TrainConfig)
    given = with_launcher_precision(parser.parse(argv))
    config = resolve_train_config(given)
    check_early(config)
    distributed.join(config)
    stopped = train_run(config, given, signals)
    return INTERRUPTED if stopped and not distributed.under_launcher() else FINISHED


def check_early(config: TrainConfig) -> None:
    """Raise `UserError` for what can be known before any process group, download or folder."""
    check_augmentations(config.augment)
    check_model(config.model, config.model_options)
    if config.early_size:
        check_image_size(config.model, config.model_options, config.early_size)
    check_batch(config, distributed.env_int("WORLD_SIZE", 1))
    if distributed.one_machine():  # others may not see the same files; then all ranks agree on what is wrong, later
        check_data_name(config.data)
        resume_source(config.resume)
