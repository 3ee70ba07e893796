"""A run folder to make a page of, written by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_dist.config import TrainConfig
from cifar_dist.record.folder import RunFolder

START = {
    "from_step": 0,
    "started": "2026-11-20T10:00:00+0000",
    "command": "train.py --model lenet",
    "git_commit": "0123abc",
    "python": "3.11.7",
    "packages": {"torch": "2.14.1", "torchvision": None},
    "host": "node1",
    "device": "cpu (x86_64)",
    "world_size": 2,
    "threads_per_process": 3,
}


def train_line(step: int, accuracy: float | None = 0.5) -> dict:
    where = {"kind": "train", "step": step, "epoch": step / 10, "samples": 10 * step, "loss": 2 / step}
    return {
        **where,
        "accuracy": accuracy,
        "lr": 0.1,
        "gradient_norm": None,
        "images_per_second": 100.0,
        "seconds": step,
    }


def val_line(step: int, accuracy: float = 0.25) -> dict:
    where = {"kind": "val", "step": step, "epoch": step / 10, "samples": 10 * step, "seconds": step}
    return {**where, "accuracy": accuracy, "top2_accuracy": 0.5, "loss": 1.5, "num_images": 40}


def make_run(
    path: Path,
    classes: Sequence[str] = ("cat", "dog", "ship", "frog"),
    *,
    summary: dict | None = None,
    predicted: str | None = "val",
    lines: Sequence[dict] | None = None,
    synthetic: bool = False,
    **options: object,
) -> np.ndarray:
    """Write a run folder whose logits are drawn; return its images (M, 32, 32, 3)."""
    rng = np.random.default_rng(0)
    folder = RunFolder(path)
    path.mkdir()
    config = TrainConfig(**{"model": "lenet", "epochs": 4, "lr": 0.02, **options}).to_dict()
    dataset = {"name": "things", "fingerprint": "f00d", "synthetic": synthetic, "classes": list(classes)}
    dataset |= {"train": 100, "val": 40, "test": 40}
    folder.write_json("config.json", {"config": config, "dataset": dataset, "starts": [START]})
    for line in [train_line(5), val_line(10)] if lines is None else lines:
        folder.append_metrics(line)
    folder.write_json(
        "summary.json", {"status": "finished", "best_step": 10, "test": None} if summary is None else summary
    )
    targets = np.repeat(np.arange(len(classes)), 400 // len(classes))
    pixels = np.broadcast_to(rng.integers(0, 256, (400, 1, 1, 3), dtype=np.uint8), (400, 32, 32, 3))
    logits = rng.normal(size=(400, len(classes))).astype(np.float32)
    logits[np.arange(400), targets] += 1.5
    places = np.arange(0, 400, 8)
    arrays = {"targets": targets, "logits": logits, "sample_places": places, "sample_pixels": pixels[places]}
    if predicted:
        folder.write_predictions(predicted, 10, **arrays)
    return pixels
