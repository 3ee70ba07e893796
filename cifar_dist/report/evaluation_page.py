"""`eval-SPLIT.html`: what eval.py measured of one set of weights or several, on one page that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_dist.report.html import ASSETS, data_url, write_page
from cifar_dist.report.results import Tile
from cifar_dist.report.score_plots import draw_evaluation
from cifar_dist.report.score_tables import between
from cifar_dist.text import percent

Record = Mapping[str, Any]  # what eval.py writes of a set of weights
PICTURES = {
    "reliability": "Reliability: how often the model is right where it is as sure",
    "classes": "Precision, recall and F1 of each class",
}


def write_evaluation(path: Path, records: Sequence[Record]) -> None:
    """Write the page and, into folders beside it, the pictures of each record."""
    parts = [_part(record, folder) for record, folder in zip(records, picture_folders(path, len(records)), strict=True)]
    write_page(
        path, ASSETS / "evaluation.html.j2", records=records, parts=parts, charts=charts(records), between=between
    )


def picture_folders(page: Path, number: int) -> list[Path]:
    """Return where the pictures of so many records go: eval-test-plots, or eval-test-plots-1 and so on."""
    names = [f"{page.stem}-plots"] if number == 1 else [f"{page.stem}-plots-{i + 1}" for i in range(number)]
    return [page.with_name(name) for name in names]


def _part(record: Record, folder: Path) -> dict[str, Any]:
    classes = list(record["per_class"])
    drawn = draw_evaluation(record, classes, folder, title_of(record))
    return {
        "record": record,
        "tiles": tiles(record),
        "classes": classes,
        "corruptions": by_corruption(record),
        "matrix": record["confusion_matrix"],
        "pictures": {text: data_url(drawn[name]) for name, text in PICTURES.items()},
    }


def charts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the curves of accuracy over severity as `lineChart` of charts.js takes them, one chart a record that has any."""
    found = []
    for record in records:
        series = [
            {"name": name, "points": [[row["severity"], row["accuracy"]] for row in rows]}
            for name, rows in by_corruption(record).items()
            if len(rows) > 1
        ]
        if series:
            clean = {"y": record["accuracy"], "label": f"as they are, {percent(record['accuracy'])}"}
            look = {"format": "percent", "xLabel": "severity", "yLabel": "accuracy", "hlines": [clean]}
            found.append({"name": record["name"], "series": series, **look})
    return found


def by_corruption(record: Record) -> dict[str, list[Record]]:
    """Return the rows of each corruption, in the order of severity; empty without any."""
    found: dict[str, list[Record]] = {}
    for row in (record["corruptions"] or {}).get("sets", ()):
        found.setdefault(row["name"], []).append(row)
    return found


def title_of(record: Record) -> str:
    """Return what was evaluated, in one line; for a picture's head."""
    images = {"test": "test images", "val": "validation images"}[record["split"]]
    synthetic = ", SYNTHETIC DATA" if record["synthetic"] else ""
    return f"{record['about']['model']}, {record['num_images']:,} {images} of {record['dataset']}{synthetic}"


def tiles(record: Record) -> list[Tile]:
    """Return the numbers at the head of the page."""
    names = {"1": "accuracy"}
    found = [
        Tile(names.get(k, f"top-{k} accuracy"), percent(top["accuracy"]), f"95 % interval {between(top['interval'])}")
        for k, top in record["top"].items()
    ]
    mean, before, fitted = record["mean_over_classes"], record["calibration"], record["temperature"]
    note = f"mean over classes; precision {percent(mean['precision'])}, recall {percent(mean['recall'])}"
    found.append(Tile("F1", percent(mean["f1"]), note))
    at = f"{fitted['after']['nll']:.4f} after temperature scaling" if fitted else "nats per image"
    found.append(Tile("negative log-likelihood", f"{before['nll']:.4f}", at))
    at = (
        f"{percent(fitted['after']['ece'])} after temperature scaling" if fitted else "|accuracy − confidence|, 15 bins"
    )
    found.append(Tile("calibration error", percent(before["ece"]), at))
    if fitted:
        note = f"fitted on {fitted['fitted_on_images']:,} validation images"
        found.append(Tile("temperature", f"{fitted['value']:.3f}", note))
    return found
