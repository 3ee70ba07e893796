"""What is done once before the first step of a start, and leaves no trace in the state."""

import time

import torch

from cifar_dist.console import Console
from cifar_dist.runtime.compiling import eagerly
from cifar_dist.training.build import Trainer
from cifar_dist.training.step import forward


def settle_gradient_buckets(trainer: Trainer) -> None:
    """Do one backward pass over no images, after which DDP has its final order of gradients.

    It reorders them after the first pass of every process, and sums in another order round differently: without this
    the first step after a restart would not be bit for bit the step an uninterrupted run takes.
    """
    if trainer.plan.world_size == 1 or trainer.plan.shards:
        return
    state = trainer.state
    state.masks.draw(torch.zeros(0, dtype=torch.int64, device=trainer.device))
    with state.statistics.frozen(), eagerly(state.model):
        outputs = state.wrapped(torch.zeros(0, 3, 32, 32, device=trainer.device))
    trainer.accelerator.backward(outputs.sum())
    state.optimizer.zero_grad(set_to_none=True)


def compile_first(trainer: Trainer, console: Console) -> None:
    """Do a pass over each size of images to come, so that compiling the model isn't counted as training."""
    if not trainer.config.compile:
        return
    state, start = trainer.state, time.monotonic()
    console.say("compiling the model; the next run finds what is compiled now", "dim")
    before = [buffer.clone() for buffer in state.model.buffers()]
    for step in trainer.batches.first_steps(state.progress.step):
        for i, batch in enumerate(trainer.batches.of_step(step)):
            with trainer.reduction.micro_batch(step, i):
                forward(trainer, batch).sum().backward()
        trainer.reduction.finish(step)
    state.optimizer.zero_grad(set_to_none=True)
    for buffer, values in zip(state.model.buffers(), before, strict=True):
        buffer.copy_(values)
    console.say(f"compiled in {time.monotonic() - start:.0f} s", "dim")
