"""What a sweep is: its options and how their values are drawn, its runs in a fixed order, their ranking. Pure functions."""

import math
import os
import re
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, Literal
from zlib import crc32

import torch

from cifar_dist.errors import UserError
from cifar_dist.options import to_words
from cifar_dist.randomness import Purpose, random_bits
from cifar_dist.record.metric import METRICS, Metric
from cifar_dist.record.repeats import Point

VARIABLE = re.compile(r"\$\{envvar:(\w+)\}")
MOST_POINTS = 100_000  # of a sweep; nobody trains as often, and what lists them takes its time
USUAL_METRIC = METRICS["val/accuracy"]


@dataclass(frozen=True)
class Parameter:
    """What one option may be: one of a list, or a number of a range."""

    distribution: str
    values: tuple[Any, ...] = ()
    weights: tuple[float, ...] = ()  # of the values; none: all alike
    low: float = 0
    high: float = 1
    q: float = 1

    def draw(self, u: float) -> Any:
        """Return the value at `u` in [0, 1)."""
        return DISTRIBUTIONS[self.distribution](self, u)

    def multiples(self) -> tuple[int, int]:
        """Return the smallest and the largest k with k * q in [low, high]; where there is none, the first is larger."""
        return math.ceil(round(self.low / self.q, 9)), math.floor(round(self.high / self.q, 9))


def _listed(p: Parameter, u: float) -> Any:
    cumulative = list(accumulate(p.weights or (1.0,) * len(p.values)))
    return p.values[bisect(cumulative, u * cumulative[-1], hi=len(p.values) - 1)]


def _int_uniform(p: Parameter, u: float) -> int:
    return int(p.low) + int(u * (p.high - p.low + 1))  # both ends included, as W&B does


def _uniform(p: Parameter, u: float) -> float:
    return _short(p, p.low + u * (p.high - p.low))


def _log_uniform_values(p: Parameter, u: float) -> float:
    return _short(p, p.low * (p.high / p.low) ** u)


def _q_uniform(p: Parameter, u: float) -> float:
    return _multiple(p, p.low + u * (p.high - p.low))


def _q_log_uniform_values(p: Parameter, u: float) -> float:
    return _multiple(p, p.low * (p.high / p.low) ** u)


def _multiple(p: Parameter, x: float) -> float:
    """Round to a multiple of q in the range."""
    low, high = p.multiples()
    k = min(max(round(x / p.q), low), high)
    return k * p.q if isinstance(p.q, int) else float(f"{k * p.q:.12g}")  # 3 * 0.1 is 0.3


def _short(p: Parameter, x: float) -> float:
    """Round to six significant digits: they fit a line, and hide the last bits, in which machines' powers differ."""
    return min(max(float(f"{x:.6g}"), p.low), p.high)


DISTRIBUTIONS: dict[str, Callable[[Parameter, float], Any]] = {
    "constant": _listed,
    "categorical": _listed,
    "int_uniform": _int_uniform,
    "uniform": _uniform,
    "q_uniform": _q_uniform,
    "log_uniform_values": _log_uniform_values,
    "q_log_uniform_values": _q_log_uniform_values,
}


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked."""

    method: Literal["grid", "random"]
    parameters: dict[str, Parameter]  # by field of TrainConfig, in the order of the file
    metric: Metric = USUAL_METRIC
    goal: Literal["maximize", "minimize"] = "maximize"
    run_cap: int | None = None
    program: str = "train.py"
    command: tuple[str, ...] = ("${interpreter}", "${program}", "${args}")

    def metric_record(self) -> dict[str, str]:
        """Return what runs are ranked by, as W&B writes it."""
        return {"name": self.metric.name, "goal": self.goal}

    def command_line(self, point: Point, interpreter: str, program: str) -> list[str]:
        """Return the command with its macros filled in; raises `UserError` for a variable that isn't set.

        Unlike W&B's, ours never leave out what is false: it is --no-x.
        """
        parts = {"${env}": ["/usr/bin/env"], "${interpreter}": [interpreter], "${program}": [program]}
        parts["${args}"] = parts["${args_no_boolean_flags}"] = to_words(point)
        return [word for item in self.command for word in parts.get(item, [VARIABLE.sub(_of_environment, item)])]


def _of_environment(macro: re.Match[str]) -> str:
    name = macro[1]
    if name not in os.environ:
        raise UserError(f"the sweep's command has {macro[0]}, but {name} is not set")
    return os.environ[name]


def list_runs(sweep: Sweep, fixed: Point, count: int | None = None, seed: int = 0) -> list[Point]:
    """Return the options of each run: points in order, each as often as it has folds to hold out.

    `fixed` takes the place of what the file says of those options. `count` points (default: run_cap; of a grid, all)
    of a grid are its first ones.
    """
    parameters = {**sweep.parameters, **{name: Parameter("constant", (value,)) for name, value in fixed.items()}}
    if sweep.metric.split == "val":  # what selects never sees the test images
        parameters.setdefault("test", Parameter("constant", (False,)))
    if "folds" in fixed and "fold" not in fixed:
        parameters.pop("fold", None)  # the file lists those of another number of folds
    count = count or sweep.run_cap
    everything = (
        math.prod(len(parameter.values) for parameter in parameters.values()) if sweep.method == "grid" else count
    )
    if everything and (number := min(everything, count or everything)) > MOST_POINTS:
        raise UserError(f"{number:,} points to try are more than {MOST_POINTS:,}; give fewer values, or --count 100")
    if sweep.method == "grid":
        points = grid(parameters)[:count]
    elif count:
        points = [random_point(parameters, seed, index) for index in range(count)]
    else:
        raise UserError("a random search has no end of its own; give run_cap: 20 in the file, or --count 20")
    return [run for point in points for run in over_folds(point)]


def grid(parameters: Mapping[str, Parameter]) -> list[Point]:
    """Return every combination; the last parameter varies fastest."""
    combinations = product(*(parameter.values for parameter in parameters.values()))
    return [dict(zip(parameters, values, strict=True)) for values in combinations]


def random_point(parameters: Mapping[str, Parameter], seed: int, index: int) -> Point:
    """Return point `index`, whose every value depends on the seed, the index and the option's own name and range only."""
    return {name: parameter.draw(unit(seed, index, name)) for name, parameter in parameters.items()}


def unit(seed: int, index: int, name: str) -> float:
    """Return a number in [0, 1), a multiple of 2**-53, that is a pure function of its arguments."""
    position = (index << 32) | crc32(name.encode())
    bits = int(random_bits(seed, Purpose.SWEEP, torch.tensor(position)))
    return ((bits >> 11) & (2**53 - 1)) * 2.0**-53


def over_folds(point: Point) -> list[Point]:
    """Return the point once for each fold, where it has folds and doesn't say which; a wrong number is found elsewhere."""
    folds = point.get("folds")
    if "fold" in point or not isinstance(folds, int) or folds < 2:
        return [point]
    return [{**point, "fold": fold} for fold in range(folds)]
