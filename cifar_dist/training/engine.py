"""The training loop. Read this file first."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from signal import Signals
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Dataset, Split, Splits
from cifar_dist.errors import DivergedError
from cifar_dist.files import write_atomically
from cifar_dist.inputs.batches import Batch, Batches
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models import memory_format
from cifar_dist.models.losses import training_loss
from cifar_dist.models.som import Som
from cifar_dist.optim.optimizer import set_lr
from cifar_dist.optim.schedule import Schedule
from cifar_dist.record import checkpoint, curves
from cifar_dist.record.folder import RunFolder
from cifar_dist.runtime.collectives import on_main, sum_across_ranks
from cifar_dist.runtime.compiling import eagerly
from cifar_dist.training.evaluation import evaluate, label_units
from cifar_dist.training.metrics import EvalResult
from cifar_dist.training.preemption import Ballot, StopSignals
from cifar_dist.training.state import TRAINING_FILE, WEIGHTS_FILE, TrainState, snapshot, to_bytes
from cifar_dist.training.stopwatch import Stopwatch
from cifar_dist.training.weights import describe_weights, pack_weights

NUM_SAMPLES = 50  # evaluated images that the run folder keeps


@dataclass
class Run:
    """One run on one rank: what is fixed, and the state that steps change."""

    config: TrainConfig
    accelerator: Accelerator
    dataset: Dataset
    splits: Splits
    plan: BatchPlan
    normalize: Normalize
    state: TrainState
    folder: RunFolder
    console: Console
    signals: StopSignals
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    batches: Batches = field(init=False)
    usual_sizes: set[int] = field(init=False)  # of this rank's micro-batches: one, or two that differ by an image

    def __post_init__(self) -> None:
        self.usual_sizes = {len(places) for places in self.plan.micro_batches(0, self.rank)}
        self.batches = Batches(
            self.config, self.splits.train, self.plan, self.normalize, self.rank, memory_format(self.state.bare)
        )

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        return self.accelerator.device


def train(run: Run, after_evaluation: Callable[[], None] | None = None) -> Signals | None:
    """Do the steps that are left. Returns the signal that stopped it, after a checkpoint, or None when all are done."""
    config, plan, progress = run.config, run.plan, run.state.progress
    schedule = Schedule.from_config(config, plan.total_steps, plan.steps_per_epoch)
    ballot = Ballot(run.signals, config.checkpoint_minutes * 60, progress.step)
    settle_gradient_buckets(run)
    compile_first(run)
    run.stopwatch.start(plan.samples_before(progress.step))

    while progress.step < plan.total_steps:
        evaluation_due = plan.is_epoch_end(progress.step + 1, config.eval_every)
        log_due = evaluation_due or plan.is_log_step(progress.step + 1, config.log_every)
        lr = schedule.lr_at(progress.step)
        gradient_norm = train_step(run, progress.step, lr, log_due)
        progress.step += 1
        run.console.advance(progress.step)

        if not (log_due or ballot.due(progress.step)):
            continue
        decision = ballot.vote(progress.step, run.state.sums.vector[0])
        if decision.diverged:
            raise DivergedError(f"the loss became nan or infinite at or shortly before step {progress.step}")
        if log_due:
            log_training(run, lr, gradient_norm)
        save_due = evaluation_due or decision.checkpoint or decision.stop
        if save_due:
            label_map(run)
        if evaluation_due:
            validate(run)
        if save_due:
            save_checkpoint(run)
            ballot.checkpoint_saved()
        if evaluation_due and after_evaluation:
            with run.stopwatch.paused():
                after_evaluation()
        if decision.stop and progress.step < plan.total_steps:
            return decision.stop
    return None


def train_step(run: Run, step: int, lr: float, measure_gradient: bool) -> Tensor | None:
    """Do optimizer step `step`, counted from 0: this rank's share of one global batch.

    Returns the gradient's L2 norm () before clipping, if it was asked for or is known anyway.
    """
    config, plan, state, accelerator = run.config, run.plan, run.state, run.accelerator
    places = plan.batch(step)[1]
    last = plan.accumulation(len(places)) - 1
    set_lr(state.optimizer, lr)
    weights = plan.statistics_weights(step, run.rank)
    shards = state.shard_gradients
    # DDP takes the mean of the ranks' gradients; we want the sum over images, divided by the global batch.
    scale = (1 if shards else plan.world_size) / len(places)
    for i, batch in enumerate(run.batches.of_step(step)):
        state.statistics.weigh(weights, i)
        with nullcontext() if i == last and not shards else accelerator.no_sync(state.model):  # one all-reduce a step
            outputs = forward(run, batch)
            loss_sum = training_loss(
                state.bare, outputs, batch.labels, config.label_smoothing, progress=step / plan.total_steps
            )
            backward(run, loss_sum, scale)
        if shards:
            shards.take()
        state.sums.add(loss_sum, None if isinstance(state.bare, Som) else outputs, batch.labels)
    if shards:
        shards.give_back()
    gradient_norm = None
    if config.max_grad_norm is not None:
        gradient_norm = accelerator.clip_grad_norm_(state.model.parameters(), config.max_grad_norm)
    elif measure_gradient:
        accelerator.unscale_gradients()
        gradients = [p.grad for p in state.bare.parameters() if p.grad is not None]
        gradient_norm = torch.nn.utils.get_total_norm(gradients)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(step)
    return gradient_norm


def forward(run: Run, batch: Batch) -> Tensor:
    """Return the model's outputs. A rank without images takes part too, or the others would wait for its gradient for ever."""
    state = run.state
    state.masks.draw(batch.positions)
    if len(batch.images) or run.config.batch_norm == "sync":
        with nullcontext() if len(batch.images) in run.usual_sizes else eagerly(state.bare):
            return state.model(batch.images)
    with state.statistics.frozen(), eagerly(state.bare):
        return state.model(batch.images)


def backward(run: Run, loss_sum: Tensor, scale: float) -> None:
    """Add up the gradients of `scale` times the loss."""
    if run.state.scaler:
        run.accelerator.backward(loss_sum * scale)
    else:  # the same numbers, with two operations fewer and none of their backward passes
        loss_sum.backward(torch.full_like(loss_sum, scale))


def settle_gradient_buckets(run: Run) -> None:
    """Do one backward pass over no images, after which DDP has its final order of gradients.

    It reorders them after the first pass of every process, and sums in another order round differently: without this
    the first step after a restart would not be bit for bit the step an uninterrupted run takes.
    """
    if run.plan.world_size == 1:
        return
    state = run.state
    state.masks.draw(torch.zeros(0, dtype=torch.int64, device=run.device))
    with state.statistics.frozen(), eagerly(state.bare):
        outputs = state.model(torch.zeros(0, 3, 32, 32, device=run.device))
    run.accelerator.backward(outputs.sum())
    state.optimizer.zero_grad(set_to_none=True)


def compile_first(run: Run) -> None:
    """Do a pass over each size of images to come that leaves no trace, so that compiling the model isn't counted as training."""
    if not run.config.compile:
        return
    state, start = run.state, time.monotonic()
    run.console.say("compiling the model; the next run finds what is compiled now", "dim")
    before = [buffer.clone() for buffer in state.bare.buffers()]
    for step in run.batches.first_steps(state.progress.step):
        weights = run.plan.statistics_weights(step, run.rank)
        for i, batch in enumerate(run.batches.of_step(step)):
            state.statistics.weigh(weights, i)
            with run.accelerator.no_sync(state.model):
                forward(run, batch).sum().backward()
    state.optimizer.zero_grad(set_to_none=True)
    for buffer, values in zip(state.bare.buffers(), before, strict=True):
        buffer.copy_(values)
    run.console.say(f"compiled in {time.monotonic() - start:.0f} s", "dim")


def log_training(run: Run, lr: float, gradient_norm: Tensor | None) -> None:
    """Write and show the mean over the steps since the last line; the lr and the gradient are the last step's. Collective."""
    progress, samples_before = run.state.progress, run.plan.samples_before
    loss_sum, correct = sum_across_ranks(run.state.sums.vector).tolist()
    run.state.sums.set(torch.zeros(2))
    count = samples_before(progress.step) - samples_before(progress.logged_step)
    progress.logged_step = progress.step
    images_per_s = run.stopwatch.lap(samples_before(progress.step))
    accuracy = None if math.isnan(correct) else correct / count  # a map predicts nothing while it trains
    progress.seconds += run.stopwatch.elapsed_since_last_read()
    line = metrics_line(
        run,
        "train",
        progress.step,
        loss=loss_sum / count,
        accuracy=accuracy,
        lr=lr,
        gradient_norm=None if gradient_norm is None else finite(gradient_norm.item()),
        images_per_second=images_per_s,
    )
    samples_left = samples_before(run.plan.total_steps) - line["samples"]
    on_main(lambda: run.folder.append_metrics(line))
    run.console.train_line(line, run.plan.total_steps, samples_left / images_per_s)


def label_map(run: Run) -> None:
    """Give a self-organizing map's units their classes, without which its weights predict nothing. Collective."""
    model = run.state.eval_model
    if isinstance(model, Som):
        with run.stopwatch.paused():
            label_units(model, run.splits.train, run.normalize, run.accelerator)


def validate(run: Run) -> None:
    """Evaluate on validation and note whether it is the best so far; without validation the newest is. Collective."""
    progress, split = run.state.progress, run.splits.val
    if split is None:
        progress.best_step = progress.step
        return
    with run.stopwatch.paused(), run.state.eval_statistics.averaged():
        result = evaluate(run.state.eval_model, split, run.normalize, len(run.dataset.classes), run.accelerator)
    best = result.num_correct > progress.best_correct
    if best:
        progress.best_step, progress.best_correct = progress.step, result.num_correct
        progress.best_val = result.to_dict(run.dataset.classes)
    progress.seconds += run.stopwatch.elapsed_since_last_read()
    line = metrics_line(run, "val", progress.step, **result.to_dict(run.dataset.classes))

    def write() -> tuple[float | None, str | None]:
        run.folder.append_metrics(line)
        keep_predictions(run, "val", split, progress.step, result)
        curve = curves.points(run.folder.read_metrics())
        return curve[-1].gap, curves.name_gap(curve)

    gap, note = on_main(write)
    run.console.val_line(line, best, gap)
    if note:
        run.console.warn(note)


def finite(number: float) -> float | None:
    """Return the number, or None where JSON has none for it: fp16 gradients that overflow, whose step is skipped."""
    return number if math.isfinite(number) else None


def keep_predictions(run: Run, name: str, split: Split, step: int, result: EvalResult) -> None:
    """Write the logits of every image, and a few of the images themselves, for views made where the data isn't. Rank 0 only."""
    assert result.targets is not None and result.logits is not None
    count = min(NUM_SAMPLES, len(split))
    places = torch.arange(count) * len(split) // count  # evenly spaced
    run.folder.write_predictions(
        name,
        step,
        targets=result.targets.numpy(),
        logits=result.logits.numpy(),
        sample_places=places.numpy(),
        sample_pixels=split.subset(places).pixels(),
    )


def metrics_line(run: Run, kind: str, step: int, **values: Any) -> dict[str, Any]:
    """Return one line of metrics.jsonl about the weights after `step` steps."""
    epoch, samples = step / run.plan.steps_per_epoch, run.plan.samples_before(step)
    where = {"kind": kind, "step": step, "epoch": epoch, "samples": samples}
    return {**where, **values, "seconds": round(run.state.progress.seconds, 3)}


def save_checkpoint(run: Run) -> None:
    """Write the state of this step, then drop older ones. Collective; an error on rank 0 is raised on every rank."""
    progress = run.state.progress
    with run.stopwatch.paused():
        progress.seconds += run.stopwatch.elapsed_since_last_read()
        about = describe_weights(run.config, run.dataset, run.normalize, progress.step)
        with run.state.eval_statistics.averaged():
            weights = pack_weights(run.state.eval_model, about) if run.rank == 0 else b""
        content = snapshot(run.state)

        def write() -> None:
            run.folder.sync_metrics()
            files = {TRAINING_FILE: to_bytes(content), WEIGHTS_FILE: weights}
            checkpoint.save(run.folder.checkpoints, progress.step, files)
            if progress.best_step == progress.step:
                write_atomically(run.folder.path / WEIGHTS_FILE, weights)
            keep = [progress.best_step] if progress.best_step is not None else []
            checkpoint.prune(run.folder.checkpoints, run.config.keep_checkpoints, keep)

        on_main(write)
