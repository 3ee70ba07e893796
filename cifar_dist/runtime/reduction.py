"""Gradients of fixed shards, summed so that the result doesn't depend on which process holds which shard."""

import torch
from torch import Tensor, nn

from cifar_dist.runtime.collectives import sum_across_ranks


class ShardGradients:
    """Adds up float32 gradients of shards, here and on all ranks, in float64, and rounds once at the end.

    The order of a float64 sum matters some 1e-16 of it, far below float32's last place, so that every world size gets
    the same float32 numbers. Costs an all-reduce of twice the bytes that doesn't overlap the backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.total: Tensor | None = None

    def take(self) -> None:
        """Add the gradients of one shard, and clear them."""
        flat = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None]).double()
        self.total = flat if self.total is None else self.total + flat
        for p in self.parameters:
            p.grad = None

    def give_back(self) -> None:
        """Make the sum over all shards of all ranks the parameters' gradients. Collective."""
        assert self.total is not None, "every rank holds a shard"
        parts = sum_across_ranks(self.total).split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.grad = torch.empty_like(p).copy_(part.view_as(p))  # laid out in memory like p, as fused optimizers expect
        self.total = None
