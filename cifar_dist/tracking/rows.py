"""A run's record as Weights & Biases has it: a row for each line of metrics.jsonl, and one of pictures and tables at the end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from cifar_dist.record.folder import PLOTS
from cifar_dist.record.lines import DatasetRecord, Kind, Line
from cifar_dist.record.predictions import Predictions, read_predictions
from cifar_dist.record.reader import RunRecord

KINDS: tuple[Kind, ...] = ("train", "val", "test")
WHERE = ("epoch", "samples", "seconds")
OUTSIDE = (*WHERE, "kind", "step", "num_images", "weights_digest", "optimizer_digest")  # not under a line's kind
CLASS = "class/"
SIZE = ("total_steps", "macs_per_sample")  # of summary.json, beside the options in the configuration there


def row(line: Line) -> dict[str, Any]:
    """Return the row of one line: {"kind": "val", "step": 7, "loss": 1.5, ...} -> {"global_step": 7, "val/loss": 1.5, ...}.

    `to_line` is its inverse. None goes without saying, and a number of images is the data set's.
    """
    kind, values = line["kind"], {name: value for name, value in line.items() if name not in OUTSIDE}
    classes = cast(dict[str, float | None], values.pop("per_class_accuracy", {}))
    content: dict[str, Any] = {"global_step": line["step"], **{name: cast(Any, line)[name] for name in WHERE}}
    content |= {f"{kind}/{name}": value for name, value in values.items() if value is not None}
    return content | {f"{kind}/{CLASS}{label}": share for label, share in classes.items()}


def to_line(row: Mapping[str, Any], kind: Kind, dataset: DatasetRecord) -> Line | None:
    """Return what the row says of `kind`, as a line of metrics.jsonl; None if nothing."""
    values = {key.removeprefix(f"{kind}/"): _number(value) for key, value in row.items() if key.startswith(f"{kind}/")}
    if "global_step" not in row or (values.get("loss") is None and values.get("accuracy") is None):
        return None
    logged = {key.removeprefix(CLASS): values.pop(key) for key in list(values) if key.startswith(CLASS)}
    classes = {name: logged.get(name) for name in dataset.get("classes", logged)}  # in the order of the labels
    where = {key: _number(row.get(key)) for key in WHERE}
    line: dict[str, Any] = {"kind": kind, "step": int(row["global_step"]), **where, "accuracy": None, "loss": None}
    if kind == "train":
        return cast(Line, {**line, "gradient_norm": None, **values})
    return cast(Line, {**line, **values, "num_images": dataset.get(kind), "per_class_accuracy": classes})


def _number(value: Any) -> float | None:
    """Return the value if it is a finite number: W&B writes others as words."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def final_row(record: RunRecord) -> dict[str, Any]:
    """Return the pictures, the confusion matrix and a table of samples of a run that has ended."""
    import wandb

    content: dict[str, Any] = {"global_step": record.lines[-1]["step"]}
    for picture in sorted((record.path / PLOTS).glob("*.png")):
        content[f"pictures/{picture.stem}"] = wandb.Image(str(picture))
    if predictions := read_predictions(record.path):
        classes = record.dataset["classes"]
        content[f"{predictions.split}/confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=predictions.targets.tolist(), preds=predictions.first.tolist(), class_names=classes
        )
        content[f"{predictions.split}/samples"] = sample_table(classes, predictions)
    return content


def sample_table(classes: Sequence[str], predictions: Predictions) -> Any:
    """Return a wandb.Table of evenly spaced images, what they are, and the first and second guess."""
    import wandb

    table = wandb.Table(columns=["image", "true", "predicted", "confidence", "right", "second guess"])
    for i, pixels in zip(predictions.sample_places, predictions.sample_pixels, strict=True):
        guesses = (predictions.targets[i], predictions.first[i], predictions.second[i])
        true, first, second = (classes[guess] for guess in guesses)
        table.add_data(wandb.Image(pixels), true, first, float(predictions.confidence[i]), first == true, second)
    return table
