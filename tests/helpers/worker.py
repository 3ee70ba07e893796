"""Runs several train.py command lines in one set of processes: torchrun tests/helpers/worker.py JOBS.json.

Importing torch costs more than the runs; so they share the processes. A job may ask to record what each rank sees, or to
be stopped by a signal at one rank.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from cifar_dist.cli.train import main
from cifar_dist.exits import finish
from cifar_dist.inputs.batches import Batches
from cifar_dist.runtime import collectives
from cifar_dist.training import engine, evaluation, preemption
from cifar_dist.training.views import Views

Views._draw = Views._write_page = lambda _: None  # type: ignore[method-assign] # they cost more than the training
evaluation.EVAL_BLOCK = 7  # so that the small sets have several blocks for the ranks to share
of_step, train_step, vote_every_s = Batches.of_step, engine.train_step, preemption.VOTE_EVERY_S


def run(job: dict[str, Any]) -> None:
    """Run one job: {"argv", "record": a folder or None, "stop": {"rank", "step"} or None}."""
    AcceleratorState._reset_state()  # it keeps one precision a process
    rank = int(os.environ["RANK"])

    def recording(batches, step):
        for batch in of_step(batches, step):
            digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in batch.images]
            visits = [divmod(position, batches.plan.num_images) for position in batch.positions.tolist()]
            seen = [[*visit, digest] for visit, digest in zip(visits, digests, strict=True)]
            with Path(job["record"], f"rank-{rank}.jsonl").open("a") as file:
                file.write(json.dumps([step, seen]) + "\n")
            yield batch

    def stopping(run, step, *rest):
        gradient_norm = train_step(run, step, *rest)
        if step + 1 == job["stop"]["step"] and rank == job["stop"]["rank"]:
            os.kill(os.getpid(), signal.SIGUSR1)
        return gradient_norm

    Batches.of_step = recording if job["record"] else of_step
    engine.train_step = stopping if job["stop"] else train_step
    preemption.VOTE_EVERY_S = 0.0 if job["stop"] else vote_every_s
    status = main(job["argv"])
    if status:
        finish(status)


if __name__ == "__main__":
    stop = collectives.stop
    collectives.stop = lambda: None  # the jobs share a process group
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
    stop()
    finish(0)
