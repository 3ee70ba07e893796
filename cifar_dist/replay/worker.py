"""Does a job's steps, on every rank of its own process group: python -m cifar_dist.replay.worker JOB.json. Rank 0 writes what it saw."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.exits import FINISHED, finish, guarded
from cifar_dist.optim.schedule import Schedule
from cifar_dist.record import checkpoint
from cifar_dist.record.folder import TRAINING_FILE, RunFolder
from cifar_dist.replay.witness import Witness
from cifar_dist.runtime.accelerator import join
from cifar_dist.runtime.collectives import on_main
from cifar_dist.training.build import Trainer, build, initialise
from cifar_dist.training.captured import capture_steps
from cifar_dist.training.recording import digests, label
from cifar_dist.training.state import restore
from cifar_dist.training.step import train_step
from cifar_dist.training.warmup import compile_first, settle_gradient_buckets


def main(argv: Sequence[str]) -> int:
    """Do the job and return the exit status."""
    return guarded(lambda: replay(json.loads(Path(argv[0]).read_bytes())))


def replay(job: dict[str, Any]) -> int:
    config = TrainConfig.from_dict(job["config"])
    join(config)
    trainer = at_step(config, Path(job["folder"]), job["start"])
    plan = trainer.plan
    schedule = Schedule.from_config(config, plan.total_steps, plan.steps_per_epoch)
    settle_gradient_buckets(trainer)
    compile_first(trainer, Console(speaks=False))
    capture_steps(trainer, Console(speaks=False))
    lines: list[dict[str, Any]] = []
    for step in range(job["start"], job["stop"]):
        lr, seen = schedule.lr_at(step), {}
        if step == job["closely"]:
            captured, trainer.captured = trainer.captured, None  # which nobody could look into
            with Witness(trainer) as witness:
                train_step(trainer, step, lr, measure_gradient=True)
            seen, trainer.captured = witness.testimony(), captured
        else:
            train_step(trainer, step, lr, measure_gradient=False)
        _ = trainer.state.sums.vector  # or what steps leave to be counted would pile up
        last = step == job["stop"] - 1
        if last:
            label(trainer)  # as before each validation; of a map that takes a look at all training images
        if last or job["every"] or step == job["closely"]:
            lines.append({"step": step + 1, "lr": lr, **digests(trainer), **seen})
    on_main(lambda: Path(job["trace"]).write_text("".join(json.dumps(line) + "\n" for line in lines)))
    return FINISHED


def at_step(config: TrainConfig, folder: Path, step: int) -> Trainer:
    """Return what trains as it was after `step` steps, of which there is a checkpoint. Collective."""
    trainer = build(config, Console(speaks=False))
    if step:
        where = checkpoint.folder_for(RunFolder(folder).checkpoints, step)
        restore(trainer.state, on_main(lambda: checkpoint.load(where)).files[TRAINING_FILE])
    else:
        initialise(trainer)
    return trainer


if __name__ == "__main__":
    finish(main(sys.argv[1:]))
