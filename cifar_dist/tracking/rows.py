"""A run's record as Weights & Biases has it: a row for each line of metrics.jsonl, and one of pictures and tables at the end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_dist.record.predictions import Predictions, read_predictions
from cifar_dist.record.reader import RunRecord

KINDS = ("train", "val", "test")
WHERE = ("epoch", "samples", "seconds")


def row(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of one line: {"kind": "val", "step": 7, "loss": 1.5, ...} -> {"global_step": 7, "val/loss": 1.5, ...}."""
    content: dict[str, Any] = {"global_step": line["step"], **{name: line[name] for name in WHERE}}
    for name, value in line.items():
        if name == "per_class_accuracy":
            content |= {f"{line['kind']}/class/{label}": share for label, share in value.items()}
        elif name not in (*WHERE, "kind", "step", "num_images") and value is not None:
            content[f"{line['kind']}/{name}"] = value
    return content


def to_line(row: Mapping[str, Any], kind: str, dataset: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the row says of `kind`, as a line of metrics.jsonl; None if nothing."""
    values = {key.removeprefix(f"{kind}/"): _number(value) for key, value in row.items() if key.startswith(f"{kind}/")}
    if "global_step" not in row or (values.get("loss") is None and values.get("accuracy") is None):
        return None
    logged = {key.removeprefix("class/"): values.pop(key) for key in list(values) if key.startswith("class/")}
    classes = {name: logged.get(name) for name in dataset.get("classes", logged)}  # in the order of the labels
    where = {key: _number(row.get(key)) for key in WHERE}
    line: dict[str, Any] = {
        "kind": kind,
        "step": int(row["global_step"]),
        **where,
        "accuracy": None,
        "loss": None,
        **values,
    }
    if kind != "train":
        line |= {"num_images": dataset.get(kind), "per_class_accuracy": classes}
    return line


def _number(value: Any) -> float | None:
    """Return the value if it is a finite number: W&B writes others as words."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def final_row(record: RunRecord) -> dict[str, Any]:
    """Return the pictures, the confusion matrix and a table of samples of a run that has ended."""
    import wandb

    content: dict[str, Any] = {"global_step": record.lines[-1]["step"]}
    for picture in sorted((record.path / "plots").glob("*.png")):
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
