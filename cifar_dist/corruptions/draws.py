"""Random numbers of single images: what an image gets depends on the seed and its number, not on who else is looked at."""

from typing import NamedTuple

import torch
from torch import Tensor

from cifar_dist.randomness import Purpose, random_integers

STEPS = 2**31  # values that a draw may take


class Draws(NamedTuple):
    """Where a batch's random numbers come from."""

    numbers: Tensor  # (B,) int64: each image's index in its data set
    seed: int

    def uniform(self, purpose: Purpose, shape: tuple[int, ...]) -> Tensor:
        """Return numbers (B, *shape) float64 in (0, 1)."""
        size = torch.Size(shape).numel()
        positions = self.numbers[:, None] * size + torch.arange(size)
        whole = random_integers(self.seed, purpose, positions, STEPS)
        return whole.double().add_(0.5).div_(STEPS).view(-1, *shape)

    def normal(self, purpose: Purpose, shape: tuple[int, ...]) -> Tensor:
        """Return numbers (B, *shape) float64 of the standard normal distribution, by its inverse."""
        return torch.special.ndtri(self.uniform(purpose, shape))
