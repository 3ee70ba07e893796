"""Small data sets, command lines in several real processes, and what tests of different rooms share."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from cifar_dist.training import engine, preemption

ROOT = Path(__file__).parents[2]

CLASSES = ("bird", "cat", "dog", "ship")


def write_class_folders(root: Path, train: int = 60, test: int = 25, suffix: str = ".png") -> None:
    """Write `train` and `test` images of each of CLASSES: a class has a colour, under noise."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for c, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(128 + 25 * np.array([c & 1, c >> 1, 0.5]), 50, (32, 32, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:04d}{suffix}")


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    folder: Path

    def metrics(self, kind: str | None = None) -> list[dict]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]
        return [line for line in lines if kind in (None, line["kind"])]

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()


def untimed(lines: list[dict]) -> list[dict]:
    """Metrics lines without what a clock says."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def words(usual: dict[str, object], options: Sequence[str]) -> list[str]:
    """Options, after those usual ones that they don't name: none may be given twice."""
    given = {option.partition("=")[0].replace("_", "-") for option in options}
    return [word for flag, value in usual.items() if flag not in given for word in (flag, str(value))] + [*options]


def torchrun(
    world_size: int, command: list[str], *, check: bool = True, gpu: bool = False
) -> subprocess.CompletedProcess:
    """Run a Python script in `world_size` real processes, on the CPU unless told otherwise."""
    command_line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": str(not gpu).lower(),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [*command_line, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    if check and result.returncode:
        pytest.fail(f"{' '.join(command)} on {world_size} processes:\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
    return result


def copy_tree(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def stop_after(monkeypatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Raise a signal in the middle of step `step` of the next run, and vote after every step."""
    whole = engine.train_step

    def train_step(run, index, *rest):
        gradient_norm = whole(run, index, *rest)
        if index + 1 == step:
            signal.raise_signal(number)
        return gradient_norm

    monkeypatch.setattr(engine, "train_step", train_step)
    monkeypatch.setattr(preemption, "VOTE_EVERY_S", 0.0)
