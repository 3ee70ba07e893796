"""Records of runs to compare, written by hand."""

import json
from pathlib import Path

CLASSES = ("cat", "dog")

DATASET = {
    "name": "pets",
    "fingerprint": "f" * 64,
    "synthetic": False,
    "classes": list(CLASSES),
    "train": 100,
    "test": 50,
}


def result(accuracy: float, classes: tuple[float, float] | None = None) -> dict:
    per_class = dict(zip(CLASSES, classes or (accuracy, accuracy), strict=True))
    return {
        "accuracy": accuracy,
        "top2_accuracy": 1.0,
        "loss": 1 - accuracy,
        "num_images": 50,
        "per_class_accuracy": per_class,
    }


def curve_lines(*val: float) -> list[dict]:
    lines = []
    for epoch, accuracy in enumerate(val, start=1):
        where = {"step": 10 * epoch, "epoch": float(epoch), "samples": 100 * epoch, "seconds": 2.0 * epoch}
        lines.append({"kind": "train", **where, "loss": 1.0 / epoch, "accuracy": 0.5})
        lines.append({"kind": "val", **where, **result(accuracy)})
    return lines


OPTIONS = {
    "model": "lenet",
    "recipe": "default",
    "epochs": 2,
    "batch_size": 10,
    "lr": 0.1,
    "seed": 0,
    "optimizer": "sgd",
}


def write_run(
    folder: Path, accuracy: float = 0.6, *, status: str = "finished", synthetic: bool = False, **options
) -> Path:
    folder.mkdir(parents=True)
    config = {
        "config": OPTIONS | options,
        "dataset": DATASET | {"synthetic": synthetic},
        "starts": [{"git_commit": "a" * 40}],
    }
    summary: dict = {"status": status, "total_steps": 20, "macs_per_sample": 416_520}
    if status == "finished":
        summary |= {"step": 20, "seconds": 4.0, "best_step": 20}
        summary |= {"val": result(0.5), "test": result(accuracy) | {"confusion_matrix": [[15, 10], [10, 15]]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve_lines(0.4, 0.5)))
    return folder
