"""Light and weather: on images (B, 3, H, W) float64 in [0, 1]."""

import torch
from torch import Tensor

from cifar_dist.corruptions.draws import Draws
from cifar_dist.randomness import Purpose


def brightness(images: Tensor, more: float) -> Tensor:
    """Add to the value of HSV, which is the largest channel, hue and saturation as they are."""
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-9)), brighter)


def saturate(images: Tensor, severity: tuple[float, float]) -> Tensor:
    """Multiply the saturation of HSV by a factor, and add to it; grey counts as red, as its hue is 0."""
    factor, more = severity
    value, darkest = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    spread = value - darkest
    saturation = spread / value.clamp(min=1e-9)
    wanted = (saturation * factor + more).clamp(0, 1)
    below = torch.where(spread > 0, (value - images) / spread.clamp(min=1e-9), torch.tensor([0.0, 1, 1]).view(3, 1, 1))
    return value - value * wanted * below


def contrast(images: Tensor, factor: float) -> Tensor:
    """Move values to the mean of their image's channel."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return (images - means) * factor + means


def fog(images: Tensor, draws: Draws, severity: tuple[float, float]) -> Tensor:
    """Add a cloud of this density and smoothness, and darken to the image's own maximum."""
    density, smoothness = severity
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    side = images.shape[-1]
    whole = cloud(draws, smoothness, 1 << (side - 1).bit_length())[:, :, :side, :side]
    return (images + density * whole) * brightest / (brightest + density)


def cloud(draws: Draws, smoothness: float, size: int) -> Tensor:
    """Return plasma fractals (B, 1, size, size) from 0 to 1, by diamonds and squares on a torus; `size`: a power of 2.

    Each place is the mean of four others, a step away, plus noise that gets weaker by smoothness**2 with each halving of the step.
    """
    noise = 2 * draws.uniform(Purpose.FOG, (size, size)) - 1
    found, step, strength = torch.zeros_like(noise), size, 1.0
    while step >= 2:
        half = step // 2
        corners = found[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        centres = (rows + rows.roll(-1, 2)) / 4 + strength * noise[:, half::step, half::step]
        found[:, half::step, half::step] = centres
        across = (centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)) / 4
        found[:, ::step, half::step] = across + strength * noise[:, ::step, half::step]
        down = (centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)) / 4
        found[:, half::step, ::step] = down + strength * noise[:, half::step, ::step]
        step, strength = half, strength / smoothness**2
    found -= found.amin(dim=(1, 2), keepdim=True)
    return (found / found.amax(dim=(1, 2), keepdim=True)).unsqueeze(1)
