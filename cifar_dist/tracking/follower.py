"""The process that shows a run in Weights & Biases: reads the record as it grows, sends it, and mends what breaks.

A row goes out for each line of metrics.jsonl, in order, so the number of rows that have arrived says where to go on: nothing
is sent twice and nothing is left out, whatever was killed in between. (A run that goes on from a checkpoint writes the lines
after it again, and the same.)
"""

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psutil

from cifar_dist.files import acquire
from cifar_dist.record.folder import METRICS_FILE, WANDB_LOCK, WEIGHTS_FILE
from cifar_dist.record.lines import Line
from cifar_dist.record.reader import RunRecord, read_run
from cifar_dist.text import reason
from cifar_dist.tracking.link import (
    PROJECT,
    Link,
    client_environment,
    group_name,
    has_key,
    open_link,
    read_link,
    write_link,
)
from cifar_dist.tracking.rows import SIZE, final_row, row
from cifar_dist.tracking.segments import read_segment

POLL_S = 1.0
SETTLE_S = 10.0  # the server counts what has arrived only after some seconds
INIT_TIMEOUT_S = 10.0
FINISH_TIMEOUT_S = 45.0
ATTEMPTS = 4
HERE = Path()  # the run folder, wherever it is moved
OUTSIDE = dict(os.environ)  # before the client adds to it


class Record:
    """The lines of metrics.jsonl, read as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def new_lines(self) -> Iterator[Line]:
        """Yield the whole lines that were added since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)


def main(argv: list[str]) -> int:
    """Follow the run in a folder until training, which holds our standard input open, is gone. argv: FOLDER MODE [ATTEMPT]."""
    mode, attempt = argv[1], int(argv[2]) if len(argv) > 2 else 1
    os.chdir(argv[0])  # and no other path: the folder may be moved aside, and another run take its name
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # training decides when it ends
    os.nice(5)
    os.environ.pop("WANDB_MODE", None)  # training has looked at it
    os.environ.update(client_environment(Path.cwd()))
    logging.raiseExceptions = False  # the client's own log may be on a full disk
    held = acquire(Path(WANDB_LOCK), timeout_s=-1)  # the one of a training that was killed may still be at it
    link = read_link(HERE) or open_link(HERE)
    try:
        send(link, mode)
    except Exception as error:
        print(f"attempt {attempt}: {reason(error)}", flush=True)
        link.note = reason(error)
        write_link(HERE, link)
        if attempt == ATTEMPTS:
            return 1
        for child in psutil.Process().children(recursive=True):
            child.kill()
        held.release()
        # Start over as a new program: what state the library is in after its service died, nobody knows.
        again = [sys.executable, "-m", "cifar_dist.tracking.follower", ".", mode, str(attempt + 1)]
        os.execve(sys.executable, again, OUTSIDE)
    return 0


def send(link: Link, mode: str) -> None:
    """Send the record of a run, from where it was left, until training is gone."""
    run, sent = start(read_run(Path.cwd()), link, mode)
    write_link(HERE, link)
    lines, index, last = Record(Path(METRICS_FILE)), 0, False
    while not last:
        last = trainer_is_gone(POLL_S)
        for line in lines.new_lines():
            if index >= sent:
                run.log(row(line))
            index += 1
    finish(run, read_run(Path.cwd()), has_final_row=sent > index)
    link.complete = link.mode == "online"
    write_link(HERE, link)


def settle(link: Link) -> None:
    """Wait until the server has counted all that the segment before sent; else we would send some of it again."""
    before = Path(link.directories[-1]) / f"run-{link.id}.wandb" if link.directories else None
    if before and before.exists():
        time.sleep(min(max(0.0, before.stat().st_mtime + SETTLE_S - time.time()), SETTLE_S))


def trainer_is_gone(wait_s: float) -> bool:
    """Whether our standard input has been closed, in this time."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def start(record: RunRecord, link: Link, mode: str) -> tuple[Any, int]:
    """Open the run there, or offline where that can't be; return it and how many rows it has."""
    import wandb

    before = sum(len(read_segment(Path(directory)).rows) for directory in link.directories)
    link.mode, link.note = "offline", ""
    if mode != "offline" and not has_key():
        link.note = "no API key; wandb login stores one"
    elif mode != "offline":
        settle(link)
        try:
            link.mode, run = "online", init(record, link, "online")
        except Exception as error:
            wandb.teardown()  # else the id is taken
            link.mode, link.note = "offline", reason(error)
    if link.mode == "offline":
        run = init(record, link, "offline")
    link.directories.append(str(Path(run.settings.sync_dir).resolve()))
    link.url = run.url or link.url
    path = "/".join(filter(None, (run.entity, run.project, run.id)))
    link.path = max(link.path, path, key=lambda path: path.count("/"))  # offline the entity isn't known
    return run, run.starting_step if link.mode == "online" else before


def init(record: RunRecord, link: Link, mode: Literal["online", "offline"]) -> Any:
    """Start a segment of the run: the first, or one that goes on with it."""
    import wandb

    config = record.config
    *entity, project = link.path.split("/")[:-1] or [os.environ.get("WANDB_PROJECT", PROJECT)]
    settings = wandb.Settings(
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        x_stats_pid=os.getppid(),
        x_file_stream_retry_wait_max_seconds=10,
        stop_fn=lambda: stop_training(link),
    )
    run = wandb.init(
        entity=entity[0] if entity else None,
        project=project,
        id=link.id,
        resume="allow",
        mode=mode,
        name=record.name,
        group=group_name(config),
        job_type="train",
        tags=config["wandb_tags"] or None,  # None: as before, or WANDB_TAGS
        settings=settings,
    )
    size = {name: record.summary.get(name) for name in SIZE}
    run.config.update({**config, "dataset": record.dataset, "start": record.starts[-1], **size}, allow_val_change=True)
    run.define_metric("global_step", hidden=True)
    run.define_metric("*", step_metric="global_step")
    return run


def stop_training(link: Link) -> None:
    """Do what the stop button asks for: training saves a checkpoint, and all its ranks end. Called from another thread."""
    if trainer_is_gone(0.0):
        return
    link.stop_asked = True
    write_link(HERE, link)
    os.kill(os.getppid(), signal.SIGUSR2)


def finish(run: Any, record: RunRecord, *, has_final_row: bool) -> None:
    """Send what is known at the end, and close the run with the state it has."""
    import wandb

    if record.status == "finished" and not has_final_row:
        run.log(final_row(record))
    if record.status == "finished" and record.config["wandb_weights"]:
        weights = wandb.Artifact(f"{record.name}-weights", type="model", metadata={"test": record.summary["test"]})
        weights.add_file(str(record.path / WEIGHTS_FILE))
        run.log_artifact(weights)
    for name in ("status", "best_step", "generalisation_gap"):
        run.summary[name] = record.summary.get(name)
    if record.status == "interrupted":
        run.mark_preempting()
    run.finish(exit_code=0 if record.status == "finished" else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
