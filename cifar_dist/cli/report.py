"""`python -m cifar_dist report RUN...`: make the pages and pictures of runs anew, from what is in their folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cifar_dist.cli import command_parser
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.record.folder import PLOTS, WEIGHTS_FILE
from cifar_dist.record.predictions import Predictions, read_predictions
from cifar_dist.record.reader import RunRecord, is_run, not_a_run, read_run, runs_in
from cifar_dist.record.training_images import read_training_images
from cifar_dist.report.class_plots import describe
from cifar_dist.report.embedding import MOST_IMAGES, check_installed, choose, draw_embedding, embed, last_features
from cifar_dist.report.images import load_pixels
from cifar_dist.report.page import write_report
from cifar_dist.report.plots import draw_map, draw_pictures
from cifar_dist.report.provenance import published_accuracy
from cifar_dist.text import reason
from cifar_dist.training.weights import load_weights, weights_path


def main(argv: Sequence[str]) -> int:
    """Make the page and pictures of every run named, and return the exit status; raises `UserError`."""
    parser = command_parser("report")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or folders of runs")
    parser.add_argument(
        "--data-dir",
        help="where downloads and decoded caches are kept, or made (default: the run's own)",
    )
    what = f"also draw the features of {MOST_IMAGES:,} evaluated images as points of a plane (t-SNE; needs the data)"
    parser.add_argument("--embedding", action="store_true", help=what)
    options = parser.parse(argv)
    if options["embedding"]:
        check_installed()
    given = [Path(run) for run in options["runs"]]
    folders = [folder for path in given for folder in ([path] if is_run(path) else runs_in(path) or [path])]
    if not folders:
        raise UserError("which runs? Give their folders: python -m cifar_dist report runs/NAME")
    for folder in folders:
        if not is_run(folder):
            raise not_a_run(folder)
    console, failures = Console(speaks=True), 0
    for folder in folders:
        try:
            path = make_report(folder, options["data_dir"], console, options["embedding"])
            console.say(f"written to {path}")
        except Exception as error:  # a folder may hold anything; the others are made
            failures += 1
            console.warn(f"no page of {folder}: {error if isinstance(error, UserError) else reason(error)}")
    return FAILED if failures else FINISHED


def make_report(folder: Path, data_dir: str | None, console: Console, embedding: bool = False) -> Path:
    """Make the page and pictures of one run, and return the page; raises `UserError` where an embedding is asked for in vain."""
    record, predictions = read_run(folder), read_predictions(folder)
    pixels, published = find_pixels(record, predictions, data_dir, console), published_accuracy(record)
    if record.config:
        kept = read_training_images(folder)
        draw_pictures(record, predictions, pixels, kept, folder / PLOTS, record.title, published)
    if any("quantisation_error" in line for line in record.lines) and (folder / WEIGHTS_FILE).is_file():
        model, about = load_weights(folder / WEIGHTS_FILE)
        if units := model.prototypes():
            draw_map(units, about["mean"], about["std"], about["classes"], folder / PLOTS / "map.png")
    if embedding:
        draw_features(record, predictions, pixels)
    return write_report(folder, pixels, published)


def draw_features(record: RunRecord, predictions: Predictions | None, pixels: np.ndarray | None) -> None:
    """Draw the last features of the evaluated images; raises `UserError` where these or the weights aren't there."""
    if predictions is None or pixels is None:
        raise UserError("an embedding needs the images of the run's evaluation; --data-dir says where the data are")
    model, about = load_weights(weights_path(record.path))
    seed = int(about["seed"])
    places = choose(len(pixels), seed)
    normalize = Normalize(about["mean"], about["std"], torch.device("cpu"))
    points = embed(last_features(model, pixels[places], normalize), seed)
    lines = [
        record.title,
        f"the inputs of the last linear layer for {len(places):,} of {describe(predictions)}, by t-SNE, seed {seed}",
    ]
    path = record.path / PLOTS / "embedding.png"
    draw_embedding(points, predictions.targets[places], about["classes"], path, lines)


def find_pixels(
    record: RunRecord, predictions: Predictions | None, data_dir: str | None, console: Console
) -> np.ndarray | None:
    """Return the images (M, S, S, 3) uint8 of the run's predictions; None, and a warning, where they can't be had."""
    if predictions is None:
        console.warn(f"{record.path} holds no predictions; its page shows no images")
        return None
    if data_dir:
        record = replace(record, config={**record.config, "data_dir": data_dir})
    try:
        with console.bar("preparing the data", "images") as progress:
            return load_pixels(record, predictions.split, bool(data_dir), progress)
    except UserError as error:
        console.warn(f"the page of {record.path} shows no images: {error}")
        return None
