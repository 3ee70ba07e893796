"""TrivialAugment: one random operation of random strength per image, the simplest of the AutoAugment family."""

from collections.abc import Callable

import torch
from torch import Tensor

from cifar_dist.inputs.augment.colour import blend, brightness, contrast, saturation
from cifar_dist.inputs.augment.geometry import turns, warp
from cifar_dist.randomness import Purpose, random_integers

BINS = 31  # strengths, from none to the most
FILL = 128.0  # what comes in from outside, grey as in AutoAugment (Cubuk et al. 2019)
Operation = Callable[[Tensor, Tensor], Tensor]


def trivial(pixels: Tensor, positions: Tensor, seed: int) -> Tensor:
    """Apply one of OPERATIONS to each image, drawn uniformly, at a strength drawn uniformly (Müller & Hutter 2021, wide).

    pixels (B, 3, H, W) float in [0, 255]; whatever their size, they move by up to 32 places, as published. Unlike
    torchvision's, they are moved bilinearly and grey comes in from outside.
    """
    operations = random_integers(seed, Purpose.POLICY_OPERATION, positions, len(OPERATIONS))
    draws = random_integers(seed, Purpose.POLICY_MAGNITUDE, positions, 2 * BINS)  # a bin and a sign
    signed = torch.where(draws % 2 == 0, draws // 2, -(draws // 2))
    result = pixels.clone()
    order = operations.argsort(stable=True)
    counts = torch.zeros(len(OPERATIONS), dtype=torch.int64, device=pixels.device)
    counts.scatter_add_(0, operations, torch.ones_like(operations))  # one wait for the device, not one per operation
    for operation, chosen in zip(OPERATIONS.values(), order.split(counts.tolist()), strict=True):
        result[chosen] = operation(pixels[chosen], signed[chosen])
    return result


def strength(signed: Tensor, most: float) -> Tensor:
    """Bins in -30 .. 30 -> -most .. most."""
    return divided(signed.float().mul(most), BINS - 1)


def divided(values: Tensor, by: int) -> Tensor:
    """Divide as a CPU does: a GPU would multiply by a number's reciprocal, which rounds differently."""
    return values / values.new_full((), by)


def _kept(pixels: Tensor, _signed: Tensor) -> Tensor:
    return pixels


def _moved(pixels: Tensor, **matrix: Tensor) -> Tensor:
    one, zero = pixels.new_ones(len(pixels)), pixels.new_zeros(len(pixels))
    return warp(pixels - FILL, **({"xx": one, "xy": zero, "yx": zero, "yy": one} | matrix)) + FILL


def _rotated(pixels: Tensor, signed: Tensor) -> Tensor:
    cosines, sines = turns(1350, pixels.device)  # by up to 135 degrees
    tenths = (signed + BINS - 1) * 45
    return _moved(pixels, xx=cosines[tenths], xy=-sines[tenths], yx=sines[tenths], yy=cosines[tenths])


def _sharpened(pixels: Tensor, signed: Tensor) -> Tensor:
    """Move pixels from their image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13; the outermost stay as they are."""
    inner = sum(
        (
            pixels[:, :, 1 + i : pixels.shape[2] - 1 + i, 1 + j : pixels.shape[3] - 1 + j]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ),
        start=torch.zeros((), device=pixels.device),
    )
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = divided(inner + 4 * pixels[:, :, 1:-1, 1:-1], 13)
    return blend(pixels, smooth, 1 + strength(signed, 0.99))


def _posterized(pixels: Tensor, signed: Tensor) -> Tensor:
    """Keep the upper 8 to 2 bits."""
    dropped = signed.abs().mul(6).add(BINS // 2).div(BINS - 1, rounding_mode="floor")  # rounded
    unit = torch.bitwise_left_shift(torch.ones_like(dropped), dropped).view(-1, 1, 1, 1)
    return pixels.long().div(unit, rounding_mode="floor").mul(unit).float()


def _solarized(pixels: Tensor, signed: Tensor) -> Tensor:
    """Invert what is at or above a threshold of 255 to 0."""
    threshold = 255 - strength(signed.abs(), 255).view(-1, 1, 1, 1)
    return torch.where(pixels >= threshold, 255 - pixels, pixels)


def _autocontrasted(pixels: Tensor, _signed: Tensor) -> Tensor:
    """Stretch each channel to [0, 255]."""
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    scale = torch.where(high > low, 255 / (high - low).clamp(min=1), 1.0)
    return torch.where(high > low, (pixels - low).mul(scale), pixels).clamp(0, 255)


def _equalized(pixels: Tensor, _signed: Tensor) -> Tensor:
    """Make each channel's values about equally frequent."""
    from torchvision.transforms.v2.functional import equalize  # slow to import, and only needed here

    return equalize(pixels.to(torch.uint8)).float() if len(pixels) else pixels


OPERATIONS: dict[str, Operation] = {
    "identity": _kept,
    "shear_x": lambda x, s: _moved(
        x, xy=strength(s, 0.99), x0=strength(s, 0.99 * x.shape[-2] / 2)
    ),  # the top row stays
    "shear_y": lambda x, s: _moved(x, yx=strength(s, 0.99), y0=strength(s, 0.99 * x.shape[-1] / 2)),  # the left column
    "translate_x": lambda x, s: _moved(x, x0=strength(s, 32.0)),
    "translate_y": lambda x, s: _moved(x, y0=strength(s, 32.0)),
    "rotate": _rotated,
    "brightness": lambda x, s: brightness(x, 1 + strength(s, 0.99)),
    "saturation": lambda x, s: saturation(x, 1 + strength(s, 0.99)),
    "contrast": lambda x, s: contrast(x, 1 + strength(s, 0.99)),
    "sharpness": _sharpened,
    "posterize": _posterized,
    "solarize": _solarized,
    "autocontrast": _autocontrasted,
    "equalize": _equalized,
}
