"""Times a configuration's steps, on every rank of a process group of its own: python -m cifar_dist.explain.worker JOB.json."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.exits import FINISHED, finish, guarded
from cifar_dist.optim.schedule import Schedule
from cifar_dist.runtime.accelerator import join
from cifar_dist.runtime.collectives import max_across_ranks, on_main, sum_across_ranks
from cifar_dist.training.build import Trainer, build, initialise
from cifar_dist.training.captured import CapturedSteps, capture_steps
from cifar_dist.training.compute import macs_per_sample
from cifar_dist.training.evaluation import evaluate
from cifar_dist.training.memory import fit_micro_batch
from cifar_dist.training.state import snapshot, to_bytes
from cifar_dist.training.step import count_passes, train_step, update
from cifar_dist.training.warmup import compile_first, settle_gradient_buckets

PROFILED_S = 1.0  # of steps that torch's profiler watches
CEILING_S = 0.3  # that each size of matrices is multiplied


def main(argv: Sequence[str]) -> int:
    """Do the job and return the exit status."""
    return guarded(lambda: explain(json.loads(Path(argv[0]).read_bytes())))


def explain(job: dict[str, Any]) -> int:
    """Measure, and have rank 0 write what was measured."""
    config = TrainConfig.from_dict(job["config"])
    join(config)
    trainer = fit_micro_batch(build(config, Console(speaks=False)), Console(speaks=False))
    initialise(trainer)
    settle_gradient_buckets(trainer)
    compile_first(trainer, Console(speaks=False))
    capture_steps(trainer, Console(speaks=False))
    steps = Steps(trainer)
    found: dict[str, Any] = {"step_s": steps.take(job["seconds"]), "batch_size": trainer.plan.batch_size}
    found["captured"] = isinstance(trainer.captured, CapturedSteps) and not trainer.captured.given_up
    if job["closely"]:
        found |= {"parts": parts(steps, job["seconds"]), **profiled(steps), "pauses": pauses(trainer)}
        found["eval_every"] = trainer.plan.epochs_between(config.eval_every)
        between = found["eval_every"] * trainer.plan.steps_per_epoch
        found["steps_between"] = between if between < trainer.plan.total_steps else None  # validations
        found |= {
            "ceiling": ceiling(trainer),
            "macs": macs_per_sample(config, trainer.plan, len(trainer.dataset.classes)),
        }
        found["threads"], found["micro_batch"] = torch.get_num_threads(), max(trainer.usual_sizes)
    on_main(lambda: Path(job["found"]).write_text(json.dumps(found)))
    return FINISHED


class Steps:
    """Steps of whole batches of a trainer, one after another."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, plan = trainer, trainer.plan
        self.schedule = Schedule.from_config(trainer.config, plan.total_steps, plan.steps_per_epoch)
        self.numbers, self.done = trainer.batches.whole_steps(), 0

    def next(self) -> int:
        """Return the number of the next step, short batches left out."""
        self.done += 1
        return self.numbers[(self.done - 1) % len(self.numbers)]

    def take(self, seconds: float) -> float:
        """Do steps for so long, after some that warm up; returns the seconds of a step, the slowest rank's. Collective."""

        def some(count: int) -> float:
            start = time.perf_counter()
            for _ in range(count):
                step = self.next()
                train_step(self.trainer, step, self.schedule.lr_at(step), measure_gradient=False)
            _ = self.trainer.state.sums.vector  # waits for the device, as a line of the record does
            return agreed(time.perf_counter() - start, self.trainer) / count

        a_step = some(3)
        a_step = some(max(1, min(500, round(0.3 * seconds / a_step))))
        return some(max(3, round(seconds / a_step)))


def agreed(seconds: float, trainer: Trainer) -> float:
    """Return the slowest rank's seconds. Collective."""
    return max_across_ranks(torch.tensor(seconds, dtype=torch.float64, device=trainer.device)).item()


def parts(steps: Steps, seconds: float) -> dict[str, float]:
    """Return the seconds of each part of an eager step on rank 0, each waited for: medians. Collective."""
    trainer, state, several = steps.trainer, steps.trainer.state, steps.trainer.plan.world_size > 1
    times: dict[str, list[float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        times.setdefault(name, []).append(time.perf_counter() - start)

    end = time.perf_counter() + seconds
    while agreed(time.perf_counter(), trainer) < end or len(times.get("passes", ())) < 3:
        step = steps.next()
        with timed("batches"):
            batches = list(trainer.batches.of_step(step))
        if several and not trainer.plan.shards:  # DDP exchanges gradients meanwhile
            with timed("alone"), trainer.accelerator.no_sync(state.wrapped):
                count_passes(trainer, step, batches)
            state.optimizer.zero_grad(set_to_none=True)
            sum_across_ranks(torch.zeros((), device=trainer.device))  # so that all begin together
        with timed("passes"):
            count_passes(trainer, step, batches)
        with timed("exchange"):
            trainer.reduction.finish(step)
        with timed("optimizer"):
            update(trainer, measure_gradient=False)
        if state.ema:
            with timed("average"):
                state.ema.update(step)
        _ = state.sums.vector
    found = {name: median(values) for name, values in times.items()}
    found["batches"] = mean(times["batches"])  # made for several small steps at once
    if alone := found.pop("alone", 0.0):
        found["exchange"] += max(0.0, found["passes"] - alone)
        found["passes"] = min(alone, found["passes"])
    return found if several else {name: s for name, s in found.items() if name != "exchange"}


def profiled(steps: Steps) -> dict[str, Any]:
    """Return operations of a step, and the share of its time inside them, on rank 0: the rest is Python, and launching on a GPU."""
    trainer = steps.trainer
    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    count = max(1, min(20, int(PROFILED_S / steps.take(0.2))))
    with profile(activities=activities) as seen:
        start = time.perf_counter()
        for _ in range(count):
            step = steps.next()
            train_step(trainer, step, steps.schedule.lr_at(step), measure_gradient=False)
        _ = trainer.state.sums.vector
        wall = time.perf_counter() - start
    events = seen.events() or []
    outermost = [
        e for e in events if e.device_type == DeviceType.CPU and e.name.startswith(("aten::", "torch::", "c10d::"))
    ]
    outermost = [e for e in outermost if not (e.cpu_parent and e.cpu_parent.name.startswith(("aten::", "torch::")))]
    if on_gpu:
        kernels = [e for e in events if e.device_type == DeviceType.CUDA]
        busy, operations = sum(e.time_range.elapsed_us() for e in kernels) / 1e6, len(kernels)
    else:
        busy, operations = sum(e.time_range.elapsed_us() for e in outermost) / 1e6, len(outermost)
    return {"operations": operations / count, "inside": min(1.0, busy / wall)}


def pauses(trainer: Trainer) -> dict[str, float]:
    """Return the seconds of a validation and of a checkpoint's bytes, the slowest rank's. Collective."""
    split = trainer.splits.val or trainer.splits.test
    start = time.perf_counter()
    evaluate(trainer.state.eval_model, split, trainer.normalize, len(trainer.dataset.classes), trainer.accelerator)
    validation = agreed(time.perf_counter() - start, trainer) * (trainer.splits.val is not None)
    start = time.perf_counter()
    content = snapshot(trainer.state)
    on_main(lambda: len(to_bytes(content)))
    return {"validation": validation, "checkpoint": agreed(time.perf_counter() - start, trainer)}


def ceiling(trainer: Trainer) -> float:
    """Return the multiply-accumulates a second of the best of some products of square matrices, of all ranks together. Collective."""
    kind = torch.bfloat16 if trainer.config.mixed_precision == "bf16" else torch.float32
    best = 0.0
    for side in (512, 1024, 2048, *((8192,) if trainer.device.type == "cuda" else ())):
        a, b = (torch.randn(side, side, device=trainer.device, dtype=kind) for _ in range(2))
        done, start = 0, time.perf_counter()
        while done < 2 or time.perf_counter() - start < CEILING_S:
            c = a @ b
            done += 1
            if trainer.device.type == "cuda" and done % 10 == 0:
                torch.cuda.synchronize(trainer.device)
        _ = c[0, 0].item()
        best = max(best, done * side**3 / (time.perf_counter() - start))
    return sum_across_ranks(torch.tensor(best, dtype=torch.float64, device=trainer.device)).item()


if __name__ == "__main__":
    finish(main(sys.argv[1:]))
