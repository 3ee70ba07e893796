"""Dropout whose mask is a function of (seed, sample position), so that it doesn't depend on who holds the sample."""

import torch
from torch import Tensor, nn

from cifar_dist.errors import UserError
from cifar_dist.randomness import Purpose, random_bits


class Dropout(nn.Module):
    """Zero each value with probability `p` in training and scale the rest by 1 / (1 - p), as `torch.nn.Dropout` does.

    `DropoutMasks.draw` says which samples a batch holds.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 0.99:  # with 16 random bits a value, shares nearer to 1 would be inexact
            raise UserError(f"dropout must be in [0, 0.99], got {p}")
        self.p = p
        self.seed, self.layer = 0, 0
        self.positions: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> the same shape and dtype."""
        if not self.training:
            return x
        assert self.positions is not None and len(self.positions) == len(x), "draw the masks of this batch first"
        features = x[0].numel() if len(x) else 0
        hashes = -(-features // 4)  # each decides four values, by 16 bits
        places = self.positions.unsqueeze(1) * hashes + torch.arange(hashes, device=x.device)
        draws = random_bits(self.seed, Purpose.DROPOUT, places + (self.layer << 48)).view(torch.int16)[:, :features]
        keep = draws >= round(self.p * 2**16) - 2**15
        return x * keep.view(x.shape).to(x.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropoutMasks:
    """All dropout layers of a model."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, Dropout)]
        for number, layer in enumerate(self.layers):
            layer.seed, layer.layer = seed, number

    def draw(self, positions: Tensor) -> None:
        """Set the masks for a batch of samples at the global `positions` (B,) int64, one for each visit of an image."""
        for layer in self.layers:
            layer.positions = positions
