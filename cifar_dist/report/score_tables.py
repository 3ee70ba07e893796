"""The tables that eval.py prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from cifar_dist.text import NONE, percent

Record = Mapping[str, Any]  # what eval.py writes of a set of weights


def class_table(record: Record, title: str) -> Table:
    """Return the scores of each class, and of all together: of shares the mean over classes, of counts the sum."""
    table = Table(title=escape(title), title_justify="left", pad_edge=False)
    table.add_column("class", overflow="fold")
    for name in ("images", "correct", "false\nneg.", "false\npos.", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    counts = ("images", "true_positives", "false_negatives", "false_positives")
    rows = record["per_class"]
    for name, row in rows.items():
        shares = (percent(row[share]) for share in ("precision", "recall", "f1"))
        table.add_row(escape(name), *(f"{row[count]:,}" for count in counts), *shares)
    table.add_section()
    sums = (f"{sum(row[count] for row in rows.values()):,}" for count in counts)
    means = (percent(record["mean_over_classes"][share]) for share in ("precision", "recall", "f1"))
    table.add_row("all", *sums, *means, style="bold")
    return table


def checkpoint_table(records: Sequence[Record], title: str) -> Table:
    """Return a row for each set of weights, in 80 columns; names without the folder that all have in common."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("weights", overflow="fold", min_width=12)
    heads = ("accuracy\nin %", "95 %\ninterval", "F1\nin %", "loss", "ECE\nin %", "T", "loss\nat T", "ECE\nat T")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, record in zip(last_parts([record["name"] for record in records]), records, strict=True):
        top, before, fitted = record["top"]["1"], record["calibration"], record["temperature"]
        low, high = top["interval"]
        cells = [_points(top["accuracy"]), f"{100 * low:.1f}–{100 * high:.1f}"]
        cells += [_points(record["mean_over_classes"]["f1"]), f"{before['nll']:.4f}", _points(before["ece"])]
        after = [NONE] * 3
        if fitted:
            after = [f"{fitted['value']:.3f}", f"{fitted['after']['nll']:.4f}", _points(fitted["after"]["ece"])]
        table.add_row(escape(name), *cells, *after)
    return table


def last_parts(names: Sequence[str]) -> list[str]:
    """Return paths without the folders they have in common: runs/a and runs/b -> a and b."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while len({part[: shared + 1] for part in parts}) == 1 and min(map(len, parts)) > shared + 1:
        shared += 1
    return [str(Path(*part[shared:])) for part in parts]


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


def between(interval: Sequence[float] | None) -> str:
    """(0.512, 0.598) -> 51.20 to 59.80 %, None -> –."""
    return NONE if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def top_line(record: Record) -> str:
    """Return top-k accuracies with their intervals, in one line."""
    names = {"1": "accuracy"}
    return ", ".join(
        f"{names.get(k, f'top-{k}')} {percent(top['accuracy'])} ({between(top['interval'])})"
        for k, top in record["top"].items()
    )


def calibration_line(record: Record) -> str:
    """Return what a temperature changes, or that there is none, in one line."""
    line, fitted = _calibrated(record["calibration"]), record["temperature"]
    if not fitted:
        return line
    where = f"at temperature {fitted['value']:.3f}, fitted on {fitted['fitted_on_images']:,} validation images"
    return f"{line}; {where}: {_calibrated(fitted['after'])}"


def _calibrated(bins: Mapping[str, Any]) -> str:
    return f"loss {bins['nll']:.4f}, calibration error {percent(bins['ece'])}"
