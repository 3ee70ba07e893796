"""What changes colours: on pixel values in [0, 255], float, before normalisation. The arithmetic is torchvision's."""

import torch
from torch import Tensor

from cifar_dist.randomness import Purpose, random_uniform

GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it


def jitter(pixels: Tensor, positions: Tensor, seed: int, strength: float = 0.4) -> Tensor:
    """Scale brightness, then contrast, then saturation by factors in [1 - strength, 1 + strength], drawn per image."""
    for purpose, change in (
        (Purpose.BRIGHTNESS, brightness),
        (Purpose.CONTRAST, contrast),
        (Purpose.SATURATION, saturation),
    ):
        pixels = change(pixels, random_uniform(seed, purpose, positions).mul(2 * strength).add(1 - strength))
    return pixels


def brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Scale pixels (B, 3, H, W) by `factors` (B,), clipped to [0, 255]."""
    return blend(pixels, torch.zeros_like(pixels[:, :1]), factors)


def contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Move pixels from their image's mean grey."""
    mean = grey(pixels).double().mean(dim=(1, 2, 3), keepdim=True)  # float64: equal for every cut of a batch
    return blend(pixels, mean.float(), factors)


def saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Move pixels from their own grey."""
    return blend(pixels, grey(pixels), factors)


def grey(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = (pixels[:, i : i + 1].mul(weight) for i, weight in enumerate(GREY))
    return red.add(green).add(blue)


def blend(pixels: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Return factor * pixels + (1 - factor) * others for each image, clipped to [0, 255]."""
    factors = factors.view(-1, 1, 1, 1)
    return pixels.mul(factors).add(others.mul(1 - factors)).clamp(0, 255)
