"""Noise: on images (B, 3, H, W) float64 in [0, 1], every value by itself."""

from functools import cache

import torch
from torch import Tensor

from cifar_dist.corruptions.draws import Draws
from cifar_dist.randomness import Purpose

LEVELS = 256


def gaussian_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Add normal noise of this standard deviation."""
    return images + scale * draws.normal(Purpose.GAUSSIAN_NOISE, images.shape[1:])


def speckle_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Add normal noise in proportion to the value."""
    return images + images * scale * draws.normal(Purpose.SPECKLE_NOISE, images.shape[1:])


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Count photons, so many on average where a value is 1: a Poisson variable over its mean at white.

    A value is one of 256, so that one table has the distributions of all, and a draw is looked up in it.
    """
    shares = poisson_shares(photons)
    values = images.mul(LEVELS - 1).round()
    drawn = draws.uniform(Purpose.SHOT_NOISE, images.shape[1:])
    found = torch.searchsorted(shares.flatten(), values + drawn, right=True)
    return (found - values.long() * shares.shape[1]).double() / photons


@cache
def poisson_shares(photons: float) -> Tensor:
    """Return (256, N) float64: how often a Poisson variable is n at most, of each value's mean; plus the value's row."""
    rates = torch.arange(LEVELS, dtype=torch.float64) / (LEVELS - 1) * photons
    counts = torch.arange(int(photons + 12 * photons**0.5 + 20), dtype=torch.float64)
    logs = torch.special.xlogy(counts, rates[:, None]) - rates[:, None] - torch.lgamma(counts + 1)
    shares = logs.exp().cumsum(dim=1).clamp(max=1)
    shares[:, -1] = 1  # no draw lies beyond the table
    return shares + torch.arange(LEVELS, dtype=torch.float64)[:, None]


def impulse_noise(images: Tensor, draws: Draws, amount: float) -> Tensor:
    """Set this share of all values to 0 or 1, one as often as the other."""
    drawn = draws.uniform(Purpose.IMPULSE_NOISE, images.shape[1:])
    return images.masked_fill(drawn < amount, 1.0).masked_fill(drawn < amount / 2, 0.0)
