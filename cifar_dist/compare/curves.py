"""The curves of a comparison as the page draws them: few points, few digits, a mean over each group's runs."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cifar_dist.compare.groups import Comparison, Group
from cifar_dist.compare.runs import ComparedRun, CurvePoint

POINTS_A_PAGE = 30_000  # about 1 MB
POINTS_A_RUN = (25, 200)  # at least, at most
DIGITS = 5  # significant ones


def chart_data(comparison: Comparison) -> list[dict[str, Any]]:
    """Return for each group its label, the mean curve of the runs that count, and those of all its runs.

    A curve is a column for each field of `CurvePoint`. `macs_per_sample` turns samples into compute.
    """
    least, most = POINTS_A_RUN
    limit = max(least, min(most, POINTS_A_PAGE // max(1, len(comparison.runs))))
    return [
        {
            "label": group.label + " (SYNTHETIC)" * group.synthetic,
            "macs_per_sample": group.runs[0].macs_per_sample,
            "mean": columns(thinned(mean_curve(group), limit)),
            "runs": [_run(run, group, limit) for run in group.runs if run.curve],
        }
        for group in comparison.groups
    ]


def _run(run: ComparedRun, group: Group, limit: int) -> dict[str, Any]:
    counted = any(run is other for other in group.counted)
    return {"name": run.name, "status": run.record.status, "counted": counted, **columns(thinned(run.curve, limit))}


def mean_curve(group: Group) -> list[CurvePoint]:
    """Return the mean over the counted runs at each epoch that all of them have reached; none where no run counts."""
    curves = [{round(point.epoch, 6): point for point in run.curve} for run in group.counted]
    if not curves:
        return []
    epochs = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    return [CurvePoint(*map(_mean, zip(*(curve[epoch] for curve in curves), strict=True))) for epoch in epochs]


def _mean(values: Sequence[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def thinned(curve: Sequence[CurvePoint], limit: int) -> list[CurvePoint]:
    """Return at most `limit` points, evenly spaced, the first and the last among them."""
    if len(curve) <= limit:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (limit - 1))] for i in range(limit)]


def columns(curve: Sequence[CurvePoint]) -> dict[str, list[float | None]]:
    """Return a list for each field of `CurvePoint`, rounded."""
    return {
        name: [None if point[i] is None else float(f"{point[i]:.{DIGITS}g}") for point in curve]
        for i, name in enumerate(CurvePoint._fields)
    }
