"""What the parts of gpu.py share: jobs that are stopped when their time is over, a record of what they gave, and rows for docs/."""

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import torch

from cifar_dist.console import Console
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED
from cifar_dist.files import write_atomically
from cifar_dist.processes import Children

ROOT = Path(__file__).parents[1]
PRECISION = "bf16"  # of what is ours; what a text published is trained in float32
GRACE_S = 3.0  # from SIGTERM to SIGKILL

Result = dict[str, Any]
Records = Mapping[str, Any]  # by the names of what was done


class Job(NamedTuple):
    """One process."""

    name: str
    command: list[str]
    read: Callable[[], Result | None] | None = None  # what it left, if it ended well; None where something is missing


class Ended(NamedTuple):
    """How jobs ended: FINISHED, FAILED, or INTERRUPTED, also if one was never started."""

    statuses: dict[str, int]
    signalled: bool = False  # by somebody else, not by the clock


class Record:
    """OUT/PART.json: {name: {result, hardware, date, commit, ...}}, written whenever something is added."""

    def __init__(self, part: str, given: argparse.Namespace) -> None:
        self.path = given.out / f"{part}.json"
        self.done: dict[str, Any] = {}
        for folder in (given.records, given.out):  # our own is newer
            if folder and (path := folder / self.path.name).exists():
                self.done |= json.loads(path.read_bytes())
        here = hardware()
        if here["gpu"]:  # then what was tried without one means nothing
            self.done = {name: one for name, one in self.done.items() if one.get("hardware", here)["gpu"]}
        self._about = {"date": time.strftime("%Y-%m-%d"), "commit": given.commit, "hardware": here}
        self._lock = threading.Lock()

    def add(self, name: str, result: Result, **more: Any) -> None:
        with self._lock:
            self.done[name] = {"result": result, **more, **self._about}
            write_atomically(self.path, json.dumps(self.done, indent=1).encode() + b"\n")


def hardware() -> dict[str, Any]:
    """Return what numbers depend on besides the code; None of a GPU where there is none."""
    smi, found = None, torch.cuda.is_available()
    with suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        smi = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "gpu": torch.cuda.get_device_name() if found else None,
        "nvidia_smi": smi,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if found else None,
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        "python": platform.python_version(),
        "cores": cores(),
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Running


def run_jobs(
    jobs: Sequence[Job],
    record: Record,
    folder: Path,
    end: float,
    parallel: int = 1,
    look: Callable[[], None] = lambda: None,
    grace_s: float = GRACE_S,
) -> Ended:
    """Run jobs until `end` on the monotonic clock, when none of them lives any more, and call `look` twice a second."""
    folder.mkdir(parents=True, exist_ok=True)
    over, ended = threading.Event(), threading.Event()
    with Children() as children, ThreadPoolExecutor(parallel) as threads:

        def watch() -> None:
            while not ended.wait(0.5):
                look()
                if time.monotonic() > end - grace_s and not over.is_set():
                    over.set()
                    children.stop(signal.SIGTERM)
                if time.monotonic() > end:
                    children.stop(signal.SIGKILL)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            found = list(threads.map(lambda job: run_job(job, record, folder, children, over, parallel), jobs))
        finally:
            ended.set()
            watcher.join()
            look()
    statuses = {job.name: status for job, status in zip(jobs, found, strict=True)}
    return Ended(statuses, children.received is not None and not over.is_set())


def run_job(
    job: Job, record: Record, folder: Path, children: Children, over: threading.Event, parallel: int = 1
) -> int:
    """Run one to its end and record what it gave; once there was a signal, start nothing."""
    if children.received or over.is_set():
        return INTERRUPTED
    start, log = time.monotonic(), folder / f"{job.name}.log"
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    status = children.run(job.command, log, {"PYTHONPATH": paths, "WANDB_MODE": "disabled"})
    seconds = time.monotonic() - start
    result = job.read() if job.read and status == FINISHED else None
    if result is not None:
        own = {"seconds": round(seconds, 1), "command": shlex.join(job.command), "parallel": parallel}
        record.add(job.name, result, **own)
    if status == FINISHED and (result is not None or not job.read):
        outcome = "done"
    elif children.received:
        status, outcome = INTERRUPTED, "stopped"
    else:
        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), flush=True)
        status, outcome = FAILED, f"failed with status {status}, see {log},"
    print(f"{job.name} {outcome} after {seconds:.0f} s", flush=True)
    return status


class Lines:
    """The lines of JSON that a job adds to a file, each of them once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.path, self._read = path, 0

    def new(self) -> list[dict[str, Any]]:
        whole = self.path.read_bytes()[self._read :] if self.path.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def add_line(path: Path, **fields: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(fields) + "\n")


def fail_where_a_run_warns() -> None:
    """Let runs of this process fail in place of a warning: one whose steps aren't captured, say, is not what is measured."""

    def fail(_: Console, text: str) -> None:
        raise RuntimeError(text)

    Console.warn = fail  # type: ignore[method-assign]


# What goes into docs/


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def percent(shares: Sequence[float]) -> str:
    """[0.5, 0.52] -> 51.00 ± 1.41 %: the mean and the sample standard deviation."""
    return f"{100 * mean(shares):.2f}" + (f" ± {100 * stdev(shares):.2f}" if len(shares) > 1 else "") + " %"


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def machine(records: Records) -> str:
    found = [record["hardware"] for record in records.values()]
    return "; ".join(
        dict.fromkeys(f"{m['nvidia_smi'] or 'no GPU'}, torch {m['torch']}, CUDA {m['cuda']}" for m in found)
    )


def commits(records: Records) -> str:
    return ", ".join(dict.fromkeys((record["commit"] or "unknown")[:7] for record in records.values()))


def dates(records: Records) -> str:
    return ", ".join(sorted({record["date"] for record in records.values()}))


def about(records: Records) -> str:
    return f"{machine(records)}; {commits(records)}; {dates(records)}"
