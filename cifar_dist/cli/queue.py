"""`python -m cifar_dist queue`: our Slurm jobs, waiting, running or just ended, with the progress of their runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cifar_dist.cli import command_parser
from cifar_dist.compare.groups import value_of
from cifar_dist.compare.runs import ComparedRun
from cifar_dist.console import Console
from cifar_dist.exits import FINISHED
from cifar_dist.record.metric import METRICS
from cifar_dist.record.reader import RunRecord, is_run, read_run
from cifar_dist.slurm.squeue import Job, is_ours, parse, run_folder, squeue_lines
from cifar_dist.text import clock, percent

WIDE = 120  # columns of a terminal from which each job takes one line
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "DEADLINE",
    "BOOT_FAIL",
)
LEFT_ALIGNED = ("job", "state", "where", "run folder")
STYLES = {
    "RUNNING": "green",
    "COMPLETING": "green",
    "PENDING": "default",
    "COMPLETED": "dim",
}  # others have failed or were stopped


@dataclass(frozen=True)
class Progress:
    """How far a run is, as it is shown."""

    epoch: str = "–"
    attempt: str = "–"  # how often it was started
    accuracy: str = "–"  # of the last validation, or the test
    best: str = "–"
    left: str = "–"
    problem: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class Row:
    """A job and its run."""

    job: Job
    folder: Path | None
    progress: Progress


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit status; raises `UserError`."""
    command_parser("queue", "A job is ours if it runs one of the templates in slurm/.").parse(argv)
    console = Console(speaks=True)
    rows = [row_of(job) for job in parse(squeue_lines()) if is_ours(job)]
    if not rows:
        console.say(
            "none of our jobs waits or runs; python -m cifar_dist submit starts one, compare shows the runs there are"
        )
        return FINISHED
    console.rich.print(table(rows, console.rich.width), soft_wrap=False)
    for row in rows:
        if row.progress.problem:
            console.warn(f"{row.job.label}: {row.progress.problem}")
    console.synthetic_note(any(row.progress.synthetic for row in rows))
    return FINISHED


def row_of(job: Job) -> Row:
    folder = run_folder(job)
    return Row(job, folder, progress_of(folder) if folder and is_run(folder) else Progress())


def progress_of(folder: Path) -> Progress:
    """Return how far the run in the folder is."""
    record = read_run(folder)
    run = ComparedRun.of(record)  # names what it can't make sense of
    if run.record.status == "broken":
        return Progress(problem=run.record.problem)
    last = next((line for line in reversed(record.lines) if line["kind"] == "val"), None)
    best, tested = (value_of(run, METRICS[f"{split}/accuracy"]) for split in ("val", "test"))
    latest = percent(last["accuracy"] if last else None)
    left_s = seconds_left(record, run.total_steps)
    return Progress(
        epoch=epoch_text(record.lines, run.total_steps),
        attempt=str(len(record.starts)),
        accuracy=latest if tested is None else f"test {percent(tested)}",
        best=percent(best),
        left=clock(left_s or None),
        problem=run.record.problem,
        synthetic=run.synthetic,
    )


def epoch_text(lines: Sequence[Mapping[str, Any]], total_steps: int | None) -> str:
    """Return `12.3/100`: the epoch a run has reached, and that of its end where that is known."""
    if not lines:
        return "0"
    epoch, step = lines[-1]["epoch"], lines[-1]["step"]
    return f"{epoch:.1f}" + (f"/{total_steps * epoch / step:.4g}" if total_steps else "")


def seconds_left(record: RunRecord, total_steps: int | None) -> float | None:
    """Return how long the steps that are left take, at the pace since the last start; None where that is not known yet."""
    began = record.starts[-1]["from_step"] if record.starts else 0
    lines = [line for line in record.lines if line["kind"] != "test" and line["step"] > began]
    if not lines or not total_steps:
        return None
    first, last = lines[0], lines[-1]  # what precedes the first line is warming up
    steps, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
    pace = seconds / steps if steps else last["seconds"] / last["step"]
    return pace * (total_steps - last["step"])


def table(rows: Sequence[Row], width: int) -> Table:
    """Return a line for each job, or on a narrow terminal two."""
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    lines = [wide_cells(row) if width >= WIDE else narrow_cells(row) for row in rows]
    for heading in lines[0]:
        text = heading.startswith(LEFT_ALIGNED)
        shown.add_column(heading, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for line in lines:
        shown.add_row(*line.values())
    return shown


def wide_cells(row: Row) -> dict[str, str]:
    """Return the cells by heading."""
    job, run = row.job, row.progress
    return {
        "job": escape(job.label),
        "state": state_text(job),
        "where": escape(job.nodes or job.reason),
        "time": job.elapsed,
        "limit": job.limit,
        "epoch": run.epoch,
        "attempt": run.attempt,
        "accuracy": run.accuracy,
        "best": run.best + "\n[not dim bold yellow]SYNTHETIC[/]" * run.synthetic,
        "left": "–" if job.state in ENDED else run.left,
        "run folder": escape(folder_text(row)) or f"[dim]({escape(job.name)})[/]",
    }


def narrow_cells(row: Row) -> dict[str, str]:
    """Return the cells by heading, related ones on top of each other."""
    cells = wide_cells(row)
    pairs = ("job", "run folder"), ("state", "where"), ("time", "limit"), ("epoch", "attempt"), ("accuracy", "best")
    stacked = {f"{one}\n{other}": f"{cells[one]}\n[dim]{cells[other]}[/]" for one, other in pairs}
    return {**stacked, "left": cells["left"]}


def state_text(job: Job) -> str:
    return f"[{STYLES.get(job.state, 'yellow')}]{job.state.lower()}[/]"


def folder_text(row: Row) -> str:
    """Return the run folder, from here where it is below; empty for a job without one."""
    if row.folder is None:
        return ""
    return str(row.folder.relative_to(Path.cwd()) if row.folder.is_relative_to(Path.cwd()) else row.folder)
