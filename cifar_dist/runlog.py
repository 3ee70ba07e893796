"""The run folder: config.json, metrics.jsonl, summary.json, model.safetensors. Only rank 0 touches it."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cifar_dist.checkpoint import write_atomically
from cifar_dist.errors import UserError

CONFIG_FILE, SUMMARY_FILE = "config.json", "summary.json"
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors")


class RunFolder:
    """The local record of one run, over all its starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's content, None where there is none; raises `UserError` where it isn't JSON."""
        try:
            return json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{self.path / name} is damaged ({error}); move the run folder away, or use another --output-dir"
            ) from None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl. A crash may tear it; `truncate_metrics` removes torn lines on resume."""
        with (self.path / "metrics.jsonl").open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def sync_metrics(self) -> None:
        """Force metrics.jsonl to disk. Called before a checkpoint, so that its lines outlive whatever it outlives."""
        with (self.path / "metrics.jsonl").open("ab") as file:
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the whole lines, without a torn last one."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def truncate_metrics(self, step: int) -> None:
        """Drop what was written after `step`, and test results: the run will write those again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step and line["kind"] != "test"]
        write_atomically(self.path / "metrics.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in kept))

    def move_aside(self) -> Path:
        """Rename the folder to the first free NAME.1, NAME.2, ... and return that path."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        return self.path.rename(aside)


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Return what else a result may depend on: versions, commit, device, processes, threads, command, host, time."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "world_size": world_size,
        "threads_per_process": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    """Return the commit this package runs from, with a + where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changes.strip())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
