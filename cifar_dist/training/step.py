"""One optimizer step: a function of (seed, step) and the state, on any number of ranks."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cifar_dist.inputs.batches import Batch
from cifar_dist.optim.optimizer import set_lr
from cifar_dist.runtime.compiling import eagerly
from cifar_dist.runtime.reduction import Reduction
from cifar_dist.training.build import Trainer


def train_step(trainer: Trainer, step: int, lr: float, measure_gradient: bool) -> Tensor | None:
    """Do optimizer step `step`, counted from 0: this rank's share of one global batch.

    Returns the gradient's L2 norm () before clipping, if it was asked for or is known anyway.
    """
    state = trainer.state
    set_lr(state.optimizer, lr)
    if trainer.captured:
        gradient_norm = trainer.captured(step, measure_gradient)
    else:
        gradient_norm = eager_step(trainer, step, trainer.batches.of_step(step), measure_gradient)
    if state.ema:
        state.ema.update(step)
    return gradient_norm


def eager_step(trainer: Trainer, step: int, batches: Iterable[Batch], measure_gradient: bool) -> Tensor | None:
    """Do all of a step but the moving average, one operation after another."""
    count_passes(trainer, step, batches)
    trainer.reduction.finish(step)
    return update(trainer, measure_gradient)


def count_passes(trainer: Trainer, step: int, batches: Iterable[Batch]) -> None:
    """Do a step's forward and backward passes, and count losses and predictions."""
    state = trainer.state
    for batch, outputs, loss_sum in passes(trainer, step, batches, trainer.reduction, progress_at(trainer, step)):
        state.sums.add(loss_sum, state.model.training_logits(outputs), batch.labels)


def progress_at(trainer: Trainer, step: int) -> float | Tensor:
    """Return the share of the run that is done before `step`, (): on a GPU as captured steps have it, which rounds otherwise."""
    share = step / trainer.plan.total_steps
    return share if trainer.device.type == "cpu" else torch.full((), share, dtype=torch.float64, device=trainer.device)


def passes(
    trainer: Trainer, step: int, batches: Iterable[Batch], reduction: Reduction, progress: float | Tensor
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Do the forward and backward passes of a step, after which `reduction.finish` leaves the global batch's gradient.

    Yields each micro-batch with the model's outputs and the summed loss (). Collective.
    """
    model, smoothing = trainer.state.model, trainer.config.label_smoothing
    for i, batch in enumerate(batches):
        with reduction.micro_batch(step, i):
            outputs = forward(trainer, batch, reduction.network)
            loss_sum = model.loss_sum(outputs, batch.labels, smoothing, progress)
            backward(trainer, loss_sum, reduction.scale(step))
        yield batch, outputs, loss_sum


def forward(trainer: Trainer, batch: Batch, network: nn.Module) -> Tensor:
    """Return the model's outputs. A rank without images takes part too, or the others would wait for its gradient for ever."""
    state, size = trainer.state, len(batch.images)
    state.masks.draw(batch.positions)
    if size or trainer.config.batch_norm == "sync":
        with nullcontext() if size in trainer.usual_sizes else eagerly(state.model):
            return network(batch.images)
    with state.statistics.frozen(), eagerly(state.model):
        return network(batch.images)


def update(trainer: Trainer, measure_gradient: bool) -> Tensor | None:
    """Take the optimizer's step along the gradient in the parameters; returns its L2 norm () before clipping, if it is known."""
    config, optimizer = trainer.config, trainer.state.optimizer
    gradient_norm = clip(trainer) if config.max_grad_norm else norm(trainer) if measure_gradient else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return gradient_norm


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
