"""What a given run would do: its batches, its length, where it would go, and by a few real steps its memory and time."""

import math
import resource
import statistics
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Split, cache_folder
from cifar_dist.doctor.check import Check, Visit
from cifar_dist.doctor.lines import Answer, Line, ok, warning
from cifar_dist.doctor.wire import finish
from cifar_dist.errors import UserError
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.optim.schedule import Schedule
from cifar_dist.record import checkpoint
from cifar_dist.record.folder import RunFolder
from cifar_dist.runtime.collectives import on_all, on_main
from cifar_dist.text import clock, count, duration, length, size
from cifar_dist.training.build import Trainer, build
from cifar_dist.training.evaluation import EVAL_BLOCK, evaluating
from cifar_dist.training.memory import fit_micro_batch, kept_bytes
from cifar_dist.training.pace import slow_ranks
from cifar_dist.training.resume import new_folder, resume_source
from cifar_dist.training.step import train_step
from cifar_dist.training.warmup import settle_gradient_buckets

WARMUP_STEPS, FEWEST_STEPS, MOST_STEPS = 3, 2, 1000
WARMUP_S = 3.0  # after which a slow machine is warm
MEASURE_S = 6.0  # of steps, as long as that allows at least FEWEST_STEPS
TIGHT_SHARE = 0.9  # of a GPU's memory


def measure(visit: Visit) -> dict[str, Any]:
    """Build the run without its folder, do a few steps, and return what it takes."""
    trainer = build_prepared(visit.config, visit.given)
    config, plan, splits = trainer.config, trainer.plan, trainer.splits
    try:
        measured = measure_steps(trainer)
    except torch.OutOfMemoryError:
        raise UserError(
            f"a step does not fit into the memory of {trainer.device}; use a smaller --micro-batch-size, or --mixed-precision bf16"
        ) from None
    evaluations = sum(plan.is_epoch_end(step, config.eval_every) for step in range(1, plan.total_steps + 1))
    blocks = evaluations * blocks_per_rank(splits.val, plan) + config.test * blocks_per_rank(splits.test, plan)
    return measured | {
        "data": f"{trainer.dataset.name}: {len(splits.train):,} train, {len(splits.val or ()):,} val, {len(splits.test):,} test",
        "synthetic": trainer.dataset.synthetic,
        "parameters": sum(p.numel() for p in trainer.state.model.parameters()),
        "batch": plan.arithmetic(),
        "steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "images": plan.samples_before(plan.total_steps),
        "images_per_s": plan.batch_size / statistics.mean(measured["step_s"]),
        "evaluation_s": blocks * measured["block_s"],
        "evaluations": (evaluations if splits.val else 0) + config.test,
        "destination": destination(config),
    }


def measure_steps(trainer: Trainer) -> dict[str, Any]:
    """Return the seconds of some steps and of a block of evaluation, and the bytes that they take. Collective."""
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    state, step_s = trainer.state, time_steps(trainer)
    parameters = tensor_bytes(state.model.parameters())
    moments = (t for moments in state.optimizer.state.values() for t in moments.values() if isinstance(t, Tensor))
    parts = {"parameters": parameters, "gradients": parameters, "optimizer": tensor_bytes(moments)}
    parts["average"] = tensor_bytes(state.ema.module.state_dict().values()) if state.ema else 0
    micro_batch, parts["activations"] = activation_bytes(trainer)
    block_s = time_evaluation(trainer)
    return {
        "step_s": step_s,
        "block_s": block_s,
        "bytes": parts,
        "micro_batch": micro_batch,
        "peak": peak_bytes(trainer.device),
    }


def build_prepared(config: TrainConfig, given: Container[str]) -> Trainer:
    """Return what the run would train, if its data is prepared. Collective."""
    folder = on_all(lambda: cache_folder(config.data, Path(config.data_dir), config.image_size))
    if not on_main(folder.is_dir):
        raise UserError(f"the data is not prepared, so no step can be made; see the advice on data ({folder})")
    return fit_micro_batch(build(config, Console(speaks=False), given), Console(speaks=False))


def time_steps(trainer: Trainer) -> list[float]:
    """Return the seconds of some steps of full batches, after the warm-up; as many on every rank. Collective."""
    steps, plan = trainer.batches.whole_steps(), trainer.plan
    schedule = Schedule.from_config(trainer.config, plan.total_steps, plan.steps_per_epoch)

    def timed_step(number: int) -> float:
        step = steps[number % len(steps)]
        start = time.perf_counter()
        train_step(trainer, step, schedule.lr_at(step), measure_gradient=False)
        finish(trainer.device)
        return time.perf_counter() - start

    settle_gradient_buckets(trainer)
    warm: list[float] = []
    while len(warm) < WARMUP_STEPS and on_main(lambda: sum(warm)) < WARMUP_S:
        warm.append(timed_step(len(warm)))
    count = on_main(lambda: min(MOST_STEPS, max(FEWEST_STEPS, round(MEASURE_S / warm[-1]))))
    return [timed_step(len(warm) + i) for i in range(count)]


def activation_bytes(trainer: Trainer) -> tuple[int, int]:
    """Return the images of the largest micro-batch, and what its forward pass keeps for the backward pass. Collective."""
    first = trainer.batches.whole_steps()[0]
    places = max(trainer.plan.micro_batches(first, trainer.rank), key=len)
    return len(places), kept_bytes(trainer, trainer.plan.batch(first)[0], places)


def time_evaluation(trainer: Trainer) -> float:
    """Return the seconds of one block of evaluation on this rank."""
    model, split = trainer.state.eval_model, trainer.splits.test
    pixels, _ = split.gather(torch.arange(min(EVAL_BLOCK, len(split)), device=trainer.device))
    seconds = 0.0
    with evaluating(model, trainer.accelerator):
        for _ in range(2):  # the first warms up, unless it takes long anyway
            if seconds < WARMUP_S:
                start = time.perf_counter()
                model(trainer.normalize(pixels))
                finish(trainer.device)
                seconds = time.perf_counter() - start
    return seconds


def blocks_per_rank(split: Split | None, plan: BatchPlan) -> int:
    return math.ceil(math.ceil(len(split or ()) / EVAL_BLOCK) / plan.world_size)


def tensor_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(device: torch.device) -> dict[str, float]:
    """Return the most memory used until now, and on a GPU all there is."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return {"peak": torch.cuda.max_memory_allocated(device), "total": total}
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def destination(config: TrainConfig) -> str:
    """Return the folder the run would write, and what it would do with what is there."""
    source, _ = resume_source(config.resume)
    path = Path(config.output_dir) if config.output_dir else source or new_folder(config)
    folder = RunFolder(path)
    summary, steps = folder.summary() or {}, checkpoint.saved_steps(folder.checkpoints)
    if config.resume == "never" and path.exists():
        return f"{path}: the run there would be moved aside"
    if summary.get("status") == "finished":
        return f"{path}: the run there is finished, so nothing would be trained"
    if steps:
        return f"{path}: goes on from its checkpoint of step {steps[-1]}, with the options recorded there"
    if source and source != path:
        return f"{path}: goes on from a copy of {source}"
    return f"{path}: a new run (not made by this command)"


def judge(answers: Sequence[Answer]) -> list[Line]:
    facts = answers[0].facts
    lines = [ok("data", facts["data"] + ", SYNTHETIC: not CIFAR-10" * facts["synthetic"])]
    lines.append(ok("model", f"{facts['parameters']:,} parameters"))
    lines.append(ok("global batch", facts["batch"]))
    lines.append(ok("length", length(facts["steps"], facts["steps_per_epoch"])))
    return [*lines, memory_line(answers), *pace_lines(answers), time_line(answers), ok("folder", facts["destination"])]


def pace_lines(answers: Sequence[Answer]) -> list[Line]:
    """Return a line for each rank that is much slower than the others."""
    slow = slow_ranks([answer.facts["block_s"] for answer in answers])
    advice = "see what else runs there, its cores, its GPU's clock and temperature; or leave it out"
    text = "takes {:.1f} times as long as the others to evaluate as many images, and they wait for it at each step"
    return [warning("pace", f"{answers[rank].where} {text.format(times)}", advice) for rank, times in slow.items()]


def memory_line(answers: Sequence[Answer]) -> Line:
    fullest = max(answers, key=lambda a: a.facts["peak"]["peak"])
    facts = fullest.facts
    parts = [f"{name} {size(count)}" for name, count in facts["bytes"].items() if count]
    total, peak = sum(facts["bytes"].values()), facts["peak"]
    text = f"{size(total)} a process = {' + '.join(parts)} (measured on a micro-batch of {facts['micro_batch']})"
    if "total" not in peak:
        return ok("memory", f"{text}; with torch and the data {size(peak['peak'])} at most")
    text += f"; {size(peak['peak'])} of {size(peak['total'])} at most on {fullest.where}"
    if peak["peak"] > TIGHT_SHARE * peak["total"]:
        return warning("memory", text, "use a smaller --micro-batch-size, or --mixed-precision bf16")
    return ok("memory", text)


def time_line(answers: Sequence[Answer]) -> Line:
    facts = min((a.facts for a in answers), key=lambda f: f["images_per_s"])
    training_s, evaluation_s = facts["images"] / facts["images_per_s"], max(a.facts["evaluation_s"] for a in answers)
    steps = facts["step_s"]
    text = (
        f"about {clock(training_s + evaluation_s)}, an estimate: {clock(training_s)} for {facts['images']:,} images at "
        f"{facts['images_per_s']:,.0f} a second, {clock(evaluation_s)} for {count(facts['evaluations'], 'evaluation')}, "
        f"without checkpoints and pictures; from {len(steps)} steps of {duration(min(steps))} to {duration(max(steps))}"
    )
    return ok("time", text)


CHECK = Check("run", "The run", measure, judge, timeout_s=300.0, collective=True)
