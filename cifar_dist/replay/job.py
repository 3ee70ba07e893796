"""A stretch of a run to do again, in as many processes and threads as it had, and what these saw."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.record.environment import environment
from cifar_dist.record.folder import RunFolder
from cifar_dist.record.lines import ConfigRecord, Start
from cifar_dist.record.reader import not_a_run
from cifar_dist.runtime.workers import WorkerError, run_worker


@dataclass(frozen=True)
class Job:
    """What is done again."""

    folder: Path  # of the run
    config: TrainConfig
    start: int  # the step of the checkpoint that it begins with; 0 without one
    stop: int
    world_size: int
    every: bool = False  # look at each step, not only at the last
    closely: int | None = None  # a step, counted from 0, of which everything is looked at


def recorded(folder: Path) -> ConfigRecord:
    """Return the config.json of a run; raises `UserError` where there is none, or one without starts."""
    record = RunFolder(folder).config()
    if not record or not record.get("starts"):
        raise not_a_run(folder)
    return record


def start_at(record: ConfigRecord, step: int) -> Start:
    """Return the start that did step `step`, counted from 0."""
    return [start for start in record["starts"] if start["from_step"] <= step][-1]


def make_job(folder: Path, start: int, stop: int, data_dir: str | None = None) -> Job:
    """Return the job that does steps `start` to `stop` of a run as it did them."""
    record = recorded(folder)
    then = start_at(record, start)
    exact = record["config"].get("exact_shards") is not None  # then any number of processes will do
    options = {**record["config"], "threads": then["threads_per_process"]}
    options |= {"data_dir": data_dir} if data_dir else {}
    return Job(folder, TrainConfig.from_dict(options), start, stop, 1 if exact else then["world_size"])


def do(job: Job) -> list[dict[str, Any]]:
    """Do it, and return what rank 0 saw: a line for each step that was looked at. Raises `UserError` where that can't be done."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        content = {"folder": str(job.folder), "config": job.config.to_dict(), "start": job.start, "stop": job.stop}
        content |= {"every": job.every, "closely": job.closely, "trace": str(trace)}
        try:
            run_worker("cifar_dist.replay.worker", content, job.config, job.world_size)
        except WorkerError as error:
            raise UserError(f"steps {job.start} to {job.stop} of {job.folder} can't be done again: {error}") from None
        return [json.loads(line) for line in trace.read_text().splitlines()]


def machine_notes(record: ConfigRecord) -> list[str]:
    """Return in what this machine differs from a run's, or may, of what decides how numbers are rounded."""
    on_gpu = torch.cuda.is_available() and record["config"].get("device") != "cpu"
    here, notes = flat(environment(torch.device("cuda" if on_gpu else "cpu"), 1)), []
    for then in map(flat, record["starts"]):
        for name, value in here.items():
            if name not in then:
                notes.append(f"{name} is {value}, and wasn't recorded")
            elif then[name] != value:
                notes.append(f"{name} is {value}, was {then[name]}")
    return list(dict.fromkeys(notes))


def flat(start: Start) -> dict[str, Any]:
    """Return what decides how a start's numbers are rounded, by name."""
    packages, kernels = start.get("packages", {}), start.get("kernels", {})
    facts = {"torch": packages.get("torch"), "device": start.get("device"), "code": start.get("git_commit")}
    return facts | {name: kernels[name] for name in ("cpu", "bf16") if name in kernels}


def stretches(record: ConfigRecord, begins: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    """Return (begin, end) of each stretch from a step to the next end behind it, as far as it was done in one way throughout."""
    begun = record.get("further_from", 0)  # another run did the steps before
    begins = [begin for begin in begins if begin >= begun]
    nearest = ((begin, min((end for end in ends if end > begin), default=None)) for begin in begins)
    return [(begin, end) for begin, end in nearest if end and done_in_one_way(record, begin, end)]


def done_in_one_way(record: ConfigRecord, begin: int, end: int) -> bool:
    """Whether all starts between two steps computed alike: with as many threads, and processes unless shards are exact."""
    names = ["threads_per_process"] + ["world_size"] * (record["config"].get("exact_shards") is None)
    starts = [start_at(record, begin), *(start for start in record["starts"] if begin < start["from_step"] < end)]
    return all(start.get(name) == starts[0].get(name) for start in starts for name in names)
