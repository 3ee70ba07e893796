"""Blur: on images (B, 3, H, W) float64 in [0, 1]. Weighted sums of moved images, so equal for every cut of a batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.corruptions.draws import Draws
from cifar_dist.randomness import Purpose

STEEPEST = math.pi / 4  # of the way that a camera moves
TRUNCATE = 4.0  # standard deviations of a Gaussian, as in scikit-image


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian of this standard deviation in pixels; beyond the edge lies its last pixel."""
    reach = int(TRUNCATE * sigma + 0.5)
    weights = gaussian(range(-reach, reach + 1), sigma)
    rows = [[weight] for weight in weights]
    return correlate(correlate(images, rows, "replicate"), [weights], "replicate")


def defocus_blur(images: Tensor, severity: tuple[float, float]) -> Tensor:
    """Blur by a disk of this radius in pixels, its edge softened by a 3 x 3 Gaussian of this standard deviation."""
    radius, softness = severity
    soft = gaussian(range(-1, 2), softness)
    disk = {(y, x) for y in range(-2, 3) for x in range(-2, 3) if y * y + x * x <= radius * radius}
    kernel = [[0.0] * 7 for _ in range(7)]
    for y, x in disk:
        for dy, down in enumerate(soft, start=-1):
            for dx, right in enumerate(soft, start=-1):
                kernel[y + dy + 3][x + dx + 3] += down * right / len(disk)
    return correlate(images, kernel, "reflect")


def motion_blur(images: Tensor, draws: Draws, severity: tuple[int, float]) -> Tensor:
    """Smear each image along a way of its own, up to 45 degrees from the horizontal: half a Gaussian of 2 * radius + 1 pixels.

    The kernel is ImageMagick's: each pixel's neighbours on one side, at rounded places; beyond the edge lies its last pixel.
    """
    radius, sigma = severity
    angles = (2 * draws.uniform(Purpose.MOTION_ANGLE, (1,)) - 1) * STEEPEST
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    flat, blurred = images.flatten(2), torch.zeros_like(images)
    for i, weight in enumerate(gaussian(range(2 * radius + 1), sigma)):
        down, right = ((i * part - 0.5).ceil().long().view(-1, 1, 1) for part in (angles.sin(), angles.cos()))
        places = (rows + down).clamp(0, height - 1) * width + (columns + right).clamp(0, width - 1)
        moved = flat.gather(2, places.flatten(1)[:, None].expand(-1, images.shape[1], -1))
        blurred += weight * moved.view_as(images)
    return blurred


def gaussian(places: range, sigma: float) -> list[float]:
    """Return weights that add up to 1."""
    weights = [math.exp(-(place**2) / (2 * sigma**2)) for place in places]
    return [weight / sum(weights) for weight in weights]


def correlate(images: Tensor, kernel: list[list[float]], beyond: str) -> Tensor:
    """Return the weighted sum of each pixel's neighbours; `beyond` the edge: replicate or reflect."""
    up, left = len(kernel) // 2, len(kernel[0]) // 2
    height, width = images.shape[-2:]
    padded = F.pad(images, (left, left, up, up), beyond)
    total = torch.zeros_like(images)
    for y, row in enumerate(kernel):
        for x, weight in enumerate(row):
            if weight:
                total += weight * padded[..., y : y + height, x : x + width]
    return total
