"""The comparison's page: its tables as text, its curves as data, one file without outside parts."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cifar_dist.compare.configuration import LAST
from cifar_dist.compare.curves import chart_data
from cifar_dist.compare.differences import Cell, Difference, meanings
from cifar_dist.compare.groups import Comparison, Group, repeat_of, value_of
from cifar_dist.compare.runs import ComparedRun
from cifar_dist.record.folder import PAGE_FILE
from cifar_dist.record.metric import METRICS, Metric
from cifar_dist.report.heat import HeatMap, heat_maps
from cifar_dist.report.html import write_page
from cifar_dist.text import NONE, SHOWN, clock, option_text, percent

TEMPLATE = Path(__file__).parent / "assets/compare.html.j2"
Shown = dict[str, Any]  # what a cell shows (text), sorts by (value), and is styled by


def write_comparison_page(
    path: Path,
    comparison: Comparison,
    differences: Sequence[Difference | None],
    notes: Sequence[str],
    reload_s: float | None = None,
) -> None:
    """Write the page; with `reload_s` it reads itself again as often."""
    tested = [difference for difference in differences if difference]
    write_page(
        path,
        TEMPLATE,
        comparison=comparison,
        metric=comparison.metric.name,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        reload_s=reload_s,
        listed=SHOWN,
        synthetic=any(run.synthetic for run in comparison.runs),
        notes=[note for note in notes if not note.startswith("SYNTHETIC")],
        groups=[
            group_row(group, difference, comparison, path.parent)
            for group, difference in zip(comparison.groups, differences, strict=True)
        ],
        classes=list(tested[0].cells) if tested else [],
        meanings=meanings(differences),
        unaveraged=[run_row(run, comparison.metric, path.parent) for run in comparison.unaveraged],
        runs=[
            (run_row(run, comparison.metric, path.parent), group.label)
            for group in comparison.groups
            for run in group.runs
        ],
        charts=chart_data(comparison),
        heat=[heat_table(one, comparison.metric) for one in searched(comparison)],
    )


def searched(comparison: Comparison) -> list[HeatMap]:
    """Return the metric over every two options in which the configurations differ and that somebody may have searched."""
    names = [name for name in comparison.differing if name not in LAST]
    return heat_maps([(group.options, group.mean) for group in comparison.groups], names)


def heat_table(one: HeatMap, metric: Metric) -> Shown:
    """Return a heat map as a table: each cell with its number, and how far it lies between the least and the largest, in [0, 1]."""
    means = [mean for row in one.means for mean in row if mean is not None]
    low, span = min(means), (max(means) - min(means)) or 1.0
    best = one.best(maximize=metric.is_share)
    return {
        "map": one,
        "cells": [
            [
                {
                    "text": "" if mean is None else metric.text(mean),
                    "depth": None if mean is None else round((mean - low) / span, 3),
                    "best": (i, j) == best,
                }
                for j, mean in enumerate(row)
            ]
            for i, row in enumerate(one.means)
        ],
    }


def group_row(group: Group, difference: Difference | None, comparison: Comparison, here: Path) -> Shown:
    metric = comparison.metric
    return {
        "label": group.label,
        "folders": [run_row(run, metric, here) for run in group.counted or group.runs],
        "synthetic": group.synthetic,
        "is_baseline": group is comparison.baseline,
        "options": [option_cell(group.options.get(name)) for name in comparison.differing],
        "n": len(group.counted),
        "mean": number_cell(group.mean, metric.text(group.mean)),
        "std": number_cell(group.std, spread(group.std, metric)),
        "interval": (interval := interval_text(group, metric)),
        "over": {"t": f"{len(group.counted)} runs", "wilson": "images"}[group.interval.method]
        if group.interval and interval != NONE
        else "",
        "runs": counts_text(group),
        "time": number_cell(group.seconds, clock(group.seconds)),
        "macs": number_cell(group.macs, macs_text(group.macs)),
        "test": difference.test if difference else None,
        "deltas": {name: delta_cell(cell) for name, cell in difference.cells.items()} if difference else {},
    }


def run_row(run: ComparedRun, metric: Metric, here: Path) -> Shown:
    """Return what is shown of a run; its own page is linked from a page in the folder `here`, where there is one."""
    page = run.record.path / PAGE_FILE
    value, val = value_of(run, metric), value_of(run, METRICS["val/accuracy"])
    return {
        "name": run.name,
        "path": str(run.record.path),
        "page": quote(os.fsencode(os.path.relpath(page, here))) if page.is_file() else "",
        "status": run.record.status,
        "problem": run.record.problem,
        "synthetic": run.synthetic,
        "repeat": repeat_of(run) if "seed" in run.config else "",
        "progress": progress_text(run),
        "value": number_cell(value, metric.text(value)),
        "val": number_cell(val, percent(val)),
        "time": number_cell(run.seconds, clock(run.seconds)),
    }


def number_cell(value: float | None, text: str) -> Shown:
    return {"text": text, "value": "" if value is None else value}


def option_cell(value: Any) -> Shown:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"text": option_text(value), "value": value if number else None, "number": number}


def delta_cell(cell: Cell) -> Shown:
    """Return a difference in points; darker the larger it is, up to 10 points."""
    strength = 0.0 if cell.delta is None else round(min(1.0, abs(cell.delta) / 0.1) * 0.4, 3)
    return {
        **number_cell(cell.delta, "–" if cell.delta is None else f"{100 * cell.delta:+.2f}" + "*" * cell.significant),
        "significant": cell.significant,
        "better": (cell.delta or 0.0) > 0,
        "strength": strength,
        "p": p_text(cell.p),
    }


def spread(std: float | None, metric: Metric) -> str:
    """Return a standard deviation in the metric's unit: ± 1.68 (points) or ± 0.0210."""
    return "" if std is None else f"± {100 * std:.2f}" if metric.is_share else f"± {std:.4f}"


def interval_text(group: Group, metric: Metric) -> str:
    """Return the ends of the interval: 56.95 – 65.29 (%) or 1.1024 – 1.1580; none where it holds values that can't be."""
    if not (interval := group.interval):
        return NONE
    if metric.is_share and not 0 <= interval.low <= interval.high <= 1:  # of two runs, mostly: it says nothing
        return NONE
    return " – ".join(f"{100 * end:.2f}" if metric.is_share else f"{end:.4f}" for end in interval[:2])


def counts_text(group: Group) -> str:
    """Return how many of the group's runs have each status: `3 finished, 1 running`."""
    statuses = [run.record.status for run in group.runs]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def progress_text(run: ComparedRun) -> str:
    """Return how far a run came: `620 of 1,760, 35 %`."""
    if not run.total_steps:
        return f"{run.step:,} steps"
    return f"{run.step:,} of {run.total_steps:,}, {100 * run.step / run.total_steps:.0f} %"


def p_text(p: float | None) -> str:
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def macs_text(macs: float | None) -> str:
    """4.4e11 -> 0.44 T."""
    return "–" if macs is None else f"{macs / 1e12:.3g} T" if macs < 1e15 else f"{macs / 1e15:.3g} P"
