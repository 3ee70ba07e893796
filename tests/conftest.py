"""Small data sets, and command lines run in this process or in several real ones."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.runs import Result, words, write_class_folders
from helpers.wandb_server import stub_server

from cifar_dist.cli import train as train_command
from cifar_dist.training.views import Views

# torch asks once, at a process's first matrix product, whether --deterministic is possible on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ["WANDB_MODE"] = "disabled"  # but in the tests of Weights & Biases itself
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other cores are the other workers'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


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
    handlers = {
        s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    }
    threads = torch.get_num_threads()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background of a shell, and nohup, ignore these two
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.backends.mkldnn.enabled = True
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(True)


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
        usual = {"--data": folders, "--data-dir": data_dir, "--output-dir": tmp_path / name, "--epochs": 3}
        usual |= {"--model": "lenet", "--batch-size": 32, "--log-every": 3, "--threads": 1}
        if any(option.startswith("--steps") for option in options):
            del usual["--epochs"]
        return Result(train_command.main(words(usual, options)), tmp_path / name)

    return run


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
