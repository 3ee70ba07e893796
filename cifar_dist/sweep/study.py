"""The runs of a sweep: where each is, how it is started, what became of it; several at a time, until a signal."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from queue import SimpleQueue

import torch

from cifar_dist.config import TrainConfig, flag
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED, WRONG_INPUT
from cifar_dist.options import to_words
from cifar_dist.processes import Children
from cifar_dist.progress import Report
from cifar_dist.record.folder import CONFIG_FILE, SUMMARY_FILE, RunFolder
from cifar_dist.record.repeats import Point, varying
from cifar_dist.runtime.launch import default_threads
from cifar_dist.sweep.ranking import Result
from cifar_dist.sweep.space import Sweep
from cifar_dist.text import clock, option_text
from cifar_dist.training.resume import lock

RUNS_FILE = "sweep.json"
LOOK_S = 1.0  # between two looks at how far the runs are
MAY_CHANGE = {f.name for f in fields(TrainConfig) if f.metadata["may_change"]}


@dataclass(frozen=True)
class Study:
    """A sweep whose runs are resolved, and its folder."""

    sweep: Sweep
    runs: list[Point]
    folder: Path
    program: str
    parallel: int = 1

    def run_folder(self, index: int) -> Path:
        return self.folder / f"{index:04d}"

    def log(self, index: int) -> Path:
        return self.folder / f"{index:04d}.log"

    def command(self, index: int) -> list[str]:
        """Return the words that start a run, or go on with it."""
        point = {**self.runs[index], "output_dir": str(self.run_folder(index)), "resume": "auto"}
        if self.parallel > 1 and not (self.run_folder(index) / CONFIG_FILE).exists():  # one that goes on keeps its own
            point.setdefault("threads", max(1, default_threads() // self.parallel))
        return self.sweep.command_line(point, sys.executable, self.program)

    def result(self, index: int) -> Result:
        """Return what summary.json says."""
        try:
            summary = RunFolder(self.run_folder(index)).read_json(SUMMARY_FILE) or {"status": "not started"}
        except UserError:  # train.py says what to do about it
            summary = {"status": "damaged"}
        measured = summary.get(self.sweep.metric.split) if summary["status"] == "finished" else None
        value = self.sweep.metric.of(measured) if measured else None
        return Result(summary["status"], value, bool(summary.get("synthetic")))

    def steps_done(self, index: int) -> tuple[int, int]:
        """Return how many steps a run has done by its last line, and of how many; (0, 0) where it doesn't say yet."""
        folder = RunFolder(self.run_folder(index))
        try:
            summary, lines = folder.summary() or {}, folder.read_metrics()
        except (UserError, OSError):  # train.py says what to do about it
            return 0, 0
        total = summary.get("total_steps", 0)
        return (lines[-1]["step"] if lines and total else 0), total


def check_record(study: Study) -> int:
    """Return how many runs the folder has a record of; raises `UserError` where one of them is another than ours."""
    before = (RunFolder(study.folder).read_json(RUNS_FILE) or {"runs": []})["runs"]
    for index, (old, new) in enumerate(zip(before, study.runs, strict=False)):
        for name in sorted((old.keys() | new.keys()) - MAY_CHANGE):
            if old.get(name) != new.get(name):
                was, now = option_text(old.get(name)), option_text(new.get(name))
                raise UserError(
                    f"run {index} in {study.folder} has {flag(name)} {was}, not {now}; use another --output-dir"
                )
    return len(before)


def record(study: Study) -> None:
    """Write down what the runs are, where the folder has fewer; raises `UserError` where it has others."""
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't use {study.folder} as the folder of the sweep: {error}") from None
    held = lock(study.folder, timeout_s=60)  # the tasks of a job array start at once
    try:
        if check_record(study) < len(study.runs):
            content = {"metric": study.sweep.metric_record(), "runs": study.runs}
            RunFolder(study.folder).write_json(RUNS_FILE, content)
    finally:
        held.release()


def run_all(study: Study, indices: Sequence[int], console: Console) -> dict[int, int]:
    """Run those that aren't finished, and say how each ended; returns their exit statuses (INTERRUPTED: or never started)."""
    record(study)
    todo = [index for index in indices if study.result(index).status != "finished"]
    if len(todo) < len(indices):
        console.say(f"{len(indices) - len(todo)} of {len(indices)} runs are finished already")
    with Children() as children, ThreadPoolExecutor(study.parallel) as threads, console.bar("sweep", "runs") as report:
        runner = Runner(study, children, console)
        report(0, len(todo))
        futures = {index: threads.submit(runner.run, index) for index in todo}
        while wait(futures.values(), timeout=LOOK_S).not_done:
            if console.live:
                runner.look(report, len(todo), sum(future.done() for future in futures.values()))
        return {index: future.result() for index, future in futures.items()}


class Runner:
    """Runs one after another, on as many threads as the study is parallel."""

    def __init__(self, study: Study, children: Children, console: Console) -> None:
        self.study, self.children, self.console = study, children, console
        self.slots: SimpleQueue[dict[str, str]] = SimpleQueue()
        for environment in slot_environments(study.parallel):
            self.slots.put(environment)
        self.differing = varying(study.runs)
        self.running: dict[
            int, tuple[Report, float]
        ] = {}  # who shows how far a run is, and how far it was at its start

    def look(self, report: Report, total: int, ended: int) -> None:
        """Tell how far each running run is, and to `report` how many of `total` there are done, the parts of runs among them."""
        parts = 0.0
        for index, (shown, first) in list(self.running.items()):
            step, steps = self.study.steps_done(index)
            shown(step, steps)
            parts += step / steps - first if steps else 0.0
        report(ended + parts, total)

    def run(self, index: int) -> int:
        """Run one to its end and return its exit status; once there was a signal, start nothing."""
        if self.children.received:
            return INTERRUPTED
        study, command = self.study, self.study.command(index)
        what = shlex.join(to_words({k: v for k, v in study.runs[index].items() if k in self.differing}))
        self.console.say(f"run {index:04d} starts: {what}")
        start, slot = time.monotonic(), self.slots.get()
        step, steps = study.steps_done(index)
        try:
            with study.log(index).open("a") as log:
                log.write(f"$ {shlex.join(command)}\n")
            with self.console.bar(f"run {index:04d} {what}", "steps") as report:
                self.running[index] = report, step / steps if steps else 0.0
                status = self.children.run(command, study.log(index), slot)
        except OSError as error:  # the others go on
            self.console.warn(f"run {index:04d} failed: {what}  {error}")
            return FAILED
        finally:
            self.running.pop(index, None)
            self.slots.put(slot)
        result = study.result(index)
        outcome = exit_status(status, result.status, stopping=self.children.received is not None)
        self._say(index, what, outcome, result, f"after {clock(time.monotonic() - start)}")
        return outcome

    def _say(self, index: int, what: str, outcome: int, result: Result, when: str) -> None:
        metric, log = self.study.sweep.metric, self.study.log(index)
        if outcome == FINISHED:
            self.console.say(
                f"run {index:04d} finished {when}: {what}  {metric.name} {metric.text(result.value)}", "green"
            )
        elif outcome == INTERRUPTED:
            self.console.warn(f"run {index:04d} interrupted {when}: {what}")
        else:
            self.console.warn(f"run {index:04d} failed with status {outcome} {when}: {what}  {last_line(log)} ({log})")


def slot_environments(parallel: int) -> list[dict[str, str]]:
    """Return what each of the slots adds to the environment: one of the GPUs, where several runs share them out."""
    gpus = torch.cuda.device_count() if parallel > 1 else 0
    if not gpus:
        return [{} for _ in range(parallel)]
    own = os.environ.get("CUDA_VISIBLE_DEVICES")  # a scheduler's choice; we see no others
    names = own.split(",") if own else [str(gpu) for gpu in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": names[slot % gpus]} for slot in range(parallel)]


def exit_status(status: int, summary: str, *, stopping: bool) -> int:
    """Return what a child's exit status means, given the status in its summary.json.

    A launcher reports an interrupt as 0, and before there was anything to save a signal just ends the process.
    """
    if status == FINISHED and summary == "finished":
        return FINISHED
    if status == INTERRUPTED or stopping or (status == FINISHED and summary == "interrupted"):
        return INTERRUPTED
    return WRONG_INPUT if status == WRONG_INPUT else FAILED


def overall(statuses: Sequence[int]) -> int:
    """Return the exit status of a sweep: interrupted, which the same command repairs, before failed."""
    if INTERRUPTED in statuses:
        return INTERRUPTED
    return FAILED if any(statuses) else FINISHED


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
