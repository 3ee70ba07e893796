"""A search as heat maps: the metric over every two of its options, the mean over all others. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cifar_dist.record.repeats import mean_of
from cifar_dist.text import option_text

LEAST_FILLED = 0.5  # of a map's cells: a random search's two options rarely meet in more, and such a map shows little
MOST_VALUES = 24  # of an option: more can't be read
MOST_MAPS = 12


@dataclass(frozen=True)
class HeatMap:
    """A metric over two options."""

    row_name: str
    column_name: str
    rows: tuple[str, ...]  # the values of the first option as people read them, numbers from small to large
    columns: tuple[str, ...]
    means: tuple[tuple[float | None, ...], ...]  # one a cell; None where nothing was measured
    counts: tuple[tuple[int, ...], ...]  # of configurations that enter a mean
    averaged: tuple[str, ...]  # the options that also differ

    @property
    def note(self) -> str:
        """Say what a cell's number is a mean over."""
        most = max(count for row in self.counts for count in row)
        if not self.averaged:
            return "a cell is one configuration" if most == 1 else f"a cell is the mean of up to {most} configurations"
        return f"a cell is the mean over {', '.join(self.averaged)}: up to {most} configurations"

    def best(self, maximize: bool) -> tuple[int, int]:
        """Return row and column of the best mean, the first of equal ones."""
        places = [(i, j) for i, row in enumerate(self.means) for j, mean in enumerate(row) if mean is not None]
        return min(places, key=lambda place: (self.means[place[0]][place[1]] or 0.0) * (-1 if maximize else 1))


def heat_maps(measured: Sequence[tuple[Mapping[str, Any], float | None]], names: Iterable[str]) -> list[HeatMap]:
    """Return a map for every two of the options `names` whose values meet in most cells, MOST_MAPS at most.

    `measured` are configurations: options by name, and the metric's mean, None where it isn't known. Each counts once.
    """
    known = [(options, mean) for options, mean in measured if mean is not None]
    values = {name: _ordered([options.get(name) for options, _ in known]) for name in names}
    chosen = [name for name, some in values.items() if 2 <= len(some) <= MOST_VALUES]
    found = []
    for row_name, column_name in combinations(chosen, 2):
        cells: dict[tuple[str, str], list[float]] = {}
        for options, mean in known:
            place = option_text(options.get(row_name)), option_text(options.get(column_name))
            cells.setdefault(place, []).append(mean)
        rows, columns = values[row_name], values[column_name]
        if len(cells) < LEAST_FILLED * len(rows) * len(columns):
            continue
        means = tuple(tuple(mean_of(cells.get((row, column), [])) for column in columns) for row in rows)
        counts = tuple(tuple(len(cells.get((row, column), [])) for column in columns) for row in rows)
        others = tuple(name for name, some in values.items() if name not in (row_name, column_name) and len(some) > 1)
        found.append(HeatMap(row_name, column_name, rows, columns, means, counts, others))
    return found[:MOST_MAPS]


def _ordered(values: Sequence[Any]) -> tuple[str, ...]:
    """Return the different values as text: numbers by size, before anything else in the order of appearance."""
    different = {option_text(value): value for value in values}

    def size(text: str) -> float:
        value = different[text]
        return value if isinstance(value, int | float) and not isinstance(value, bool) else float("inf")

    return tuple(sorted(different, key=size))
