"""A comparison on the terminal: a table of configurations, one of the runs that enter no mean, and what to know about them."""

from collections.abc import Sequence

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cifar_dist.compare.differences import ALL, Difference
from cifar_dist.compare.groups import Comparison, value_of
from cifar_dist.compare.page import interval_text, macs_text, p_text, progress_text, spread
from cifar_dist.record.metric import METRICS
from cifar_dist.text import clock, listed, option_text, percent

WIDE = 110  # columns of a terminal from which time and compute have room
OWN_COLUMNS = 4  # options that differ, up to which each has a column
ROWS = 40  # of a table, the others are on the page


def show(
    comparison: Comparison, differences: Sequence[Difference | None], notes: Sequence[str], width: int
) -> RenderableType:
    """Return everything the terminal says of a comparison, for so many columns."""
    own_columns = len(comparison.differing) <= OWN_COLUMNS
    parts: list[RenderableType] = [groups_table(comparison, differences, own_columns, width >= WIDE), ""]
    if comparison.differing and not own_columns:
        parts += [options_table(comparison), ""]
    if comparison.unaveraged:
        parts += [unaveraged_table(comparison), ""]
    if max(len(comparison.groups), len(comparison.unaveraged)) > ROWS:
        parts.append(f"{len(comparison.groups)} configurations; those after the first {ROWS} are in the files.")
    parts += [Text(caption(comparison), style="dim")]
    parts += [Text(note, style="bold yellow" if note.startswith("SYNTHETIC") else "") for note in notes]
    return Stack(*parts)


def groups_table(
    comparison: Comparison, differences: Sequence[Difference | None], own_columns: bool, wide: bool
) -> Table:
    """Return a row for each configuration, the best first; where few options differ, each has a column."""
    metric, several = comparison.metric, len(comparison.groups) > 1
    table = _table()
    names = comparison.differing if own_columns else ()
    for name in (*(names or ("configuration",)), "folders"):
        table.add_column(name, overflow="fold")
    for heading in ("n", metric.name, "95 % interval", *["difference"] * several, *["time", "compute"] * wide):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, difference in [*zip(comparison.groups, differences, strict=True)][:ROWS]:
        cells = [escape(option_text(group.options.get(name))) for name in names] or [escape(group.label)]
        cells[0] += " [bold yellow]SYNTHETIC[/]" * group.synthetic
        cells.append(escape(listed(run.name for run in group.counted or group.runs)))
        cells += [str(len(group.counted)), f"{metric.text(group.mean)} {spread(group.std, metric)}".rstrip()]
        cells += [interval_text(group, metric), *[difference_text(difference)] * several]
        if wide:
            cells += [clock(group.seconds), macs_text(group.macs)]
        table.add_row(*cells, style=None if group.counted else "dim")
    return table


def options_table(comparison: Comparison) -> Table:
    """Return what differs: all of it for the first configuration, and for the others what they have otherwise."""
    table = _table(title="what differs")
    first, *others = comparison.groups
    for group in (first, *others[: ROWS - 1]):
        names = [
            name
            for name in comparison.differing
            if group is first or group.options.get(name) != first.options.get(name)
        ]
        options = ", ".join(f"{name} {option_text(group.options.get(name))}" for name in names)
        table.add_row(escape(group.label), escape(options))
    return table


def caption(comparison: Comparison) -> str:
    """Return what the columns mean."""
    text = "Mean ± std over n runs; interval: Student's t, for n = 1 Wilson's over its images"
    if comparison.baseline and len(comparison.groups) > 1:
        text += f"; difference: to {comparison.baseline.label}, in points, * p < 0.05"
    return f"{text}."


def _table(title: str | None = None) -> Table:
    return Table(
        title=title, title_justify="left", show_header=title is None, box=None, padding=(0, 2, 0, 0), pad_edge=False
    )


def difference_text(difference: Difference | None) -> str:
    """Return the difference in points over all images and its p-value: `-8.18, p = 0.278`."""
    if difference is None or difference.cells[ALL].delta is None:
        return "–"
    cell = difference.cells[ALL]
    return ", ".join(filter(None, [f"{100 * (cell.delta or 0.0):+.2f}", p_text(cell.p)])) + "*" * cell.significant


def unaveraged_table(comparison: Comparison) -> Table:
    """Return a row for each run that enters no mean."""
    table = _table()
    table.add_column("left out", overflow="fold")
    table.add_column("status")
    table.add_column("progress")
    table.add_column("validation", justify="right", no_wrap=True)
    table.add_column("problem", overflow="fold")
    for run in comparison.unaveraged[:ROWS]:
        val = value_of(run, METRICS["val/accuracy"])
        name = escape(run.name) + " [bold yellow]SYNTHETIC[/]" * run.synthetic
        style = {"running": "green", "finished": ""}.get(run.record.status, "yellow")
        table.add_row(
            name, Text(run.record.status, style), progress_text(run), percent(val), escape(run.record.problem)
        )
    return table
