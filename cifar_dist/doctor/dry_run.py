"""What a given run would do: its batches, its length, where it would go, and by a few real steps its memory and time."""

import math
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console, clock
from cifar_dist.data import Split, load_dataset, make_splits
from cifar_dist.doctor.cached_data import cache_folder
from cifar_dist.doctor.check import Check, Visit
from cifar_dist.doctor.lines import Answer, Line, count, duration, ok, size, warning
from cifar_dist.doctor.wire import finish
from cifar_dist.errors import UserError
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models.losses import training_loss
from cifar_dist.optim.schedule import Schedule
from cifar_dist.record import checkpoint
from cifar_dist.record.folder import SUMMARY_FILE, RunFolder
from cifar_dist.runtime import collectives
from cifar_dist.runtime.accelerator import accelerate, choose_precision
from cifar_dist.training.engine import Run, forward, settle_gradient_buckets, train_step
from cifar_dist.training.evaluation import EVAL_BLOCK, prepared
from cifar_dist.training.resume import new_folder, resume_source
from cifar_dist.training.state import build_state

WARMUP_STEPS, FEWEST_STEPS, MOST_STEPS = 3, 2, 1000
WARMUP_S = 3.0  # after which a slow machine is warm
MEASURE_S = 6.0  # of steps, as long as that allows at least FEWEST_STEPS
TIGHT_SHARE = 0.9  # of a GPU's memory


def measure(visit: Visit) -> dict[str, Any]:
    """Build the run without its folder, do a few steps, and return what it takes."""
    config, run = visit.config, build(visit.config)
    plan, splits = run.plan, run.splits
    try:
        measured = measure_steps(run)
    except torch.OutOfMemoryError:
        raise UserError(
            f"a step does not fit into the memory of {run.device}; use a smaller --micro-batch-size, or --mixed-precision bf16"
        ) from None
    evaluations = sum(plan.is_epoch_end(step, config.eval_every) for step in range(1, plan.total_steps + 1))
    blocks = evaluations * blocks_per_rank(splits.val, plan) + config.test * blocks_per_rank(splits.test, plan)
    return measured | {
        "data": f"{run.dataset.name}: {len(splits.train):,} train, {len(splits.val or ()):,} val, {len(splits.test):,} test",
        "synthetic": run.dataset.synthetic,
        "parameters": sum(p.numel() for p in run.state.bare.parameters()),
        "batch": plan.arithmetic(),
        "steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "images": plan.samples_before(plan.total_steps),
        "images_per_s": plan.batch_size / statistics.mean(measured["step_s"]),
        "evaluation_s": blocks * measured["block_s"],
        "evaluations": (evaluations if splits.val else 0) + config.test,
        "destination": destination(config),
    }


def measure_steps(run: Run) -> dict[str, Any]:
    """Return the seconds of some steps and of a block of evaluation, and the bytes that they take. Collective."""
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    state, step_s = run.state, time_steps(run)
    parameters = tensor_bytes(state.bare.parameters())
    moments = (t for moments in state.optimizer.state.values() for t in moments.values() if isinstance(t, Tensor))
    parts = {"parameters": parameters, "gradients": parameters, "optimizer": tensor_bytes(moments)}
    parts["average"] = tensor_bytes(state.ema.module.state_dict().values()) if state.ema else 0
    micro_batch, parts["activations"] = activation_bytes(run)
    block_s = time_evaluation(run)
    return {
        "step_s": step_s,
        "block_s": block_s,
        "bytes": parts,
        "micro_batch": micro_batch,
        "peak": peak_bytes(run.device),
    }


def build(config: TrainConfig) -> Run:
    """Return the run on this rank, as `run.start_run` builds it, with no folder behind it. Collective."""
    folder = collectives.on_all(lambda: cache_folder(config.data, Path(config.data_dir)))
    if not collectives.on_main(folder.is_dir):
        raise UserError(f"the data is not prepared, so no step can be made; see the advice on data ({folder})")
    config = replace(choose_precision(config), early_size=None)  # the most memory, and the most time
    accelerator = accelerate(config)
    dataset = collectives.on_all(lambda: load_dataset(config.data, Path(config.data_dir)))
    splits = make_splits(dataset, config, accelerator.device)
    plan = BatchPlan.from_config(config, len(splits.train), accelerator.num_processes)
    halves = (0.5,) * len(dataset.mean)
    mean, std = (halves, halves) if config.normalize == "half" else (dataset.mean, dataset.std)
    state, normalize = build_state(config, len(dataset.classes), accelerator), Normalize(mean, std, accelerator.device)
    nowhere, silent = RunFolder(Path("/dev/null")), Console(speaks=False)
    no_signals: Any = None  # only the loop around the steps looks at them
    return Run(config, accelerator, dataset, splits, plan, normalize, state, nowhere, silent, no_signals)


def time_steps(run: Run) -> list[float]:
    """Return the seconds of some steps after the warm-up; as many on every rank. Collective."""
    schedule = Schedule.from_config(run.config, run.plan.total_steps, run.plan.steps_per_epoch)

    def timed_step(step: int) -> float:
        step %= max(1, min(run.plan.total_steps, run.plan.num_images // run.plan.batch_size))  # full batches only
        start = time.perf_counter()
        train_step(run, step, schedule.lr_at(step), measure_gradient=False)
        finish(run.device)
        return time.perf_counter() - start

    settle_gradient_buckets(run)
    warm: list[float] = []
    while len(warm) < WARMUP_STEPS and collectives.on_main(lambda: sum(warm)) < WARMUP_S:
        warm.append(timed_step(len(warm)))
    count = collectives.on_main(lambda: min(MOST_STEPS, max(FEWEST_STEPS, round(MEASURE_S / warm[-1]))))
    return [timed_step(len(warm) + i) for i in range(count)]


def activation_bytes(run: Run) -> tuple[int, int]:
    """Return the images of the largest micro-batch, and what its forward pass keeps for the backward pass. Collective."""
    kept: dict[int, int] = {}
    state = run.state
    tensors = (*state.bare.parameters(), *state.bare.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    places = max(run.plan.micro_batches(0, run.rank), key=len)
    with run.accelerator.no_sync(state.model), state.statistics.frozen():
        batch = run.batches.load(0, torch.arange(places.start, places.stop, device=run.device))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = forward(run, batch)
            loss = training_loss(state.bare, outputs, batch.labels, run.config.label_smoothing, progress=0.0)
        run.accelerator.backward(loss)
    state.optimizer.zero_grad(set_to_none=True)
    return len(places), sum(kept.values())


def time_evaluation(run: Run) -> float:
    """Return the seconds of one block of evaluation on this rank."""
    model, split = run.state.eval_model, run.splits.test
    pixels, _ = split.gather(torch.arange(min(EVAL_BLOCK, len(split)), device=run.device))
    seconds = 0.0
    with prepared(model), torch.inference_mode(), run.accelerator.autocast():
        for _ in range(2):  # the first warms up, unless it takes long anyway
            if seconds < WARMUP_S:
                start = time.perf_counter()
                model(run.normalize(pixels))
                finish(run.device)
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
    summary, steps = folder.read_json(SUMMARY_FILE) or {}, checkpoint.saved_steps(folder.checkpoints)
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
    epochs = facts["steps"] / facts["steps_per_epoch"]
    lines.append(ok("length", f"{facts['steps']:,} steps, {epochs:g} epochs of {facts['steps_per_epoch']:,}"))
    return [*lines, memory_line(answers), time_line(answers), ok("folder", facts["destination"])]


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
