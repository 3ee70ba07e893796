"""From a sweep file and options to a study whose runs are all checked; nothing is written."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cifar_dist.config import NOT_NEGATIVE, POSITIVE, SEED, TrainConfig, check_bounds, option
from cifar_dist.errors import UserError, did_you_mean
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config, to_words
from cifar_dist.record.metric import Metric
from cifar_dist.record.repeats import Point, varying
from cifar_dist.sweep.file import read_sweep
from cifar_dist.sweep.space import Sweep, list_runs
from cifar_dist.sweep.study import Study
from cifar_dist.training.preflight import check_early

CHECKOUT = Path(__file__).parents[2]
SHIPPED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
CLASHES = (("--ranking", "--dry-run"), ("--ranking", "--index"), ("--ranking", "--parallel"), ("--index", "--parallel"))


@dataclass(frozen=True)
class SweepOptions:
    """The options that `train.py` doesn't have, or has with another meaning."""

    output_dir: str | None = option(None, "where the runs are, each in its folder 0000, 0001, ... (default: runs/FILE)")
    index: int | None = option(
        None, "run only this one, for job arrays; the exit status is that of the run", must_be=NOT_NEGATIVE
    )
    parallel: int = option(1, "runs at a time, which share the cores and GPUs out", must_be=POSITIVE)
    count: int | None = option(
        None, "points of a random search, or the first of a grid (default: the file's run_cap)", must_be=POSITIVE
    )
    sweep_seed: int = option(0, "seed of a random search's points", must_be=SEED)
    dry_run: bool = option(False, "list the runs and their commands, and start none")
    ranking: bool = option(False, "rank what is there, and start nothing")

    def __post_init__(self) -> None:
        check_bounds(self)
        on = {"--dry-run": self.dry_run, "--ranking": self.ranking}
        on |= {"--index": self.index is not None, "--parallel": self.parallel > 1}
        for one, other in CLASHES:
            if on[one] and on[other]:
                raise UserError(f"{one} and {other} don't go together; leave one out")


def find_file(name: str) -> Path:
    """Return the sweep file of that path, or ours of that name."""
    path = Path(name) if Path(name).is_file() else SHIPPED.get(name)
    if not path:
        raise UserError(
            f"there is no file {name}.{did_you_mean(name, SHIPPED)} Give one, or one of: {', '.join(SHIPPED)}"
        )
    return path


def prepare(path: Path, options: SweepOptions, fixed: Point) -> Study:
    """Read the file and check every run of it; raises `UserError`. Writes nothing."""
    sweep = read_sweep(path.read_bytes(), str(path))
    if options.sweep_seed and sweep.method == "grid":
        raise UserError(f"--sweep-seed has no effect with method grid; leave it out, or use method random in {path}")
    runs = resolve(list_runs(sweep, fixed, options.count, options.sweep_seed), sweep.metric)
    if options.index is not None and options.index >= len(runs):
        raise UserError(f"--index {options.index}: the runs of {path} are 0 to {len(runs) - 1}")
    folder = Path(options.output_dir or f"runs/{path.stem}")
    study = Study(sweep, runs, folder, find_program(sweep), options.parallel)
    executable = study.command(0)[0]
    if not shutil.which(executable):
        raise UserError(
            f"there is no program {executable}; put its folder on PATH, or begin command with ${{interpreter}}"
        )
    return study


def find_program(sweep: Sweep) -> str:
    """Return the path of what the sweep runs: beside the package, or from the working directory."""
    for base in (CHECKOUT, Path.cwd()):
        if (base / sweep.program).is_file():
            return str(base / sweep.program)
    raise UserError(f"there is no program {sweep.program} in {CHECKOUT} or {Path.cwd()}; give its path")


def resolve(runs: Sequence[Point], metric: Metric) -> list[Point]:
    """Return the runs with their values as `train.py` reads them, JSON-ready; raises `UserError` for the first wrong one."""
    parser = OneLineParser()
    add_flags(parser, TrainConfig)
    check_once = cache(check_early)  # it may build the model, which takes 0.1 s of a resnet110, of any lr
    names, resolved = varying(runs), []
    for index, run in enumerate(runs):
        try:
            given = parser.parse(to_words(run))
            config = resolve_train_config(given)
            check_once(replace(config, lr=1.0, weight_decay=0.0, label_smoothing=0.0, seed=0, folds=None, fold=None))
            check_metric(config, metric)
        except UserError as error:
            which = shlex.join(to_words({name: run[name] for name in names if name in run}))
            raise UserError(f"run {index}{f' ({which})' * bool(which)}: {error}") from None
        resolved.append({name: list(value) if isinstance(value, tuple) else value for name, value in given.items()})
    return resolved


def check_metric(config: TrainConfig, metric: Metric) -> None:
    """Raise `UserError` where a run would not measure what it is ranked by."""
    if metric.split == "val" and not config.val_fraction and not config.folds:
        raise UserError(f"nothing is held out to measure {metric.name} on; use --val-fraction 0.1 or --folds 5")
    if metric.split == "test" and not config.test:
        raise UserError(f"--no-test leaves nothing to rank by {metric.name}; leave it out")
