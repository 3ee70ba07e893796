"""`python -m cifar_dist compare PATH...`: runs side by side, on the terminal, as a page and as data; once or as they go on."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from cifar_dist.cli import command_parser
from cifar_dist.compare.differences import differences
from cifar_dist.compare.files import to_csv, to_json
from cifar_dist.compare.groups import compare
from cifar_dist.compare.notes import notes
from cifar_dist.compare.page import write_comparison_page
from cifar_dist.compare.runs import ComparedRun
from cifar_dist.compare.sources import Reader, Source, find_runs
from cifar_dist.compare.table import show
from cifar_dist.config import option
from cifar_dist.console import Console, Terminal
from cifar_dist.errors import UserError, lookup
from cifar_dist.exits import FINISHED
from cifar_dist.files import write_atomically, write_json
from cifar_dist.options import add_flags
from cifar_dist.record.metric import METRICS

FILES = ("compare.html", "compare.csv", "compare.json")
FOLLOW_S = 3.0  # between two looks at the runs
NEXT_S = 30.0  # after the last run has ended, in which a sweep's next one may begin


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The options of `compare`."""

    metric: str | None = option(
        None, f"what ranks, one of {', '.join(METRICS)} (default: test/accuracy, or val/accuracy if nothing was tested)"
    )
    baseline: str | None = option(
        None, "the configuration the others are measured against, or one of its runs (default: the best)"
    )
    output: str | None = option(
        None, f"folder for {', '.join(FILES)} (default: comparison, in the folder that holds the runs)"
    )
    follow: bool = option(
        False, f"look again every {FOLLOW_S:g} s, until none has been running for {NEXT_S:g} s, or Ctrl-C"
    )


def main(argv: Sequence[str]) -> int:
    """Compare the runs and return the exit status; raises `UserError`."""
    paths, options = read_options(argv)
    reader = Reader()
    sources = find_runs(paths)
    output = Path(options.output) if options.output else default_output(sources)
    runs = reader.read(sources)
    if options.follow:
        runs = follow(paths, runs, reader, options, output)
    rich = Terminal()
    rich.print(report(runs, options, output, rich.width))
    Console(speaks=True).say("written: " + ", ".join(str(output / name) for name in FILES))
    return FINISHED


def read_options(argv: Sequence[str]) -> tuple[list[str], CompareOptions]:
    """Return the paths and the options; raises `UserError`."""
    parser = command_parser("compare", usage="%(prog)s [PATH ...] [options]")
    what = "a run folder, W&B's folder of an offline run, or a folder of them (default: runs)"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=what)
    add_flags(parser, CompareOptions)
    given = parser.parse(argv)
    paths = given.pop("paths")
    options = CompareOptions(**given)
    if options.metric is not None:
        lookup(METRICS, options.metric, "--metric")
    return paths or ["runs"], options


def default_output(sources: Sequence[Source]) -> Path:
    """Return a folder beside the runs; of W&B's, beside the `wandb` folder they are in."""
    parents = [source.paths[0].parent for source in sources]
    homes = [parent.parent if parent.name == "wandb" else parent for parent in parents]
    common = Path(os.path.commonpath(homes)) / "comparison"
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common


def report(
    runs: Sequence[ComparedRun], options: CompareOptions, output: Path, width: int, reload_s: float | None = None
) -> RenderableType:
    """Compare, write the files and return what the terminal shows; raises `UserError`."""
    comparison = compare(runs, options.metric, options.baseline)
    found, sentences = differences(comparison), notes(comparison)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_comparison_page(output / "compare.html", comparison, found, sentences, reload_s)
        write_atomically(output / "compare.csv", to_csv(comparison).encode(errors="replace"))
        write_json(output / "compare.json", to_json(comparison, found, sentences))
    except OSError as error:
        raise UserError(f"can't write to {output}: {error.strerror}; choose another folder with --output") from None
    return show(comparison, found, sentences, width)


def follow(
    paths: Sequence[str], runs: list[ComparedRun], reader: Reader, options: CompareOptions, output: Path
) -> list[ComparedRun]:
    """Show the comparison anew whenever a run has changed, until none has been running for `NEXT_S`, or Ctrl-C.

    Returns the runs as they were last. What is shown goes away again.
    """
    rich, shown = Terminal(), list[ComparedRun]()
    last_running = time.monotonic() if is_live(runs) else -NEXT_S
    footer = Text(f"looking again every {FOLLOW_S:g} s, as {output / FILES[0]} does; Ctrl-C ends it", "bold")
    with suppress(KeyboardInterrupt), Live(console=rich, auto_refresh=False, transient=True) as screen:
        while is_live(runs) or time.monotonic() - last_running < NEXT_S:
            if list(map(id, runs)) != list(map(id, shown)):
                content = report(runs, options, output, rich.width, reload_s=FOLLOW_S)
                screen.update(Stack(footer, content), refresh=True)  # in this order: what is too long is cut below
                shown = runs
            if is_live(runs):
                last_running = time.monotonic()
            time.sleep(FOLLOW_S)
            runs = reader.read(find_runs(paths))
    return runs


def is_live(runs: Sequence[ComparedRun]) -> bool:
    return any(run.record.status == "running" for run in runs)
