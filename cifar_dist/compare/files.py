"""A comparison as files for other programs: compare.json, nested, and compare.csv, a line for each run."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from cifar_dist.compare.configuration import FIELDS
from cifar_dist.compare.differences import ALL, Difference
from cifar_dist.compare.groups import Comparison, Group, value_of
from cifar_dist.compare.runs import ComparedResult, ComparedRun
from cifar_dist.scores.intervals import LEVEL
from cifar_dist.text import option_text
from cifar_dist.tracking.segments import WandbRecord

START_FACTS = ("git_commit", "device", "host", "world_size")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what text begins with that spreadsheets take for a formula


def to_json(comparison: Comparison, differences: Sequence[Difference | None], notes: Sequence[str]) -> dict[str, Any]:
    """Return the content of compare.json.

    `metric`, `baseline`, `differing` (options), `notes`; `groups`, the best first, each with `label`, `options` (those that
    differ), `runs` and `counted` (names), `n`, `mean`, `std`, `interval`, `seconds`, `macs`, `synthetic` and `difference` (to
    the baseline: `test`, `over` runs or images, and for `all` and each class `delta` and the corrected `p`); `runs`, each
    with the keys of `run_entry`.
    """
    groups = zip(comparison.groups, differences, strict=True)
    return {
        "metric": comparison.metric.name,
        "baseline": comparison.baseline.label if comparison.baseline else None,
        "synthetic": any(run.synthetic for run in comparison.runs),
        "differing": list(comparison.differing),
        "notes": list(notes),
        "groups": [_group_entry(group, comparison, difference) for group, difference in groups],
        "runs": [run_entry(run, group, comparison) for run, group in _with_groups(comparison)],
    }


def _group_entry(group: Group, comparison: Comparison, difference: Difference | None) -> dict[str, Any]:
    interval = group.interval
    return {
        "label": group.label,
        "options": {name: group.options.get(name) for name in comparison.differing},
        "synthetic": group.synthetic,
        "runs": [run.name for run in group.runs],
        "counted": [run.name for run in group.counted],
        "n": len(group.counted),
        "mean": group.mean,
        "std": group.std,
        "interval": {**interval._asdict(), "level": LEVEL} if interval else None,
        "seconds": group.seconds,
        "macs": group.macs,
        "difference": difference and {"test": difference.test.name, "over": difference.test.over, **_cells(difference)},
    }


def _cells(difference: Difference) -> dict[str, Any]:
    cells = {name: cell._asdict() for name, cell in difference.cells.items()}
    return {ALL: cells.pop(ALL), "classes": cells}


def run_entry(run: ComparedRun, group: Group | None, comparison: Comparison) -> dict[str, Any]:
    """Return what there is to say of a run, without its options."""
    record = run.record
    start = record.starts[-1] if record.starts else {}
    return {
        "name": run.name,
        "path": str(record.path),
        "source": "wandb" if isinstance(record, WandbRecord) else "folder",
        "group": group and group.label,
        "counted": group is not None and any(run is other for other in group.counted),
        "status": record.status,
        "problem": record.problem,
        "synthetic": run.synthetic,
        "dataset": record.dataset.get("name"),
        "seed": run.config.get("seed"),
        "fold": run.config.get("fold"),
        "step": run.step,
        "total_steps": run.total_steps,
        "seconds": run.seconds,
        "samples": run.samples,
        "macs": run.macs,
        "value": value_of(run, comparison.metric),
        "results": {split: _result(result) for split, result in run.results.items()},
        **{name: start.get(name) for name in START_FACTS},
    }


def _result(result: ComparedResult) -> dict[str, Any]:
    return {
        name: result.get(name) for name in ("accuracy", "top2_accuracy", "loss", "num_images", "per_class_accuracy")
    }


def to_csv(comparison: Comparison) -> str:
    """Return the content of compare.csv: for each run its entry, its results (`test/accuracy`, `test/class/cat`), its options."""
    rows = [_flat(run, run_entry(run, group, comparison)) for run, group in _with_groups(comparison)]
    names = dict.fromkeys(name for row in rows for name in row)
    options = [name for name in names if name.startswith("option/")]
    results = [name for name in names if "/" in name and name not in options]
    order = [name for name in names if name not in {*results, *options}] + results + options
    text = io.StringIO()
    writer = csv.DictWriter(text, order, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(run: ComparedRun, entry: dict[str, Any]) -> dict[str, Any]:
    row = {name: value for name, value in entry.items() if name not in ("results", "seed", "fold")}
    for split, result in entry["results"].items():
        classes = result.pop("per_class_accuracy") or {}
        row |= {f"{split}/{name}": value for name, value in result.items()}
        row |= {f"{split}/class/{name}": value for name, value in classes.items()}
    row |= {f"option/{name}": "" if (value := run.config.get(name)) is None else option_text(value) for name in FIELDS}
    return {name: _cell(value) for name, value in row.items()}


def _cell(value: Any) -> Any:
    """Return what a table has for a value: a spreadsheet would run other people's text that begins like a formula."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value != "-" and value.startswith(FORMULA) else value


def _with_groups(comparison: Comparison) -> list[tuple[ComparedRun, Group | None]]:
    pairs: list[tuple[ComparedRun, Group | None]] = [(run, group) for group in comparison.groups for run in group.runs]
    return pairs + [(run, None) for run in comparison.ungrouped]
