"""A run folder as a reader finds it: finished, running, interrupted, killed or broken. Nothing here writes."""

import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cifar_dist.runlog import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, in_use, predictions_file

PREDICTION_ARRAYS = ("targets", "logits", "sample_places", "sample_pixels")
Status = Literal["finished", "running", "interrupted", "failed", "killed", "broken"]


@dataclass(frozen=True)
class RunRecord:
    """What a run has written so far."""

    path: Path
    status: Status  # killed: it says it is running, but no process holds its folder
    problem: str = ""  # why it failed, or what is wrong with the folder; else empty
    config: dict[str, Any] = field(default_factory=dict)  # the options, by field of TrainConfig
    dataset: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)  # one for each time it was started or resumed
    summary: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def title(self) -> str:
        """What it trained, by which recipe, on what."""
        title = f"{self.config.get('model')}, recipe {self.config.get('recipe')}, {self.dataset.get('name')}"
        return title + ", SYNTHETIC DATA" * bool(self.dataset.get("synthetic"))


@dataclass(frozen=True)
class Predictions:
    """The logits of every image of a split, after some step, in the order of the split; and a few of the images."""

    split: str  # val or test
    step: int
    targets: np.ndarray  # (M,) int64
    logits: np.ndarray  # (M, K) float32
    sample_places: np.ndarray  # (S,) int64: which images are kept, evenly spaced
    sample_pixels: np.ndarray  # (S, 32, 32, 3) uint8

    @cached_property
    def order(self) -> np.ndarray:
        """Return the classes (M, K) int64 of each image, most probable first; of equal ones the first class first."""
        return np.argsort(-self.logits, axis=1, kind="stable")

    @property
    def first(self) -> np.ndarray:
        return self.order[:, 0]

    @property
    def second(self) -> np.ndarray:
        return self.order[:, 1]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Return the softmax (M, K) float64."""
        shifted = np.exp(self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Return the probability (M,) float64 of each image's first guess."""
        return self.probabilities.max(axis=1)


def is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or (path / METRICS_FILE).is_file()


def read_run(path: Path) -> RunRecord:
    """Read a run folder. What can't be read is left out and named in `problem`; raises nothing."""
    problems: list[str] = []
    content, summary = (_read_json(path / name, problems) for name in (CONFIG_FILE, SUMMARY_FILE))
    lines = _read_lines(path / METRICS_FILE, problems)
    config, dataset = (_part(content, name, dict, problems) for name in ("config", "dataset"))
    starts = [start for start in _part(content, "starts", list, problems) if isinstance(start, dict)]
    status: Status = summary.get("status", "broken")
    if status not in get_args(Status):
        problems.append(f"{SUMMARY_FILE}: unknown status {status!r}")
    if not problems and status == "running" and not in_use(path):
        status = "killed"
    return RunRecord(
        path=path,
        status="broken" if problems else status,
        problem="; ".join(problems) or summary.get("error", ""),
        config=config,
        dataset=dataset,
        starts=starts,
        summary=summary,
        lines=lines,
    )


def read_predictions(path: Path, splits: Iterable[str] = ("test", "val")) -> Predictions | None:
    """Return the run's predictions for the first of these splits it has any for; None where it has none that can be read."""
    for split in splits:
        try:
            with np.load(path / predictions_file(split)) as file:
                return Predictions(split, int(file["step"]), *(file[name] for name in PREDICTION_ARRAYS))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
            continue
    return None


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error.strerror if isinstance(error, OSError) else error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name}: not a JSON object")
        return {}
    return content


def _part(content: dict[str, Any], name: str, kind: type, problems: list[str]) -> Any:
    """Return an entry of config.json, empty where it isn't what a run writes."""
    value = content.get(name, kind())
    if isinstance(value, kind):
        return value
    problems.append(f"{CONFIG_FILE}: {name} is not a {kind.__name__}")
    return kind()


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the whole lines; the last one may be torn by a crash, or about to be written."""
    try:
        pieces = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:  # nothing was logged yet
        return []
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
        return []
    lines = []
    for number, piece in enumerate(pieces, start=1):
        try:
            line = json.loads(piece)
            if not (isinstance(line, dict) and line.keys() >= {"kind", "step", "epoch", "samples", "loss"}):
                raise ValueError("not a line that a run writes")
        except ValueError as error:
            problems.append(f"{path.name} line {number}: {error}")
            break
        lines.append(line)
    return lines
