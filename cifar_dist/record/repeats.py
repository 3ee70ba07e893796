"""Runs as points in the space of options: which repeat one another, what differs, and means over them."""

import json
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

Point = dict[str, Any]  # the options of one run, by field of TrainConfig; a list becomes several words

REPEATS = ("seed", "fold")  # runs that differ in these alone are ranked together


def varying(runs: Sequence[Point]) -> list[str]:
    """Return the options that are not the same in all runs."""
    names = {name: None for run in runs for name in run}  # in order, once each
    return [name for name in names if len({as_text({name: run.get(name)}) for run in runs}) > 1]


def without(point: Point, names: Iterable[str]) -> Point:
    return {name: value for name, value in point.items() if name not in names}


def as_text(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def std_of(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None of fewer than two values."""
    return stdev(values) if len(values) > 1 else None
