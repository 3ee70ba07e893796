"""What a run writes and says between its steps: training lines, validations, checkpoints."""

import hashlib
import math
import socket
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cifar_dist.console import Console
from cifar_dist.data import Split
from cifar_dist.files import write_atomically
from cifar_dist.record import checkpoint, curves
from cifar_dist.record.digest import optimizer_digest, weights_digest
from cifar_dist.record.folder import TRAINING_FILE, WEIGHTS_FILE, RunFolder
from cifar_dist.record.lines import Digests, EvalLine, TrainLine, ValLine, fixed
from cifar_dist.runtime.collectives import gather_objects, on_main, sum_across_ranks
from cifar_dist.training.build import Trainer
from cifar_dist.training.evaluation import eval_blocks, evaluate
from cifar_dist.training.metrics import EvalResult
from cifar_dist.training.pace import Pace
from cifar_dist.training.preemption import StopSignals
from cifar_dist.training.state import snapshot, to_bytes
from cifar_dist.training.stopwatch import Stopwatch
from cifar_dist.training.weights import describe_weights, pack_weights

NUM_SAMPLES = 50  # evaluated images that the run folder keeps


@dataclass
class Run:
    """What trains, and where that is recorded, said, timed and stopped."""

    trainer: Trainer
    folder: RunFolder
    console: Console
    signals: StopSignals
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    pace: Pace = field(default_factory=Pace)


def log_training(run: Run, lr: float, gradient_norm: Tensor | None) -> None:
    """Write and show the mean over the steps since the last line; the lr and the gradient are the last step's. Collective."""
    trainer, progress, samples_before = run.trainer, run.trainer.state.progress, run.trainer.plan.samples_before
    loss_sum, correct = sum_across_ranks(trainer.state.sums.vector).tolist()
    trainer.state.sums.set(torch.zeros(2))
    count = samples_before(progress.step) - samples_before(progress.logged_step)
    progress.logged_step = progress.step
    images_per_s = run.stopwatch.lap(samples_before(progress.step))
    progress.seconds += run.stopwatch.elapsed_since_last_read()
    line: TrainLine = {
        "kind": "train",
        "step": progress.step,
        "epoch": progress.step / trainer.plan.steps_per_epoch,
        "samples": samples_before(progress.step),
        "loss": loss_sum / count,
        "accuracy": None if math.isnan(correct) else correct / count,  # a map predicts nothing while it trains
        "lr": lr,
        "gradient_norm": None if gradient_norm is None else finite(gradient_norm.item()),
        "images_per_second": images_per_s,
        "seconds": round(progress.seconds, 3),
    }
    samples_left = samples_before(trainer.plan.total_steps) - line["samples"]
    on_main(lambda: run.folder.append_metrics(line))
    run.console.train_line(line, trainer.plan.total_steps, samples_left / images_per_s)


def label(trainer: Trainer) -> None:
    """Let a model that trains without labels learn what its outputs mean, without which its weights predict nothing. Collective."""
    blocks = eval_blocks(trainer.splits.train, trainer.accelerator)
    trainer.state.eval_model.label(((trainer.normalize(x), targets) for _, x, targets in blocks), sum_across_ranks)


def validate(run: Run) -> None:
    """Evaluate on validation and note whether it is the best so far; without validation the newest is. Collective."""
    trainer, progress, split = run.trainer, run.trainer.state.progress, run.trainer.splits.val
    if split is None:
        progress.best_step = progress.step
        return
    with run.stopwatch.paused():
        with trainer.state.eval_statistics.averaged():
            model, normalize, classes = trainer.state.eval_model, trainer.normalize, trainer.dataset.classes
            with run.console.bar("validation", "images") as report:
                result = evaluate(model, split, normalize, len(classes), trainer.accelerator, progress=report)
        state = digests(trainer)
    best = result.num_correct > progress.best_correct
    progress.validations_since_best = 0 if best else progress.validations_since_best + 1
    if best:
        progress.best_step, progress.best_correct = progress.step, result.num_correct
        progress.best_val = result.to_dict(trainer.dataset.classes)
    progress.seconds += run.stopwatch.elapsed_since_last_read()
    line: ValLine = {**result_line(trainer, "val", progress.step, result), **state}

    def write() -> tuple[float | None, str | None]:
        run.folder.append_metrics(line)
        keep_predictions(run, "val", split, progress.step, result)
        curve = curves.points(run.folder.read_metrics())
        return curve[-1].gap, curves.name_gap(curve)

    gap, note = on_main(write)
    run.console.val_line(line, best, gap)
    for rank, times in run.pace.notice(result.block_s or []).items():
        host = gather_objects(socket.gethostname())[rank]
        run.console.warn(
            f"rank {rank} on {host} takes {times:.1f} times as long as the others to evaluate the same number of images, and "
            "they wait for it at each step; accelerate launch CONFIG -m cifar_dist doctor looks at its machine"
        )
    if note:
        run.console.warn(note)


def digests(trainer: Trainer) -> Digests:
    """Return what a validation line says of the state, with which somebody may verify it; nothing but on rank 0."""
    if trainer.rank != 0:
        return {}
    state = trainer.state
    weights = weights_digest(state.model.state_dict(), state.ema.module.state_dict() if state.ema else None)
    return {"weights_digest": weights, "optimizer_digest": optimizer_digest(state.optimizer.state_dict())}


def save_checkpoint(run: Run) -> None:
    """Write the state of this step, then drop older ones. Collective; an error on rank 0 is raised on every rank."""
    trainer, progress = run.trainer, run.trainer.state.progress
    with run.stopwatch.paused():
        progress.seconds += run.stopwatch.elapsed_since_last_read()
        about = describe_weights(trainer.config, trainer.dataset, trainer.normalize, progress.step)
        with trainer.state.eval_statistics.averaged():
            weights = pack_weights(trainer.state.eval_model, about) if trainer.rank == 0 else b""
        follow_up(run, weights)
        content = snapshot(trainer.state)

        def write() -> list[str]:
            run.folder.sync_metrics()
            files = {TRAINING_FILE: to_bytes(content), WEIGHTS_FILE: weights}
            checkpoint.save(run.folder.checkpoints, progress.step, files)
            if progress.best_step == progress.step:
                write_atomically(run.folder.path / WEIGHTS_FILE, weights)
            return prune_checkpoints(run)

        for problem in on_main(write):
            run.console.warn(problem)


def prune_checkpoints(run: Run) -> list[str]:
    """Drop the checkpoints that the configuration doesn't keep; returns what was in the way. Rank 0 only, where the newest is whole."""
    trainer, progress = run.trainer, run.trainer.state.progress
    every, steps = trainer.config.keep_every, checkpoint.saved_steps(run.folder.checkpoints)
    keep = [step for step in steps if every and step % (every * trainer.plan.steps_per_epoch) == 0]
    keep += [progress.best_step] if progress.best_step is not None else []
    return checkpoint.prune(run.folder.checkpoints, trainer.config.keep_checkpoints, keep)


def follow_up(run: Run, weights: bytes) -> None:
    """Let a checkpoint know what it follows, so that what doesn't fit is noticed: the lines so far, the best weights. Collective."""
    progress = run.trainer.state.progress
    if progress.best_step == progress.step:
        progress.best_sha256 = on_main(lambda: hashlib.sha256(weights).hexdigest())
    progress.num_lines, progress.lines_sha256 = on_main(lambda: fixed(run.folder.read_metrics()))


def result_line(trainer: Trainer, kind: Literal["val", "test"], step: int, result: EvalResult) -> EvalLine:
    """Return the line of metrics.jsonl about a result of the weights after `step` steps."""
    return {
        "kind": kind,
        "step": step,
        "epoch": step / trainer.plan.steps_per_epoch,
        "samples": trainer.plan.samples_before(step),
        **result.to_dict(trainer.dataset.classes),
        "seconds": round(trainer.state.progress.seconds, 3),
    }


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


def finite(number: float) -> float | None:
    """Return the number, or None where JSON has none for it: fp16 gradients that overflow, whose step is skipped."""
    return number if math.isfinite(number) else None
