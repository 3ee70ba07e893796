"""The run folder: config.json, metrics.jsonl, predictions, summary.json, model.safetensors. Only rank 0 touches it."""

import fcntl
import io
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from cifar_dist.errors import UserError
from cifar_dist.files import (
    is_sealed,
    parse_json,
    read_file,
    read_json,
    sealed,
    stand_in,
    write_atomically,
    write_json,
    writing,
)
from cifar_dist.record.lines import ConfigRecord, Line, Summary

CONFIG_FILE, METRICS_FILE, SUMMARY_FILE = "config.json", "metrics.jsonl", "summary.json"
TRAINING_FILE = "training.pt"  # of a checkpoint
WEIGHTS_FILE = "model.safetensors"  # of a checkpoint; the best weights are in the run folder too
CHANGES_FILE = "changes.diff"  # in what the code of the last start differed from its commit, where it did
CHECKPOINTS, PLOTS, TENSORBOARD = "checkpoints", "plots", "tensorboard"  # folders
# In checkpoints/ from the start on: without it the folder is another one, or an empty mount point.
BEGUN_FILE = ".begun"
LOCK_FILE, PAGE_FILE = ".lock", "report.html"
LINK_FILE, WANDB_LOG, WANDB_LOCK = "wandb.json", "wandb.log", ".wandb.lock"  # of what sends the run to Weights & Biases


COUNTS = ("step", "samples")  # of a line of metrics.jsonl
LARGEST = 1e39  # no float32 is as large, and charts can still count with it
# Numbers, or null.
MEASURES = (
    *("epoch", "loss", "accuracy", "top2_accuracy", "quantisation_error", "topographic_error"),
    *("lr", "gradient_norm", "images_per_second", "seconds"),
)


class RunFolder:
    """The local record of one run, over all its starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    def config(self) -> ConfigRecord | None:
        """Return config.json, None where there is none; raises `UserError` where it isn't what a run writes."""
        content = self.read_json(CONFIG_FILE)
        parts = {"config": dict, "dataset": dict, "starts": list}
        if content is None:
            return None
        for name, kind in parts.items():
            if not isinstance(content.get(name), kind):
                raise self.damaged(CONFIG_FILE, f"it has no {name}")
        if not all(isinstance(start, dict) for start in content["starts"]):
            raise self.damaged(CONFIG_FILE, "starts are not what a run writes")
        if "sha256" in content and not is_sealed(content):  # those of earlier versions have none
            raise self.damaged(CONFIG_FILE, "it is not what the run wrote, so that going on might be another run")
        return cast(ConfigRecord | None, content)

    def summary(self) -> Summary | None:
        """Return summary.json, None where there is none; raises `UserError` where it isn't JSON."""
        return cast(Summary | None, self.read_json(SUMMARY_FILE))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's content, None where there is none; raises `UserError` where it isn't JSON."""
        try:
            content = read_json(self.path / name)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self.damaged(name, error) from None
        if not isinstance(content, dict):
            raise self.damaged(name, "not a JSON object")
        return content

    def damaged(self, name: str, problem: object) -> UserError:
        return UserError(
            f"{self.path / name} is damaged ({problem}); move the run folder away, or use another --output-dir"
        )

    def write_config(self, content: ConfigRecord) -> None:
        self.write_json(CONFIG_FILE, sealed({name: value for name, value in content.items() if name != "sha256"}))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_json(self.path / name, content)

    def append_metrics(self, line: Line) -> None:
        """Add one line to metrics.jsonl. A crash may tear it; `truncate_metrics` removes torn lines on resume."""
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        with writing(self.path / METRICS_FILE, len(text)), (self.path / METRICS_FILE).open("ab") as file:
            file.write(text)

    def sync_metrics(self) -> None:
        """Force metrics.jsonl to disk. Called before a checkpoint, so that its lines outlive whatever it outlives."""
        with (self.path / METRICS_FILE).open("ab") as file:
            os.fsync(file.fileno())

    def read_metrics(self) -> list[Line]:
        """Return the whole lines, without a torn last one; raises `UserError` naming one that is damaged."""
        path, lines = self.path / METRICS_FILE, []
        for number, text in enumerate(read_file(path).split(b"\n")[:-1] if path.exists() else [], start=1):
            try:
                lines.append(read_line(text))
            except ValueError as error:
                raise UserError(
                    f"line {number} of {path} is damaged ({error}); restore the file, or use --resume never to start over"
                ) from None
        return lines

    def read_metrics_until(self, step: int) -> list[Line]:
        """Return what a checkpoint of `step` follows."""
        return [line for line in self.read_metrics() if line["step"] <= step and line["kind"] != "test"]

    def write_predictions(self, split: str, step: int, **arrays: Any) -> None:
        """Keep the arrays of `predictions.Predictions`, about `split` and the weights after `step` steps."""
        self.write_arrays(predictions_file(split), step=step, **arrays)

    def write_arrays(self, name: str, **arrays: Any) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(self.path / name, buffer.getvalue())

    def drop_predictions(self, step: int) -> None:
        """Remove those of weights after `step`, and those of a test: the run will write them again."""
        (self.path / predictions_file("test")).unlink(missing_ok=True)
        validated = self.path / predictions_file("val")
        with suppress(FileNotFoundError):
            try:
                with np.load(validated) as arrays:
                    kept = int(arrays["step"]) <= step
            except (ValueError, KeyError, EOFError, zipfile.BadZipFile):  # torn by a crash
                kept = False
            if not kept:
                validated.unlink()

    def truncate_metrics(self, step: int) -> None:
        """Drop what was written after `step`, and test results: the run will write those again."""
        kept = self.read_metrics_until(step) if step >= 0 else []
        write_atomically(self.path / METRICS_FILE, b"".join(json.dumps(line).encode() + b"\n" for line in kept))

    def move_aside(self) -> Path:
        """Rename the folder to the first free NAME.1, NAME.2, ... and return that path."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(aside)
        stand_in(aside / LOCK_FILE).unlink(missing_ok=True)  # it is this start's, which goes on in another folder
        return aside


def read_line(text: bytes) -> Line:
    """Return a line of metrics.jsonl; raises `ValueError` saying what is wrong with it."""
    line = parse_json(text)
    if not (isinstance(line, dict) and line.keys() >= {"kind", "step", "epoch", "samples", "loss"}):
        raise ValueError("not a line that a run writes")
    for name, value in line.items():
        if name in COUNTS and not (type(value) is int and 0 <= value < 2**63):
            raise ValueError(f"{name} is not a count")
        if name in MEASURES and not (value is None or (type(value) in (int, float) and abs(value) <= LARGEST)):
            raise ValueError(f"{name} is not a number")
    if line["epoch"] is None or line["loss"] is None:
        raise ValueError("without epoch or loss")
    return cast(Line, line)


def predictions_file(split: str) -> str:
    return f"predictions-{split}.npz"


def in_use(path: Path) -> bool:
    """Whether a process holds the run folder `path`."""
    try:
        with (path / LOCK_FILE).open("rb") as file:  # only to read: it may be another user's
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or the file system has no locks
        return stand_in(path / LOCK_FILE).exists()
    return False
