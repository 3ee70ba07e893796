"""`python -m cifar_dist verify RUN`: do parts of a run again, and say whether every bit is the same."""

import random
import time
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cifar_dist.cli import command_parser
from cifar_dist.config import POSITIVE, check_bounds, option
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED
from cifar_dist.files import write_json
from cifar_dist.options import add_flags, check_output
from cifar_dist.record import checkpoint
from cifar_dist.record.folder import WEIGHTS_FILE, RunFolder
from cifar_dist.record.lines import Digests
from cifar_dist.replay.job import do, machine_notes, make_job, recorded, stretches
from cifar_dist.replay.states import kept_digests, recorded_digests


@dataclass(frozen=True)
class VerifyOptions:
    """The options of `verify`."""

    segments: int = option(3, "stretches to do again, chosen at random", must_be=POSITIVE)
    data_dir: str | None = option(None, "where downloads and decoded caches are kept (default: the run's own)")
    output: str | None = option(None, "where to write the JSON (default: verify.json in the run folder)")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_output(self.output)


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at."""

    what: str
    same: bool
    note: str = ""
    seconds: float = 0.0


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit status; raises `UserError`."""
    folder, options = read_options(argv)
    record, console = recorded(folder), Console(speaks=True)
    notes = machine_notes(record)
    for note in notes:
        console.warn(f"this machine may round otherwise: {note}")
    if not notes:
        console.say("this machine computes as the run's did, as far as is recorded")
    known, kept = recorded_digests(folder), kept_digests(folder)
    verdicts = [*check_files(folder, kept), *check_checkpoints(known, kept)]
    ends = sorted({*known, *kept})
    choice = stretches(record, [0, *kept], ends)
    if not choice:
        raise UserError(
            f"{folder} has nothing to do again: no checkpoint, and no validation with digests; let it validate once"
        )
    for begin, end in sorted(random.sample(choice, min(options.segments, len(choice)))):
        console.say(f"doing steps {begin} to {end} again", "dim")
        verdicts.append(do_again(folder, begin, end, known.get(end) or kept[end], options.data_dir))
    show(verdicts, console)
    same = all(verdict.same for verdict in verdicts)
    content = {
        "run": str(folder),
        "same": same,
        "machine": notes,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    output = Path(options.output) if options.output else folder / "verify.json"
    write_json(output, content)
    console.say(f"written to {output}")
    return FINISHED if same else FAILED


def read_options(argv: Sequence[str]) -> tuple[Path, VerifyOptions]:
    parser = command_parser("verify", usage="%(prog)s RUN [options]")
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder")
    add_flags(parser, VerifyOptions)
    given = parser.parse(argv)
    run = given.pop("run", None)
    if run is None:
        raise UserError("which run? Give its folder: python -m cifar_dist verify runs/NAME")
    return Path(run), VerifyOptions(**given)


def check_files(folder: Path, whole: Container[int]) -> list[Verdict]:
    """Say whether the kept weights are those of the best step's checkpoint."""
    best = (RunFolder(folder).summary() or {}).get("best_step")
    if best is None or best not in whole or not (folder / WEIGHTS_FILE).is_file():
        return []
    saved = checkpoint.load(checkpoint.folder_for(RunFolder(folder).checkpoints, best)).files[WEIGHTS_FILE]
    return [Verdict(f"{WEIGHTS_FILE} is that of step {best}", (folder / WEIGHTS_FILE).read_bytes() == saved)]


def check_checkpoints(known: dict[int, Digests], kept: dict[int, Digests]) -> list[Verdict]:
    """Say whether checkpoints hold what the record says of their steps."""
    return [
        Verdict(f"checkpoint {step} is what was recorded", known[step] == kept[step]) for step in kept if step in known
    ]


def do_again(folder: Path, begin: int, end: int, expected: Digests, data_dir: str | None) -> Verdict:
    job, start = make_job(folder, begin, end, data_dir), time.monotonic()
    last = do(job)[-1]
    different = [name.partition("_")[0] for name, value in expected.items() if last[name] != value]
    note = f"{' and '.join(different)} of step {end} differ" if different else ""
    return Verdict(f"steps {begin} to {end}", not different, note, round(time.monotonic() - start, 3))


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    width = max(len(verdict.what) for verdict in verdicts)
    for verdict in verdicts:
        console.say(f"{verdict.what:{width}}  {'same' if verdict.same else 'DIFFERENT'}  {verdict.note}".rstrip())
