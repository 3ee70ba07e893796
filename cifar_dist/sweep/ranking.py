"""The candidates of a sweep, each with its runs, the best first. Pure functions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cifar_dist.record.repeats import REPEATS, Point, as_text, mean_of, std_of, without


class Result(NamedTuple):
    """What a run's folder says of it."""

    status: str  # of summary.json, or "not started"
    value: float | None  # of the metric, once it is finished
    synthetic: bool = False  # trained on drawn images


@dataclass(frozen=True)
class Candidate:
    """A choice of options: its runs differ in nothing but seed and fold."""

    indices: tuple[int, ...]
    options: Point  # those of its first run, without seed and fold
    results: tuple[Result, ...]
    values: tuple[float, ...]  # one a different run: a random search may draw the same one twice

    @property
    def complete(self) -> bool:
        return all(result.value is not None for result in self.results)

    @property
    def mean(self) -> float | None:
        return mean_of(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation."""
        return std_of(self.values)

    def counts(self) -> dict[str, int]:
        """Return how many runs have each status."""
        return dict(Counter(result.status for result in self.results))


def rank(runs: Sequence[Point], results: Sequence[Result], goal: str) -> list[Candidate]:
    """Return the candidates, the best first, those that have unfinished runs last, in their own order."""
    members: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        members.setdefault(as_text(without(run, REPEATS)), []).append(index)
    candidates = [_candidate(indices, runs, results) for indices in members.values()]
    best_first = sorted(
        (candidate for candidate in candidates if candidate.complete),
        key=lambda candidate: (candidate.mean or 0.0) * (-1 if goal == "maximize" else 1),
    )
    return best_first + [candidate for candidate in candidates if not candidate.complete]


def _candidate(indices: list[int], runs: Sequence[Point], results: Sequence[Result]) -> Candidate:
    different = {as_text(runs[i]): results[i].value for i in indices}
    return Candidate(
        tuple(indices),
        without(runs[indices[0]], REPEATS),
        tuple(results[i] for i in indices),
        tuple(value for value in different.values() if value is not None),
    )
