"""One optimizer step: a function of (seed, step) and the state, on any number of ranks."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from cifar_dist.inputs.batches import Batch
from cifar_dist.optim.optimizer import set_lr
from cifar_dist.runtime.compiling import eagerly
from cifar_dist.training.build import Trainer


def train_step(trainer: Trainer, step: int, lr: float, measure_gradient: bool) -> Tensor | None:
    """Do optimizer step `step`, counted from 0: this rank's share of one global batch.

    Returns the gradient's L2 norm () before clipping, if it was asked for or is known anyway.
    """
    config, state = trainer.config, trainer.state
    for batch, outputs, loss_sum in passes(trainer, step):
        state.sums.add(loss_sum, state.model.training_logits(outputs), batch.labels)
    gradient_norm = clip(trainer) if config.max_grad_norm else norm(trainer) if measure_gradient else None
    set_lr(state.optimizer, lr)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema:
        state.ema.update(step)
    return gradient_norm


def passes(trainer: Trainer, step: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Do the forward and backward passes of a step, which leave the global batch's gradient in the parameters once all are done.

    Yields each micro-batch with the model's outputs and the summed loss (). Collective.
    """
    state, reduction, progress = trainer.state, trainer.reduction, step / trainer.plan.total_steps
    for i, batch in enumerate(trainer.batches.of_step(step)):
        with reduction.micro_batch(step, i):
            outputs = forward(trainer, batch)
            loss_sum = state.model.loss_sum(outputs, batch.labels, trainer.config.label_smoothing, progress)
            backward(trainer, loss_sum, reduction.scale(step))
        yield batch, outputs, loss_sum
    reduction.finish(step)


def forward(trainer: Trainer, batch: Batch) -> Tensor:
    """Return the model's outputs. A rank without images takes part too, or the others would wait for its gradient for ever."""
    state, size = trainer.state, len(batch.images)
    state.masks.draw(batch.positions)
    if size or trainer.config.batch_norm == "sync":
        with nullcontext() if size in trainer.usual_sizes else eagerly(state.model):
            return state.wrapped(batch.images)
    with state.statistics.frozen(), eagerly(state.model):
        return state.wrapped(batch.images)


def backward(trainer: Trainer, loss_sum: Tensor, scale: float) -> None:
    """Add up the gradients of `scale` times the loss."""
    if trainer.state.scaler:
        trainer.accelerator.backward(loss_sum * scale)
    else:  # the same numbers, with two operations fewer and none of their backward passes
        loss_sum.backward(torch.full_like(loss_sum, scale))


def clip(trainer: Trainer) -> Tensor:
    """Scale the gradient down to the norm of the configuration; returns the norm () it had."""
    return trainer.accelerator.clip_grad_norm_(trainer.state.wrapped.parameters(), trainer.config.max_grad_norm)


def norm(trainer: Trainer) -> Tensor:
    """Return the gradient's L2 norm ()."""
    trainer.accelerator.unscale_gradients()
    return torch.nn.utils.get_total_norm([p.grad for p in trainer.state.model.parameters() if p.grad is not None])
