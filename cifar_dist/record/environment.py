"""What else a result may depend on: versions, commit, device, processes, host."""

import platform
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cifar_dist.record.lines import Start
from cifar_dist.runtime.cpu import computes_in_bf16, uses_onednn
from cifar_dist.runtime.launch import launch_id

GIT = ("git", "-C", str(Path(__file__).parents[2]))
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors")


def environment(device: torch.device, world_size: int) -> Start:
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
        "kernels": kernels(),
        "launch": launch_id(),
    }


def kernels() -> dict[str, Any]:
    """Return what decides which kernels this process computes with, besides the device and torch's version."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),  # AVX2, AVX512 ...
        "bf16": computes_in_bf16(),
        "onednn": uses_onednn(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def cpu_model() -> str:
    """Return the processor's name, as far as this system tells."""
    with suppress(OSError):  # there is none but on Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def changes() -> bytes:
    """Return in what the files of this package differ from its commit, as git shows it; files it doesn't know have no part in it."""
    try:
        return subprocess.run([*GIT, "diff", "HEAD"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def git_commit() -> str | None:
    """Return the commit this package runs from, with a + where files differ from it; None outside a checkout."""
    words = ["describe", "--always", "--exclude=*", "--no-abbrev", "--dirty=+"]
    try:
        return subprocess.run([*GIT, *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
