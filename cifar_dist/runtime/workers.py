"""A job for a module of this package, done in a process group of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cifar_dist.config import TrainConfig


class WorkerError(RuntimeError):
    """What a worker said before it ended, in one line."""


def run_worker(module: str, job: Mapping[str, Any], config: TrainConfig, world_size: int) -> None:
    """Run `python -m MODULE JOB.json` in so many processes on this machine; raises `WorkerError` where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        command = [sys.executable, *(launcher if world_size > 1 else []), "-m", module, str(path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if config.threads:
            environment["OMP_NUM_THREADS"] = "1"  # each sets its own number
        if config.device == "cpu" or not torch.cuda.is_available():
            environment["ACCELERATE_USE_CPU"] = "true"
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "failed: "))]
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        if done.returncode < 0:  # as where memory is short
            last = f"it was ended by signal {-done.returncode}"
        raise WorkerError(said[0].partition(": ")[2] if said else last)
