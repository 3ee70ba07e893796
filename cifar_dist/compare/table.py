"""A comparison on the terminal: a table of configurations, one of the runs that enter no mean, and what to know about them."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cifar_dist.compare.configuration import word
from cifar_dist.compare.differences import ALL, Difference, meanings
from cifar_dist.compare.groups import Comparison, value_of
from cifar_dist.compare.page import interval_text, macs_text, p_text, progress_text, spread
from cifar_dist.record.metric import METRICS
from cifar_dist.text import NONE, clock, listed, option_text, percent

NAMES = 32  # columns that a column of names has at least, where there are such names: speednet-speed94-20261128-201022
GAP = 2  # columns between two
OWN_COLUMNS = 4  # options that differ, up to which each has a column
ROWS = 40  # of a table, the others are on the page


class Layout(NamedTuple):
    """How the table of configurations is laid out."""

    own_columns: bool  # for each option that differs, else one for the name of the configuration and its folders
    stacked: bool  # intervals below means, p-values below differences, else beside them
    effort: bool  # time and compute as well


# From the widest on: the first that fits is taken, or the last.
LAYOUTS = (
    Layout(own_columns=True, stacked=False, effort=True),
    Layout(own_columns=True, stacked=False, effort=False),
    Layout(own_columns=False, stacked=False, effort=True),
    Layout(own_columns=False, stacked=False, effort=False),
    Layout(own_columns=True, stacked=True, effort=False),
    Layout(own_columns=False, stacked=True, effort=False),
)


def show(
    comparison: Comparison, differences: Sequence[Difference | None], notes: Sequence[str], width: int
) -> RenderableType:
    """Return everything the terminal says of a comparison, for so many columns."""
    few = len(comparison.differing) <= OWN_COLUMNS
    layouts = [layout for layout in LAYOUTS if few or not layout.own_columns]
    tables = ((layout, groups_table(comparison, differences, layout)) for layout in layouts)
    layout, table = next(pair for pair in tables if _least_width(pair[1]) <= width or pair[0] == layouts[-1])
    parts: list[RenderableType] = [table, ""]
    if not layout.own_columns and not _labels_say_all(comparison):
        parts += [options_table(comparison), ""]
    if comparison.unaveraged:
        parts += [unaveraged_table(comparison), ""]
    if max(len(comparison.groups), len(comparison.unaveraged)) > ROWS:
        parts.append(f"{len(comparison.groups)} configurations; those after the first {ROWS} are in the files.")
    parts += [Text(line, style="dim") for line in (caption(comparison), *meanings(differences))]
    parts += [Text(note, style="bold yellow" if note.startswith("SYNTHETIC") else "") for note in notes]
    return Stack(*parts)


def groups_table(comparison: Comparison, differences: Sequence[Difference | None], layout: Layout) -> Table:
    """Return a row for each configuration, the best first."""
    metric, several = comparison.metric, len(comparison.groups) > 1
    names = comparison.differing if layout.own_columns else ()
    table = _table()
    for name in names:
        table.add_column(name, no_wrap=True)
    table.add_column("folders" if names else "configuration, folders", overflow="fold")
    headings = [metric.name, "95 % interval", *["difference", "p over"] * several]
    for heading in ("n", *(_stacked(headings) if layout.stacked else headings), *["time", "compute"] * layout.effort):
        table.add_column(heading, justify="right", no_wrap=True)
    for group, difference in [*zip(comparison.groups, differences, strict=True)][:ROWS]:
        cells = [escape(option_text(group.options.get(name))) for name in names] or [escape(group.label)]
        cells[0] += " [bold yellow]SYNTHETIC[/]" * group.synthetic
        folders = escape(listed(run.name for run in group.counted or group.runs))
        cells = [*cells, folders] if names else [f"{cells[0]}\n[dim]  {folders}[/]"]
        numbers = [f"{metric.text(group.mean)} {spread(group.std, metric)}".rstrip(), interval_text(group, metric)]
        numbers += difference_texts(difference) * several
        cells += [str(len(group.counted)), *(_stacked(numbers) if layout.stacked else numbers)]
        cells += [clock(group.seconds), macs_text(group.macs)] * layout.effort
        table.add_row(*cells, style=None if group.counted else "dim")
    return table


def _stacked(cells: Sequence[str]) -> list[str]:
    """Return every two cells as one, the second below the first."""
    return [f"{upper}\n{lower}" for upper, lower in zip(cells[::2], cells[1::2], strict=True)]


def _least_width(table: Table) -> int:
    """Return how many columns the table needs so that nothing is broken but long names."""
    console, total = Console(), -GAP
    for column in table.columns:
        cells = (
            Measurement.get(console, console.options.update(max_width=1000), cell)
            for cell in (column.header, *column.cells)
        )
        width = max(cell.maximum for cell in cells)
        total += GAP + (width if column.no_wrap else min(width, NAMES))
    return total


def _labels_say_all(comparison: Comparison) -> bool:
    return all(
        word(name, group.options.get(name)) in group.label
        for name in comparison.differing
        for group in comparison.groups
    )


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
        title=title, title_justify="left", show_header=title is None, box=None, padding=(0, GAP, 0, 0), pad_edge=False
    )


def difference_texts(difference: Difference | None) -> list[str]:
    """Return the difference in points over all images, and its p-value with what it is over: `-8.18`, `p = 0.278, runs`."""
    if difference is None or difference.cells[ALL].delta is None:
        return [NONE, ""]
    cell = difference.cells[ALL]
    p = f"{p_text(cell.p)}, {difference.test.over}" if cell.p is not None else ""
    return [f"{100 * (cell.delta or 0.0):+.2f}" + "*" * cell.significant, p]


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
