"""Batch norm's scope: per process, synchronised, or exact shards; and running statistics that don't depend on ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_dist.runtime.collectives import differentiable_sum, sum_across_ranks, world_size
from cifar_dist.runtime.compiling import is_compiled


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over all ranks' images together, on any device (torch's own refuses a CPU). A rank may hold no image."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        pixels = torch.full((1,), x.shape[0] * x.shape[2] * x.shape[3], dtype=torch.float32, device=x.device)
        totals = differentiable_sum(torch.cat((values.sum(dim=(0, 2, 3)), pixels)))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = values - mean.view(1, -1, 1, 1)  # two passes: E[x^2] - E[x]^2 would cancel
        var = differentiable_sum(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        scale = torch.rsqrt(var + self.eps) * self.weight
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def synchronise(model: nn.Module, fused: bool) -> None:
    """Change `model`'s batch norms into ones over all ranks; with torch's kernels where `fused`, else ours.

    torch's need a GPU and float32: in half precision a rank without images would gather another size than the rest.
    """
    if world_size() == 1:
        return
    if fused:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # same parameters and buffers, other arithmetic


class RunningStatistics:
    """The running means and variances of a model's batch-norm layers, read and written as one vector.

    An update r <- (1 - m) r + m s is linear in r. So ranks that update their own r from equal starts hold, at any step,
    values whose mean is what updating with the mean of all ranks' s would have given: reduce when needed, not every step.
    (A rank that held no image keeps its r, which then counts as its s.)
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.momenta = [float(layer.momentum or 0.0) for layer in self.layers]

    @property
    def buffers(self) -> list[Tensor]:
        return [b for layer in self.layers for b in (layer.running_mean, layer.running_var) if b is not None]

    @property
    def counters(self) -> list[Tensor]:
        return [layer.num_batches_tracked for layer in self.layers if layer.num_batches_tracked is not None]

    @contextmanager
    def weighed(self, weights: Sequence[float], i: int) -> Iterator[None]:
        """Let micro-batch `i` pass inside so that a whole step updates once, by the weighted mean over micro-batches.

        With shares w_j of the step, momentum a_i = m w_i / (1 - m (w_i+1 + w_i+2 + ...)) makes the sequence of updates
        equal r <- (1 - m) r + m (w_0 s_0 + w_1 s_1 + ...).
        """
        total = max(1, sum(weights))
        now, later = weights[i] / total, sum(weights[i + 1 :]) / total
        momenta = [m * now / (1 - m * later) for m in self.momenta]
        if is_compiled(self.model) and len(weights) > 1:  # momenta are part of what is compiled, and must not change
            with self.of_one_batch() as seen:
                yield
            self._blend(seen, momenta)
            return
        for layer, momentum in zip(self.layers, momenta, strict=True):
            layer.momentum = momentum
        yield

    @contextmanager
    def of_one_batch(self) -> Iterator[list[Tensor]]:
        """Keep the statistics as they are, and give those of the one batch that passes inside: a list, filled at the end."""
        before = [buffer.clone() for buffer in (*self.buffers, *self.counters)]
        for layer in self.layers:
            layer.momentum = 1.0
        seen: list[Tensor] = []
        yield seen
        seen += [buffer.clone() for buffer in self.buffers]
        for buffer, values in zip((*self.buffers, *self.counters), before, strict=True):
            buffer.copy_(values)

    def update(self, seen: Sequence[Tensor]) -> None:
        """Blend in a step's statistics, one for each of `buffers`, as one batch of these would have done."""
        self._blend(seen, self.momenta)

    def _blend(self, seen: Sequence[Tensor], momenta: Sequence[float]) -> None:
        for i, (buffer, values) in enumerate(zip(self.buffers, seen, strict=True)):
            buffer.lerp_(values, momenta[i // 2])
        for counter in self.counters:
            counter += 1

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the layers use and keep their running statistics inside: those of a batch of no images would be nan."""
        for layer in self.layers:
            layer.eval()
        try:
            yield
        finally:
            for layer in self.layers:
                layer.train()

    def vector(self) -> Tensor:
        """Return a copy of all statistics (n,) float32, for a model that has some."""
        return torch.cat([b.flatten() for b in self.buffers])

    def load(self, vector: Tensor) -> None:
        parts = vector.split([b.numel() for b in self.buffers])
        for buffer, part in zip(self.buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the mean over all ranks inside, this rank's own values again afterwards. Every rank must enter.

        In float64 the mean of equal values is that value.
        """
        if world_size() == 1 or not self.buffers:
            yield
            return
        own = self.vector()
        self.load(sum_across_ranks(own.double()) / world_size())
        try:
            yield
        finally:
            self.load(own)
