"""Small data sets, and command lines run in this process or in several real ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from wandb_server import stub_server

from cifar_dist.cli import train as train_command
from cifar_dist.views import Views

ROOT = Path(__file__).parent.parent
os.environ["WANDB_MODE"] = "disabled"  # but in the tests of Weights & Biases itself
CLASSES = ("bird", "cat", "dog", "ship")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


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


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """A data set of class folders: 240 training and 100 test images of 4 classes."""
    root = tmp_path_factory.mktemp("folders")
    write_class_folders(root)
    return root


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _same_process_again():
    """Leave no trace of a command run in this process: signal handlers, Accelerate's and torch's state."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    threads = torch.get_num_threads()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.backends.mkldnn.enabled = True
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(True)


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


@pytest.fixture
def train(folders, data_dir, tmp_path, monkeypatch) -> Callable[..., Result]:
    """Run train.py's command in this process: lenet on the small folders, 3 epochs of 7 steps, unless told otherwise.

    Its page and pictures, which cost more than the training, are made only on request.
    """
    methods = {name: getattr(Views, name) for name in ("_draw", "_write_page")}

    def run(*options: str, name: str = "run", pictures: bool = False) -> Result:
        AcceleratorState._reset_state(True)
        for attribute, method in methods.items():
            monkeypatch.setattr(Views, attribute, method if pictures else lambda _: None)
        where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / name)]
        small = ["--model", "lenet", "--batch-size", "32", "--log-every", "3", "--threads", "1"]
        small += [] if "--steps" in options else ["--epochs", "3"]
        return Result(train_command.main([*where, *small, *options]), tmp_path / name)

    return run


def launch(world_size: int, command: list[str], *, check: bool = True) -> subprocess.CompletedProcess:
    """Run a Python script in `world_size` real CPU processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*torchrun, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    if check and result.returncode:
        pytest.fail(f"{' '.join(command)} on {world_size} processes:\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}")
    return result


def copy_tree(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Weights & Biases server of our own, which the client of the runs in this test talks to."""
    folder = tmp_path / "server"
    folder.mkdir()
    with stub_server(folder) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
        monkeypatch.delenv("WANDB_MODE")
        yield server
