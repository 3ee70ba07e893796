"""`report.html`, one run on one page: results, curves, classes, the images behind every count, how to run it again."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import build_model, check_model
from cifar_dist.models.flow import trace
from cifar_dist.record import curves
from cifar_dist.record.folder import PAGE_FILE, PLOTS
from cifar_dist.record.lines import Line, TrainLine
from cifar_dist.record.predictions import Predictions, read_predictions
from cifar_dist.record.reader import RunRecord, read_run
from cifar_dist.report import gallery, provenance, results
from cifar_dist.report.architecture import architecture
from cifar_dist.report.drawing import draw
from cifar_dist.report.html import ASSETS, data_url, write_page
from cifar_dist.text import percent

MOST_POINTS = 300  # of a curve of training lines: the narrowest chart, on a telephone, has no more pixels
RELOAD_S = 20
LOOKS = {
    "train": {"name": "training", "color": "var(--series-0)", "dash": ""},
    "val": {"name": "validation", "color": "var(--series-1)", "dash": "7 3"},
}
OF_TRAINING = {"lr": "learning rate", "gradient_norm": "gradient norm", "images_per_second": "images per second"}
PICTURES = {
    "training_images.png": "Training images, drawn by the seed",
    "augmented.png": "What training sees: augmented images",
    "embedding.png": "What the last layer sees: images near each other where their features are",
    "map.png": "The map: its units' weight vectors, how far they lie from their neighbours, the class each stands for, and what it wins",
}


def write_report(folder: Path, pixels: np.ndarray | None, published: float | None = None) -> Path:
    """Write a run folder's report.html and return its path.

    `pixels` (M, S, S, 3) uint8 are the images that the predictions are about, in their order; without them the page says so.
    `published` is the paper's test accuracy, in [0, 1].
    """
    record, predictions = read_run(folder), read_predictions(folder)
    assert pixels is None or (predictions and len(pixels) == len(predictions.targets)), "images of another split"
    path, pictures = folder / PAGE_FILE, {text: folder / PLOTS / name for name, text in PICTURES.items()}
    advice, command = provenance.advice(record)
    page = {
        "record": record,
        "advice": advice,
        "advice_command": command,
        "columns": gallery.COLUMNS,
        "reload_s": RELOAD_S if record.status == "running" else None,
        "tiles": results.tiles(record, published),
        "charts": charts(record.lines, published),
        "gap_opens": curves.gap_opening(curves.points(record.lines)) is not None,
        "options": provenance.options(record),
        "commands": provenance.commands(record),
        "network": network(record),
        "pictures": {text: data_url(path) for text, path in pictures.items() if path.exists()},
        **classes_and_images(record, predictions, pixels),
    }
    write_page(path, ASSETS / "report.html.j2", **page)
    return path


def classes_and_images(record: RunRecord, predictions: Predictions | None, pixels: np.ndarray | None) -> dict[str, Any]:
    """Return what the page shows of classes and of single images; None or empty for what the folder doesn't hold."""
    classes = record.dataset.get("classes") or results.class_names(record.lines)
    counts = results.count(record, predictions) if classes else None
    found: dict[str, Any] = {"classes": classes, "counts": counts, "galleries": [], "sprites": [], "strips": []}
    if counts:
        found |= {"rows": results.class_rows(counts, classes), "matrix": counts.confusion.tolist()}
    if counts and predictions:
        found["galleries"], found["sprites"] = gallery.class_galleries(predictions, pixels)
        found["strips"] = gallery.strips(predictions, pixels, classes)
    return found


def network(record: RunRecord) -> Markup | None:
    """Return a drawing of the run's model; None of one that this version can't build."""
    options, classes = record.config.get("model_options", []), record.dataset.get("classes", [])
    try:
        side = TrainConfig(epochs=1, image_size=record.config.get("image_size")).side
        return _network(str(record.config.get("model")), tuple(map(str, options)), len(classes) or 10, side)
    except (UserError, TypeError, RuntimeError):
        return None


@cache
def _network(name: str, options: tuple[str, ...], num_classes: int, side: int) -> Markup:
    check_model(name, options)  # a foreign run may ask for one that fills the memory
    with torch.random.fork_rng(devices=[]):  # pages are written while a run trains
        steps = trace(build_model(name, num_classes, options), side)
    return Markup(draw(architecture(steps), " ".join([name, *options]), side))


def charts(lines: Sequence[Line], published: float | None) -> list[dict[str, Any]]:
    """Return the page's charts as `lineChart` of charts.js takes them, JSON-ready; those without any value are left out."""
    curve = curves.points(lines)
    opening = curves.gap_opening(curve)
    marks = [{"x": opening.epoch, "label": "the gap opens"}] if opening else []
    paper = (
        [{"y": published, "label": f"the paper's test accuracy, {percent(published)}"}] if published is not None else []
    )
    comparable = bool(curve) and curve[-1].train_accuracy is not None  # a map's two losses are of different kinds

    def line(split: str, what: str) -> dict[str, Any]:
        return LOOKS[split] | {"points": [[p.epoch, getattr(p, f"{split}_{what}")] for p in curve]}

    losses = [line("train", "loss"), line("val", "loss")] if comparable else [line("train", "loss")]
    accuracies = [line("train", "accuracy"), line("val", "accuracy")]
    found = [
        _chart("Loss" if comparable else "Training loss", "loss", losses, vlines=marks),
        _chart("Accuracy", "accuracy", accuracies, format="percent", hlines=paper, vlines=marks),
    ]
    logged = [line for line in lines if line["kind"] == "train"]
    if len(logged) > len(curve):  # else they are the points above
        found += by_step(logged)
    training = _thinned(logged)
    for key, name in OF_TRAINING.items():
        points = [[line["epoch"], line.get(key)] for line in training]
        found.append(_chart(name.capitalize(), name, [{**LOOKS["train"], "name": name, "points": points}]))
    return [chart for chart in found if chart["series"]]


def by_step(training: Sequence[TrainLine]) -> list[dict[str, Any]]:
    """Return charts of the loss and accuracy that training lines hold by step, as Li and Ghasemi draw them."""
    curve, size = curves.merged(training, MOST_POINTS)
    how = "" if size == 1 else f": a point is the mean of {size} logged lines"
    wanted: tuple[tuple[str, str], ...] = (("loss", "number"), ("accuracy", "percent"))
    return [
        _chart(
            f"Training {what} by step{how}",
            what,
            [LOOKS["train"] | {"name": what, "points": [[p.step, getattr(p, f"train_{what}")] for p in curve]}],
            xLabel="step",
            format=spelled,
        )
        for what, spelled in wanted
    ]


def _chart(title: str, name: str, series: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    shown = [one for one in series if any(y is not None for _, y in one["points"])]
    return {"title": title, "xLabel": "epoch", "yLabel": name, "series": shown, **more}


def _thinned(lines: list[TrainLine]) -> list[TrainLine]:
    """Return MOST_POINTS lines at most, evenly spaced, the last one among them."""
    places = np.linspace(0, len(lines) - 1, min(MOST_POINTS, len(lines))).round().astype(int)
    return [lines[place] for place in places]
