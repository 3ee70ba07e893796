"""A run's record as Weights & Biases has it: a row for each line of metrics.jsonl, and one of pictures and tables at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

from cifar_dist.report.record import Predictions, RunRecord, read_predictions

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
