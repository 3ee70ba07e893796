"""Runs grouped by configuration, what differs between the groups, and which runs count. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cifar_dist.compare.configuration import COMMIT, DATA, differing_options, effective_options, labels
from cifar_dist.compare.runs import ComparedRun
from cifar_dist.compare.statistics import mean_interval
from cifar_dist.errors import UserError, lookup, unknown
from cifar_dist.record.metric import METRICS, Metric
from cifar_dist.record.repeats import REPEATS, as_text, mean_of, std_of
from cifar_dist.scores.intervals import Interval, wilson_interval


@dataclass(frozen=True)
class Group:
    """Runs of one configuration: they differ in seed and fold, and in how the work was done."""

    options: dict[str, Any]  # those that decide the numbers
    runs: tuple[ComparedRun, ...]
    counted: tuple[ComparedRun, ...]  # finished, measured, and each seed and fold once: what is averaged
    metric: Metric
    label: str = ""

    @cached_property
    def values(self) -> list[float]:
        return [value for run in self.counted if (value := value_of(run, self.metric)) is not None]

    @cached_property
    def mean(self) -> float | None:
        return mean_of(self.values)

    @cached_property
    def std(self) -> float | None:
        """The sample standard deviation."""
        return std_of(self.values)

    @cached_property
    def interval(self) -> Interval | None:
        """Student's t over runs, or Wilson's over the images of a single one; None for a single loss."""
        values = self.values
        if len(values) > 1:
            return mean_interval(values)
        images = self.counted[0].results[self.metric.split].get("num_images") if values else None
        return wilson_interval(values[0], images) if images and self.metric.is_share else None

    @property
    def synthetic(self) -> bool:
        return any(run.synthetic for run in self.runs)

    @property
    def seconds(self) -> float | None:
        """Mean over the counted runs."""
        return mean_of(run.seconds for run in self.counted)

    @property
    def macs(self) -> float | None:
        """Mean over the counted runs."""
        return mean_of(run.macs for run in self.counted)

    def facts(self, name: str) -> list[Any]:
        """Return what the starts of the counted runs, or of all where none counts, say of `name`: each value once."""
        runs = self.counted or self.runs
        return list(dict.fromkeys(start.get(name) for run in runs for start in run.record.starts if start.get(name)))


@dataclass(frozen=True)
class Comparison:
    """All groups, the best first, and the runs that could not be grouped."""

    metric: Metric
    groups: tuple[Group, ...]
    differing: tuple[str, ...]  # the options whose values are not the same in all groups
    ungrouped: tuple[ComparedRun, ...]  # broken, without a configuration
    baseline: Group | None

    @property
    def runs(self) -> list[ComparedRun]:
        return [run for group in self.groups for run in group.runs] + list(self.ungrouped)

    @property
    def unaveraged(self) -> list[ComparedRun]:
        """Return the runs that enter no mean."""
        counted = {id(run) for group in self.groups for run in group.counted}
        return [run for run in self.runs if id(run) not in counted]


def compare(runs: Sequence[ComparedRun], metric_name: str | None = None, baseline: str | None = None) -> Comparison:
    """Group the runs by configuration and rank the groups by the metric.

    By default test/accuracy, or val/accuracy where no finished run was tested; the two are never mixed. The baseline is a
    group's label or the name of one of its runs, by default the best group. Raises `UserError`.
    """
    metric = choose_metric(runs, metric_name)
    grouped = group_by_configuration([run for run in runs if run.config], metric)
    sign = -1 if metric.is_share else 1
    grouped.sort(key=lambda group: (group.mean is None, sign * (group.mean or 0.0)))
    options = [group.options for group in grouped]
    differing = differing_options(options)
    groups = [replace(group, label=label) for group, label in zip(grouped, labels(options, differing), strict=True)]
    return Comparison(
        metric=metric,
        groups=tuple(groups),
        differing=tuple(differing),
        ungrouped=tuple(run for run in runs if not run.config),
        baseline=find_baseline(groups, baseline),
    )


def choose_metric(runs: Iterable[ComparedRun], name: str | None) -> Metric:
    if name is not None:
        return lookup(METRICS, name, "metric")
    finished = [run for run in runs if run.record.status == "finished"]
    tested = any("test" in run.results for run in finished)
    return METRICS["test/accuracy" if tested or not finished else "val/accuracy"]


def find_baseline(groups: Sequence[Group], name: str | None) -> Group | None:
    """Return the group the others are measured against; None where no run counts. Raises `UserError`."""
    with_values = [group for group in groups if group.counted]
    if name is None:
        return with_values[0] if with_values else None
    for group in groups:
        if name == group.label or name in (run.name for run in group.runs):
            if group.counted:
                return group
            raise UserError(f"--baseline {name}: no run of that group has finished with this metric; choose another")
    raise unknown("--baseline", name, [group.label for group in groups])


def value_of(run: ComparedRun, metric: Metric) -> float | None:
    return metric.of(run.results[metric.split]) if metric.split in run.results else None


def group_by_configuration(runs: Sequence[ComparedRun], metric: Metric) -> list[Group]:
    """Return groups of runs whose configuration and data are the same. If all are, code commits make groups."""
    names = data_names(runs)
    options = [{**effective_options(run.config), DATA: names[_fingerprint(run)]} for run in runs]
    if len({as_text(option) for option in options}) == 1:
        commits = [run.record.starts[-1].get("git_commit") if run.record.starts else None for run in runs]
        if len(set(commits)) > 1:
            options = [
                {**option, COMMIT: (commit or "unknown")[:8]} for option, commit in zip(options, commits, strict=True)
            ]
    members: dict[str, list[int]] = {}
    for index, option in enumerate(options):
        members.setdefault(as_text(option), []).append(index)
    return [_group([runs[i] for i in indices], options[indices[0]], metric) for indices in members.values()]


def _group(runs: Sequence[ComparedRun], options: dict[str, Any], metric: Metric) -> Group:
    counted: dict[str, ComparedRun] = {}
    for run in runs:
        if run.record.status == "finished" and value_of(run, metric) is not None:
            counted.setdefault(repeat_of(run), run)  # a second run of a seed is no independent experiment
    return Group(options, tuple(runs), tuple(counted.values()), metric)


def repeat_of(run: ComparedRun) -> str:
    """Return which repetition of its configuration a run is: `seed 1, fold 0`."""
    said = ", ".join(f"{name} {run.config[name]}" for name in REPEATS if run.config.get(name) is not None)
    return said or str(run.record.path)


def _fingerprint(run: ComparedRun) -> str:
    dataset = run.record.dataset
    return str(dataset.get("fingerprint") or dataset.get("name") or run.config.get(DATA))


def data_names(runs: Iterable[ComparedRun]) -> dict[str, str]:
    """Return what to call each data set, by fingerprint: its name, and more where several have the same."""
    names: dict[str, str] = {}
    for run in runs:
        fingerprint, name = _fingerprint(run), str(run.record.dataset.get("name") or run.config.get(DATA))
        if fingerprint not in names:
            names[fingerprint] = f"{name} ({fingerprint[:8]})" if name in names.values() else name
    return names
