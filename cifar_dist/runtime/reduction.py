"""How the gradients of a step's micro-batches, here and on all ranks, become the gradient of the global batch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.runtime.batchnorm import RunningStatistics
from cifar_dist.runtime.collectives import sum_across_ranks


class Reduction(Protocol):
    """A step asks for `scale` and `micro_batch` for each of its micro-batches, and `finish` before the optimizer."""

    def scale(self, step: int) -> float:
        """Return what the gradient of a micro-batch's summed loss is multiplied by."""

    @contextmanager
    def micro_batch(self, step: int, i: int) -> Iterator[None]:
        """Hold what surrounds the forward and backward pass of micro-batch `i`."""
        yield

    def finish(self) -> None:
        """Leave the global batch's gradient in the parameters. Collective."""


class MeanOverRanks:
    """DDP's: while the last micro-batch is in its backward pass, in float32, overlapping it. One process has none to wait for.

    DDP takes the mean of the ranks' gradients; we want the sum over images, divided by the global batch.
    """

    def __init__(self, wrapped: nn.Module, accelerator: Accelerator, plan: BatchPlan, statistics: RunningStatistics):
        self.wrapped, self.accelerator, self.plan, self.statistics = wrapped, accelerator, plan, statistics

    def scale(self, step: int) -> float:
        return self.plan.world_size / len(self.plan.batch(step)[1])

    @contextmanager
    def micro_batch(self, step: int, i: int) -> Iterator[None]:
        weights = self.plan.statistics_weights(step, self.accelerator.process_index)
        self.statistics.weigh(weights, i)
        last = i == len(weights) - 1
        with nullcontext() if last else self.accelerator.no_sync(self.wrapped):  # one all-reduce a step
            yield

    def finish(self) -> None:
        """Nothing is left to do: the last backward pass returned with the mean."""


class SumOverShards:
    """Micro-batches are fixed shards of the global batch, summed so that no bit depends on which process holds which shard."""

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        accelerator: Accelerator,
        plan: BatchPlan,
        statistics: RunningStatistics,
    ):
        self.gradients = GradientSum(model)
        self.wrapped, self.accelerator, self.plan, self.statistics = wrapped, accelerator, plan, statistics

    def scale(self, step: int) -> float:
        return 1 / len(self.plan.batch(step)[1])

    @contextmanager
    def micro_batch(self, step: int, i: int) -> Iterator[None]:
        self.statistics.weigh(self.plan.statistics_weights(step, self.accelerator.process_index), i)
        with self.accelerator.no_sync(self.wrapped):
            yield
        self.gradients.take()

    def finish(self) -> None:
        self.gradients.put()


class GradientSum:
    """Adds up float32 gradients, here and on all ranks, in float64, and rounds once at the end.

    The order of a float64 sum matters some 1e-16 of it, far below float32's last place, so that every world size gets
    the same float32 numbers. Costs an all-reduce of twice the bytes that doesn't overlap the backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.total: Tensor | None = None

    def take(self) -> None:
        """Add the parameters' gradients to the sum, and clear them."""
        flat = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None]).double()
        self.total = flat if self.total is None else self.total + flat
        for p in self.parameters:
            p.grad = None

    def put(self) -> None:
        """Make the sum over all ranks the parameters' gradients. Collective."""
        assert self.total is not None, "every rank has taken some"
        parts = sum_across_ranks(self.total).split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.grad = torch.empty_like(p).copy_(part.view_as(p))  # laid out in memory like p, as fused optimizers expect
        self.total = None
