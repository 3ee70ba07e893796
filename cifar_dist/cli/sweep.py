"""`python -m cifar_dist sweep FILE`: run a search on this machine, go on with it, rank its runs."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cifar_dist.cli import command_parser
from cifar_dist.config import NOT_NEGATIVE, POSITIVE, SEED, TrainConfig, check_bounds, option
from cifar_dist.console import Console
from cifar_dist.errors import UserError, did_you_mean
from cifar_dist.exits import FINISHED, INTERRUPTED
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config, to_words
from cifar_dist.record.folder import RunFolder
from cifar_dist.record.metric import Metric
from cifar_dist.record.repeats import REPEATS, Point, varying, without
from cifar_dist.sweep.file import read_sweep
from cifar_dist.sweep.ranking import Candidate, rank
from cifar_dist.sweep.space import Sweep, list_runs
from cifar_dist.sweep.study import Study, check_record, overall, run_all
from cifar_dist.text import option_text
from cifar_dist.training.preflight import check_early

PACKAGE = Path(__file__).parent.parent
SHIPPED = {path.stem: path for path in sorted((PACKAGE / "sweep").glob("*.yaml"))}
SHARED = tuple(f.name for f in fields(TrainConfig) if f.name != "output_dir")
RANKING_FILE = "ranking.json"
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


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit status; raises `UserError`."""
    path, options, fixed = read_options(argv)
    console = Console(speaks=True)
    study = prepare(path, options, fixed)
    indices = range(len(study.runs)) if options.index is None else [options.index]
    if options.dry_run:
        for index in indices:
            console.say(f"run {index:04d}: {shlex.join(study.command(index))}")
        return FINISHED
    if options.ranking:
        if not check_record(study):
            raise UserError(f"no sweep was started in {study.folder}; use another --output-dir")
        show_ranking(study, console)
        return FINISHED
    statuses = run_all(study, indices, console)
    say_what_is_left(study, statuses, console)
    if options.index is not None:
        return statuses.get(options.index, FINISHED)
    if INTERRUPTED not in statuses.values():
        show_ranking(study, console)
    return overall([*statuses.values()])


def say_what_is_left(study: Study, statuses: Mapping[int, int], console: Console) -> None:
    """Name the runs that failed, and count those that were interrupted or not begun."""
    if failed := [f"{index:04d}" for index, status in statuses.items() if status not in (FINISHED, INTERRUPTED)]:
        where = f"{study.folder}/NUMBER.log"
        console.warn(f"failed: {' '.join(failed)}; the reasons are in {where}, the same command tries again")
    if left := [*statuses.values()].count(INTERRUPTED):
        console.warn(
            f"interrupted: {left} of {len(study.runs)} runs not at their end; the same command goes on with them"
        )


def read_options(argv: Sequence[str]) -> tuple[Path, SweepOptions, Point]:
    """Return the sweep file, our own options, and those of `train.py` that are the same for all runs; raises `UserError`."""
    parser = command_parser("sweep", usage="%(prog)s FILE [options]")
    what = f"a file in that format, or one of: {', '.join(SHIPPED)}; the options of train.py override it"
    parser.add_argument("file", nargs="?", metavar="FILE", help=what)
    add_flags(parser, SweepOptions)
    add_flags(parser, TrainConfig, SHARED)
    given = parser.parse(argv)
    file = given.pop("file", None)
    if file is None:
        raise UserError(f"which sweep? Give its file first, or one of: {', '.join(SHIPPED)}")
    if "resume" in given:
        raise UserError(
            "--resume has no effect: a sweep always goes on; leave it out, or start over in another --output-dir"
        )
    own = {f.name for f in fields(SweepOptions)}
    options = SweepOptions(**{name: value for name, value in given.items() if name in own})
    return find_file(file), options, without(given, own)


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
    for base in (PACKAGE.parent, Path.cwd()):
        if (base / sweep.program).is_file():
            return str(base / sweep.program)
    raise UserError(f"there is no program {sweep.program} in {PACKAGE.parent} or {Path.cwd()}; give its path")


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


def show_ranking(study: Study, console: Console) -> None:
    """Print the groups, the best first, and how to train the best; write the same to ranking.json."""
    metric, results = study.sweep.metric, [study.result(index) for index in range(len(study.runs))]
    candidates = rank(study.runs, results, study.sweep.goal)
    names = [name for name in varying(study.runs) if name not in REPEATS]
    best = winner_command(study, candidates[0]) if candidates[0].complete and metric.split == "val" else None
    table = Table(title=f"{metric.name}, mean ± sample standard deviation over seeds and folds", title_justify="left")
    for column in ("rank", "runs", *names, "n", metric.key, "status"):
        table.add_column(column, justify="left" if column in (*names, "status") else "right", overflow="fold")
    for place, candidate in enumerate(candidates, start=1):
        mean = metric.text(candidate.mean) + (f" ± {metric.text(candidate.std)}" if candidate.std is not None else "")
        status = ", ".join(f"{count} {status}" for status, count in candidate.counts().items())
        cells = [str(place) if candidate.complete else "-", " ".join(map(str, candidate.indices))]
        cells += [
            *(option_text(candidate.options.get(name)) for name in names),
            str(len(candidate.values)),
            mean,
            status,
        ]
        table.add_row(*map(escape, cells), style=None if candidate.complete else "dim")
    console.rich.print(table)
    console.synthetic_note(synthetic := any(result.synthetic for result in results))
    if unfinished := sum(not candidate.complete for candidate in candidates):
        console.warn(f"{unfinished} of {len(candidates)} lines have runs that are not finished, and no rank")
    if best:
        console.say(f"to train and test the best{' so far' * bool(unfinished)}: {best}")
    content: dict[str, Any] = {"metric": study.sweep.metric_record(), "synthetic": synthetic, "best": best}
    lines = [record_of(candidate, place, names) for place, candidate in enumerate(candidates, start=1)]
    RunFolder(study.folder).write_json(RANKING_FILE, {**content, "groups": lines})


def record_of(candidate: Candidate, place: int, names: Sequence[str]) -> dict[str, Any]:
    return {
        "rank": place if candidate.complete else None,
        "runs": candidate.indices,
        "options": {name: candidate.options.get(name) for name in names},
        "n": len(candidate.values),
        "mean": candidate.mean,
        "std": candidate.std,
        "status": candidate.counts(),
    }


def winner_command(study: Study, candidate: Candidate) -> str:
    """Return the command that trains with these options on all but the usual validation images, and tests."""
    runs = [study.runs[index] for index in candidate.indices]
    dropped = {"folds", "fold", "test"} | ({"seed"} & set(varying(runs)))
    path = Path(study.program)
    program = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return shlex.join(study.sweep.command_line(without(runs[0], dropped), "python", program))
