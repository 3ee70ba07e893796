"""How the gradients of a step's micro-batches, here and on all ranks, become the gradient of the global batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.runtime.batchnorm import RunningStatistics
from cifar_dist.runtime.collectives import exchange_slices, gather_rows, sum_across_ranks

Sum = TypeVar("Sum")


class Reduction(Protocol):
    """A step asks for `scale` and `micro_batch` for each of its micro-batches, and `finish` before the optimizer."""

    network: nn.Module  # what micro-batches go through

    def scale(self, step: int) -> float:
        """Return what the gradient of a micro-batch's summed loss is multiplied by."""

    @contextmanager
    def micro_batch(self, step: int, i: int) -> Iterator[None]:
        """Hold what surrounds the forward and backward pass of micro-batch `i`."""
        yield

    def finish(self, step: int) -> None:
        """Leave the global batch's gradient in the parameters. Collective."""


class MeanOverRanks:
    """DDP's: while the last micro-batch is in its backward pass, in float32, overlapping it. One process has none to wait for.

    DDP takes the mean of the ranks' gradients; we want the sum over images, divided by the global batch.
    """

    def __init__(self, wrapped: nn.Module, accelerator: Accelerator, plan: BatchPlan, statistics: RunningStatistics):
        self.network, self.accelerator, self.plan, self.statistics = wrapped, accelerator, plan, statistics

    def scale(self, step: int) -> float:
        return self.plan.world_size / len(self.plan.batch(step)[1])

    @contextmanager
    def micro_batch(self, step: int, i: int) -> Iterator[None]:
        weights = self.plan.statistics_weights(step, self.accelerator.process_index)
        last = i == len(weights) - 1
        with (
            self.statistics.weighed(weights, i),
            nullcontext() if last else self.accelerator.no_sync(self.network),  # one all-reduce a step
        ):
            yield

    def finish(self, step: int) -> None:
        """Nothing is left to do: the last backward pass returned with the mean."""


class MeanAtOnce:
    """The same mean after all backward passes, in one exchange of all gradients: for captured steps, without DDP's hooks."""

    def __init__(self, model: nn.Module, plan: BatchPlan, statistics: RunningStatistics, rank: int):
        self.network, self.plan, self.statistics, self.rank = model, plan, statistics, rank

    def scale(self, step: int) -> float:
        return self.plan.world_size / len(self.plan.batch(step)[1])

    @contextmanager
    def micro_batch(self, step: int, i: int) -> Iterator[None]:
        with self.statistics.weighed(self.plan.statistics_weights(step, self.rank), i):
            yield

    def finish(self, step: int) -> None:
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        whole = sum_across_ranks(flat.div_(self.plan.world_size))  # divided first, as DDP does
        parts = whole.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


class SumOverShards:
    """Sums the gradients and batch-norm statistics of the global batch's fixed shards in one order, whoever holds which of them.

    Floating-point sums depend on their order, so the order is part of the computation: a binary tree over the shards of a
    step. A rank sums the subtrees that it holds all leaves of; then each rank gets one slice of all subtrees' sums, goes on to
    the root there, and passes the slice on to all. That is as many bytes as an all-reduce where each rank holds one subtree,
    and two or three times as many at most otherwise.
    """

    def __init__(self, network: nn.Module, model: nn.Module, plan: BatchPlan, statistics: RunningStatistics, rank: int):
        self.network = network
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.plan, self.statistics, self.rank = plan, statistics, rank
        self.subtrees: list[Subtree[list[Tensor]]] = []

    def scale(self, step: int) -> float:
        return 1 / len(self.plan.batch(step)[1])

    @contextmanager
    def micro_batch(self, step: int, i: int) -> Iterator[None]:
        with self.statistics.of_one_batch() as seen:
            yield
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        leaf = Subtree(0, self.plan.shards_of(step, self.rank)[i], [*gradients, *seen])
        grow(self.subtrees, leaf, self.plan.num_shards(step), add_in_place)

    def finish(self, step: int) -> None:
        subtrees, self.subtrees = self.subtrees, []
        total = subtrees[0].sum if self.plan.world_size == 1 else self.across_ranks(step, subtrees)
        for p, gradient in zip(self.parameters, total, strict=False):
            p.grad = gradient
        self.statistics.update([s / self.plan.num_shards(step) for s in total[len(self.parameters) :]])

    def across_ranks(self, step: int, subtrees: "list[Subtree[list[Tensor]]]") -> list[Tensor]:
        """Return the sum over all ranks' subtrees, each tensor laid out in memory like what it is for. Collective."""
        like = [*self.parameters, *self.statistics.buffers]
        sizes = [tensor.numel() for tensor in like]
        width = -(-sum(sizes) // self.plan.world_size)  # of a slice; the last one has some zeros at its end
        rows = like[0].new_zeros(len(subtrees), width * self.plan.world_size)
        for row, subtree in zip(rows, subtrees, strict=True):
            torch.cat([tensor.flatten() for tensor in subtree.sum], out=row[: sum(sizes)])
        leaves, places = self.plan.num_shards(step), []
        for rank in range(self.plan.world_size):
            held: list[Subtree[None]] = []
            for i in self.plan.shards_of(step, rank):
                grow(held, Subtree(0, i, None), leaves, nothing)
            places.append(held)
        slices = exchange_slices(rows, [len(held) for held in places])
        tree: list[Subtree[list[Tensor]]] = []
        for place, part in zip((place for held in places for place in held), slices, strict=True):
            grow(tree, Subtree(place.level, place.index, [part]), leaves, add_in_place)
        whole = gather_rows(tree[0].sum[0]).flatten()[: sum(sizes)]
        # Fused optimizers expect gradients laid out in memory like their parameters.
        return [torch.empty_like(t).copy_(part.view_as(t)) for t, part in zip(like, whole.split(sizes), strict=True)]


@dataclass(frozen=True)
class Subtree(Generic[Sum]):
    """Leaves index * 2**level to (index + 1) * 2**level - 1 of a binary tree, as far as there are so many, and their sum."""

    level: int
    index: int
    sum: Sum


def grow(subtrees: list[Subtree[Sum]], new: Subtree[Sum], leaves: int, add: Callable[[Sum, Sum], Sum]) -> None:
    """Add the next subtree to consecutive ones, of a tree over so many leaves, and join what has become complete."""
    level, index, total = new.level, new.index, new.sum
    while True:
        if index % 2 and subtrees and (subtrees[-1].level, subtrees[-1].index) == (level, index - 1):
            total = add(subtrees.pop().sum, total)
        elif index % 2 or (index + 1) << level < leaves or 1 << level >= leaves:
            break  # its sibling is elsewhere or still to come, or it is the root
        level, index = level + 1, index // 2
    subtrees.append(Subtree(level, index, total))


def nothing(left: None, right: None) -> None:
    """Add up no sums, where only the shape of the tree is asked for."""


def add_in_place(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left
