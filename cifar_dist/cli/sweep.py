"""`python -m cifar_dist sweep FILE`: run a search on this machine, go on with it, rank its runs."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cifar_dist.cli import command_parser
from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED, INTERRUPTED
from cifar_dist.options import add_flags
from cifar_dist.record.folder import RunFolder
from cifar_dist.record.repeats import REPEATS, Point, varying, without
from cifar_dist.report.heat import heat_maps
from cifar_dist.sweep.prepare import SHIPPED, SweepOptions, find_file, prepare
from cifar_dist.sweep.ranking import Candidate, rank
from cifar_dist.sweep.study import Study, check_record, overall, run_all
from cifar_dist.text import option_text

SHARED = tuple(f.name for f in fields(TrainConfig) if f.name != "output_dir")
RANKING_FILE, HEAT_FILE = "ranking.json", "ranking.png"


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


def show_ranking(study: Study, console: Console) -> None:
    """Print the groups, the best first, and how to train the best; write the same to ranking.json."""
    metric, results = study.sweep.metric, [study.result(index) for index in range(len(study.runs))]
    candidates = rank(study.runs, results, study.sweep.goal)
    names = [name for name in varying(study.runs) if name not in REPEATS]
    best = winner_command(study, candidates[0]) if candidates[0].complete and metric.split == "val" else None
    synthetic = any(result.synthetic for result in results)
    content: dict[str, Any] = {"metric": study.sweep.metric_record(), "synthetic": synthetic, "best": best}
    lines = [record_of(candidate, place, names) for place, candidate in enumerate(candidates, start=1)]
    RunFolder(study.folder).write_json(RANKING_FILE, {**content, "groups": lines})
    table = Table(title=f"{metric.name}, mean ± sample standard deviation over seeds and folds", title_justify="left")
    for column in ("rank", "folders", *names, "n", metric.key, "status"):
        table.add_column(column, justify="left" if column in (*names, "status") else "right", overflow="fold")
    for place, candidate in enumerate(candidates, start=1):
        mean = metric.text(candidate.mean) + (f" ± {metric.text(candidate.std)}" if candidate.std is not None else "")
        status = ", ".join(f"{count} {status}" for status, count in candidate.counts().items())
        cells = [
            str(place) if candidate.complete else "-",
            ", ".join(study.run_folder(index).name for index in candidate.indices),
        ]
        cells += [
            *(option_text(candidate.options.get(name)) for name in names),
            str(len(candidate.values)),
            mean,
            status,
        ]
        table.add_row(*map(escape, cells), style=None if candidate.complete else "dim")
    console.rich.print(table)
    console.synthetic_note(synthetic)
    if path := draw_heat(study, candidates, names, synthetic):
        console.say(f"heat maps of it: {path}")
    if unfinished := sum(not candidate.complete for candidate in candidates):
        console.warn(f"{unfinished} of {len(candidates)} lines have runs that are not finished, and no rank")
    if best:
        console.say(f"to train and test the best{' so far' * bool(unfinished)}: {best}")


def draw_heat(study: Study, candidates: Sequence[Candidate], names: Sequence[str], synthetic: bool) -> Path | None:
    """Draw the metric over every two options of the sweep, and return the picture; None where no two make a map."""
    measured = [(candidate.options, candidate.mean if candidate.complete else None) for candidate in candidates]
    maps = heat_maps(measured, names)
    if not maps:
        return None
    from cifar_dist.report.heat_plot import draw_heat_maps  # slow to import

    metric, maximize = study.sweep.metric, study.sweep.goal == "maximize"
    title = f"{study.folder.name}: {metric.name}, mean over seeds and folds; framed: the best{', SYNTHETIC DATA' * synthetic}"
    return draw_heat_maps(maps, metric.text, maximize, study.folder / HEAT_FILE, title)


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
