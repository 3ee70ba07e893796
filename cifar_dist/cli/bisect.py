"""`python -m cifar_dist bisect A B`: the first step at which two runs part, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cifar_dist.cli import command_parser
from cifar_dist.config import option
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED
from cifar_dist.files import write_json
from cifar_dist.options import add_flags, check_output
from cifar_dist.replay.job import Job, do, machine_notes, make_job, recorded, start_at
from cifar_dist.replay.parting import circumstances, first_difference, parting_step, reason
from cifar_dist.replay.states import kept_digests, recorded_digests


@dataclass(frozen=True)
class BisectOptions:
    """The options of `bisect`."""

    data_dir: str | None = option(None, "where downloads and decoded caches are kept (default: each run's own)")
    output: str | None = option(None, "where to write the JSON (default: nowhere)")

    def __post_init__(self) -> None:
        check_output(self.output)


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit status; raises `UserError`."""
    folders, options = read_options(argv)
    console = Console(speaks=True)
    answer = bisect(folders, options.data_dir, console)
    if options.output:
        write_json(Path(options.output), answer)
        console.say(f"written to {options.output}")
    return FINISHED if answer["same"] else FAILED


def read_options(argv: Sequence[str]) -> tuple[tuple[Path, Path], BisectOptions]:
    parser = command_parser("bisect", usage="%(prog)s A B [options]")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="two run folders")
    add_flags(parser, BisectOptions)
    given = parser.parse(argv)
    runs = given.pop("runs", None) or []
    if len(runs) != 2:
        raise UserError(f"which two runs? Got {len(runs)}: python -m cifar_dist bisect runs/A runs/B")
    return (Path(runs[0]), Path(runs[1])), BisectOptions(**given)


def bisect(folders: tuple[Path, Path], data_dir: str | None, console: Console) -> dict[str, Any]:
    """Return where the runs part and why, and say it."""
    records = [recorded(folder) for folder in folders]
    kept = [kept_digests(folder) for folder in folders]
    known = [{**digests, **recorded_digests(folder)} for folder, digests in zip(folders, kept, strict=True)]
    same, differs = first_difference(*known)
    if differs is None:
        common = sorted(known[0].keys() & known[1].keys())
        if not common:
            raise UserError(
                f"{folders[0]} and {folders[1]} have no step in common whose digests are known; let both validate at one"
            )
        console.say(f"the same at all {len(common)} steps that both know, up to step {common[-1]}")
        return {"same": True, "up_to": common[-1]}
    known_same = f"the same at step {same}, different" if same else "different"
    console.say(f"{known_same} at step {differs}, of those that both know")
    for note in dict.fromkeys([*machine_notes(records[0]), *machine_notes(records[1])]):
        console.warn(f"this machine may round otherwise: {note}")
    jobs = [begun_together(folder, folders, kept, same, differs, data_dir) for folder in folders]
    traces = [do(job) for job in jobs]
    for folder, trace, digests in zip(folders, traces, known, strict=True):
        if any(trace[-1][name] != value for name, value in digests[differs].items()):
            console.warn(
                f"done again here, {folder} is not what it was at step {differs}: what follows is true of this machine"
            )
    step = parting_step(*traces)
    causes = circumstances(records[0], records[1], (start_at(records[0], same), start_at(records[1], same)))
    answer: dict[str, Any] = {
        "same": False,
        "same_at": same,
        "different_at": differs,
        "step": step,
        "circumstances": causes,
    }
    if step is None:
        console.say(
            f"done again here, both take the same steps from {jobs[0].start} to {differs}: their machines made the difference"
        )
    else:
        closer = [do(replace(job, every=False, closely=step - 1, stop=step))[-1] for job in jobs]
        why = reason(*closer)
        answer |= {"reason": asdict(why)}
        console.say(f"they part at step {step}: {why.text}", "bold")
    for cause in causes:
        console.say(f"  the runs differ in {cause}")
    return answer


def begun_together(
    folder: Path, folders: Sequence[Path], kept: Sequence[Iterable[int]], same: int, stop: int, data_dir: str | None
) -> Job:
    """Return the job that does a run's steps to `stop` from the last checkpoint, of either run, up to which they are the same."""
    begin, source = max(
        [(0, folder), *((step, f) for f, steps in zip(folders, kept, strict=True) for step in steps if step <= same)]
    )
    return replace(make_job(folder, begin, stop, data_dir), folder=source, every=True)
