"""The training and evaluation loops. Read this file first."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from signal import Signals
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from cifar_dist import checkpoint
from cifar_dist.augment import Normalize, augment
from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Dataset, Split, Splits
from cifar_dist.distributed import on_main, sum_across_ranks
from cifar_dist.metrics import EvalResult, EvalSums
from cifar_dist.optim import set_lr
from cifar_dist.preemption import Ballot, StopSignals
from cifar_dist.randomness import seed_dropout
from cifar_dist.runlog import RunFolder
from cifar_dist.sampling import BatchPlan, cut, epoch_order
from cifar_dist.schedule import Schedule
from cifar_dist.state import TRAINING_FILE, WEIGHTS_FILE, TrainState, snapshot, to_bytes
from cifar_dist.stopwatch import Stopwatch
from cifar_dist.weights import describe_weights, pack_weights

EVAL_BLOCK = 500  # images; fixed, so that every world size computes the same blocks and so the same logits


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


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

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        return self.accelerator.device


def train(run: Run) -> Signals | None:
    """Do the steps that are left. Returns the signal that stopped it, after a checkpoint, or None when all are done."""
    config, plan, progress = run.config, run.plan, run.state.progress
    schedule = Schedule.from_config(config, plan.total_steps, plan.steps_per_epoch)
    ballot = Ballot(run.signals, config.checkpoint_minutes * 60, progress.step)
    settle_gradient_buckets(run)
    run.stopwatch.start(plan.samples_before(progress.step))

    while progress.step < plan.total_steps:
        lr = schedule.lr_at(progress.step)
        train_step(run, progress.step, lr)
        progress.step += 1
        run.console.advance(progress.step)

        evaluation_due = plan.is_epoch_end(progress.step, config.eval_every)
        log_due = evaluation_due or progress.step % config.log_every == 0
        if not (log_due or ballot.due(progress.step)):
            continue
        decision = ballot.vote(progress.step, run.state.sums.vector[0])
        if decision.diverged:
            raise DivergedError(f"the loss became nan or infinite at or shortly before step {progress.step}")
        if log_due:
            log_training(run, lr)
        if evaluation_due:
            validate(run)
        if evaluation_due or decision.checkpoint or decision.stop:
            save_checkpoint(run)
            ballot.checkpoint_saved()
        if decision.stop and progress.step < plan.total_steps:
            return decision.stop
    return None


def train_step(run: Run, step: int, lr: float) -> None:
    """Do optimizer step `step`, counted from 0: this rank's share of one global batch."""
    config, plan, state, accelerator = run.config, run.plan, run.state, run.accelerator
    epoch, batch = plan.batch(step)
    micro_batches = plan.micro_batches(step, run.rank)
    seed_dropout(config.seed, step, run.rank, run.device)  # so a restart draws what would have been drawn
    set_lr(state.optimizer, lr)
    weights = plan.statistics_weights(step, run.rank)
    shards = state.shard_gradients
    for i, places in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        state.statistics.weigh(weights, i)
        with nullcontext() if last and not shards else accelerator.no_sync(state.model):  # one all-reduce a step
            images, targets = load_batch(run, epoch, places)
            logits = forward(run, images)
            loss_sum = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing, reduction="sum")
            # DDP takes the mean of the ranks' gradients; we want the sum over images, divided by the global batch.
            accelerator.backward(loss_sum * ((1 if shards else plan.world_size) / len(batch)))
        if shards:
            shards.take()
        state.sums.add(loss_sum.detach(), logits.detach(), targets)
    if shards:
        shards.give_back()
    if config.max_grad_norm is not None:
        accelerator.clip_grad_norm_(state.model.parameters(), config.max_grad_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(step)


def load_batch(run: Run, epoch: int, places: range) -> tuple[Tensor, Tensor]:
    """Return augmented images (B, 3, 32, 32) float32 and targets (B,) int64 at `places` of an epoch's order, on the device.

    A pure function of the seed, the epoch and the places: no rank, no generator's history.
    """
    order = epoch_order(run.config.seed, epoch, run.plan.num_images, run.device)
    images, targets = run.splits.train.gather(order[places.start : places.stop])
    positions = torch.arange(places.start, places.stop, device=run.device) + epoch * run.plan.num_images
    return augment(run.normalize(images), positions, run.config.augment, run.config.seed), targets


def forward(run: Run, images: Tensor) -> Tensor:
    """Return logits. A rank without images takes part too, or the others would wait for its gradient for ever."""
    if len(images) or run.config.batch_norm == "sync":
        return run.state.model(images)
    run.state.model.eval()  # statistics of no image would be nan
    logits = run.state.model(images)
    run.state.model.train()
    return logits


def settle_gradient_buckets(run: Run) -> None:
    """Do one backward pass over no images, after which DDP has its final order of gradients.

    It reorders them after the first pass of every process, and sums in another order round differently: without this
    the first step after a restart would not be bit for bit the step an uninterrupted run takes.
    """
    if run.plan.world_size == 1:
        return
    run.state.model.eval()
    logits = run.state.model(torch.zeros(0, 3, 32, 32, device=run.device))
    run.accelerator.backward(logits.sum())
    run.state.optimizer.zero_grad(set_to_none=True)
    run.state.model.train()


@torch.inference_mode()
def evaluate(
    model: nn.Module, split: Split, normalize: Normalize, num_classes: int, accelerator: Accelerator
) -> EvalResult:
    """Count over the whole split, each image exactly once, on any number of ranks; every rank gets the same result."""
    training = model.training
    model.eval()
    num_blocks = -(-len(split) // EVAL_BLOCK)
    sums = EvalSums(num_classes, num_blocks, accelerator.device)
    for block in cut(0, num_blocks, accelerator.num_processes)[accelerator.process_index]:
        places = torch.arange(block * EVAL_BLOCK, min((block + 1) * EVAL_BLOCK, len(split)), device=accelerator.device)
        images, targets = split.gather(places)
        with accelerator.autocast():
            logits = model(normalize(images))
        sums.add(block, logits, targets)
    model.train(training)
    result = sums.result(sum_across_ranks)
    if not math.isfinite(result.loss):
        raise DivergedError("the weights give a loss that is nan or infinite")
    return result


def log_training(run: Run, lr: float) -> None:
    """Write and show the mean over the steps since the last line. Collective."""
    progress, samples_before = run.state.progress, run.plan.samples_before
    loss_sum, correct = sum_across_ranks(run.state.sums.vector).tolist()
    run.state.sums.vector.zero_()
    count = samples_before(progress.step) - samples_before(progress.logged_step)
    progress.logged_step = progress.step
    images_per_s = run.stopwatch.lap(samples_before(progress.step))
    line = _line(run, "train", loss=loss_sum / count, accuracy=correct / count, lr=lr, images_per_second=images_per_s)
    samples_left = samples_before(run.plan.total_steps) - line["samples"]
    on_main(lambda: run.folder.append_metrics(line))
    run.console.train_line(line, run.plan.total_steps, samples_left / images_per_s)


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
    line = _line(run, "val", **result.to_dict(run.dataset.classes))
    on_main(lambda: run.folder.append_metrics(line))
    run.console.val_line(line, best)


def _line(run: Run, kind: str, **values: Any) -> dict[str, Any]:
    step = run.state.progress.step
    run.state.progress.seconds += run.stopwatch.elapsed_since_last_read()
    where = {
        "kind": kind,
        "step": step,
        "epoch": step / run.plan.steps_per_epoch,
        "samples": run.plan.samples_before(step),
    }
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
                checkpoint.write_atomically(run.folder.path / WEIGHTS_FILE, weights)
            keep = [progress.best_step] if progress.best_step is not None else []
            checkpoint.prune(run.folder.checkpoints, run.config.keep_checkpoints, keep)

        on_main(write)
