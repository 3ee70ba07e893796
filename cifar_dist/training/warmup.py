"""What is done once before the first step of a start, and leaves no trace in the state."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from cifar_dist.console import Console
from cifar_dist.runtime.collectives import max_across_ranks
from cifar_dist.runtime.compiling import eagerly, never_compiled
from cifar_dist.training.build import Trainer
from cifar_dist.training.step import passes, progress_at

# Eager gradients are up to 0.01 (float32) and 0.2 (bfloat16) of their norm off those in float64 (benchmarks/compiled.py).
TOLERANCES = {"no": 0.05, "bf16": 0.5, "fp16": 0.5}


def settle_gradient_buckets(trainer: Trainer) -> None:
    """Do one backward pass over no images, after which DDP has its final order of gradients.

    It reorders them after the first pass of every process, and sums in another order round differently: without this
    the first step after a restart would not be bit for bit the step an uninterrupted run takes.
    """
    state = trainer.state
    if state.wrapped is state.model:
        return
    state.masks.draw(torch.zeros(0, dtype=torch.int64, device=trainer.device))
    side = trainer.config.side
    with state.statistics.frozen(), eagerly(state.model):
        outputs = state.wrapped(torch.zeros(0, 3, side, side, device=trainer.device))
    trainer.accelerator.backward(outputs.sum())
    state.optimizer.zero_grad(set_to_none=True)


def compile_first(trainer: Trainer, console: Console) -> None:
    """Compile the model for each size of images to come, and check that it computes what it did. Collective.

    Where it doesn't, the run says so and goes on without: a compiler may compute a value anew, rounded otherwise than where
    it is compared with itself, and what comes out is nan, or just wrong.
    """
    if not trainer.config.compile:
        return
    state, start = trainer.state, time.monotonic()
    console.say("compiling the model; the next run finds what is compiled now", "dim")
    before = [buffer.clone() for buffer in state.model.buffers()]
    farthest, steps = 0.0, list(trainer.batches.first_steps(state.progress.step))
    with console.bar("compiling", "sizes") as progress:
        for done, step in enumerate(steps):
            progress(done, len(steps))
            with eagerly(state.model):
                expected = gradient_of(trainer, step)
            farthest = max(farthest, distance(gradient_of(trainer, step), expected))
    for buffer, values in zip(state.model.buffers(), before, strict=True):
        buffer.copy_(values)
    farthest = max_across_ranks(torch.tensor(farthest, device=trainer.device)).item()
    if farthest > (allowed := TOLERANCES[trainer.config.mixed_precision]):
        never_compiled(state.model)
        console.warn(
            f"compiled, the first step's gradient is {farthest:.2g} of its norm off, where {allowed:g} is allowed: this run is not compiled"
        )
    else:
        console.say(
            f"compiled in {time.monotonic() - start:.0f} s; its gradient is {farthest:.1g} of its norm off", "dim"
        )


def gradient_of(trainer: Trainer, step: int) -> list[Tensor]:
    """Return the loss () of the global batch and its gradient, and leave none. Collective."""
    loss = torch.zeros((), device=trainer.device)
    batches, reduction = trainer.batches.of_step(step), trainer.reduction
    for _, _, loss_sum in passes(trainer, step, batches, reduction, progress_at(trainer, step)):
        loss += loss_sum.detach()
    reduction.finish(step)
    gradient = [p.grad.float() for p in trainer.state.model.parameters() if p.grad is not None]
    trainer.state.optimizer.zero_grad(set_to_none=True)
    return [loss, *gradient]


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return how far apart two gradients are, as a share of the second's norm: that of the tensor that is farthest off.

    A tensor counts as no smaller than a hundredth of them all, as that of a bias before batch norm is nothing but rounding.
    Infinite for what is not finite; 0 where the second already isn't: fp16 begins with a loss scale that may be too large.
    """
    norms = torch.stack([tensor.norm() for tensor in expected])
    if not norms.isfinite().all():
        return 0.0
    off = torch.stack([(a - b).norm() for a, b in zip(found, expected, strict=True)])
    least = 0.01 * norms[1:].norm()
    shares = off / torch.maximum(norms, least).clamp_min(torch.finfo(norms.dtype).tiny)
    return shares.nan_to_num(nan=math.inf, posinf=math.inf).max().item()
