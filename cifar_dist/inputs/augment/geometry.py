"""What moves or hides pixels, after normalisation, so that what comes in from outside is the mean colour: 0.

Each takes images (B, C, H, W) float, positions (B,) int64, the global sample positions that decide the draw, and the seed.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.randomness import Purpose, random_integers


def crop(images: Tensor, positions: Tensor, seed: int) -> Tensor:
    """Pad by zeros, 4 of 32 pixels, then cut one random window of the old size per image (He et al. 2016, §4.2)."""
    height, width = images.shape[-2:]
    pad = width * 4 // 32
    top = random_integers(seed, Purpose.CROP_ROW, positions, 2 * pad + 1)
    left = random_integers(seed, Purpose.CROP_COLUMN, positions, 2 * pad + 1)
    return windows(F.pad(images, (pad,) * 4), top, left, height, width)


def flip(images: Tensor, positions: Tensor, seed: int) -> Tensor:
    """Mirror each image left-right with probability 1/2."""
    mirrored = random_integers(seed, Purpose.FLIP, positions, 2).bool()
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def shift(images: Tensor, positions: Tensor, seed: int) -> Tensor:
    """Move each image by up to 2 of 32 pixels either way, down and across; what comes in is its own reflection (Jordan 2024)."""
    height, width = images.shape[-2:]
    most = width * 2 // 32
    down = random_integers(seed, Purpose.SHIFT_ROW, positions, 2 * most + 1)
    across = random_integers(seed, Purpose.SHIFT_COLUMN, positions, 2 * most + 1)
    return windows(F.pad(images, (most,) * 4, "reflect"), down, across, height, width)


def windows(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cut a window (height, width) out of each of images (B, C, H, W), with its corner at `top`, `left`, both (B,)."""
    views = images.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, H - height + 1, W - width + 1, height, width)
    return views[torch.arange(len(images), device=images.device), :, top, left]


def alternate(images: Tensor, indices: Tensor, epoch: int, seed: int) -> Tensor:
    """Mirror a random half of the images in even epochs and the others in odd ones (Jordan 2024, section 3.6).

    So that two epochs show both sides of every image, which independent draws do for half of them. `indices` (B,) int64 are
    those of the images in the training set.
    """
    mirrored = random_integers(seed, Purpose.FIRST_FLIP, indices, 2) != epoch % 2
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def rotate(images: Tensor, positions: Tensor, seed: int, max_degrees: int = 15) -> Tensor:
    """Turn each image about its centre by up to `max_degrees` either way, in tenths of a degree, bilinearly."""
    tenths = random_integers(seed, Purpose.ROTATION, positions, 20 * max_degrees + 1)
    cosines, sines = turns(10 * max_degrees, images.device)
    return warp(images, cosines[tenths], -sines[tenths], sines[tenths], cosines[tenths])


@lru_cache(maxsize=4)
def turns(max_tenths: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of -max .. max tenths of a degree, from a table: devices compute them differently."""
    angles = [math.radians(t / 10) for t in range(-max_tenths, max_tenths + 1)]
    cosines, sines = (torch.tensor([f(a) for a in angles], device=device) for f in (math.cos, math.sin))
    return cosines, sines


def warp(
    images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, x0: Tensor | float = 0, y0: Tensor | float = 0
) -> Tensor:
    """Fetch the pixel at (x, y), counted from the centre, from (xx x + xy y + x0, yx x + yy y + y0); all (B,), in pixels.

    Bilinear, zeros from outside. Products and sums are separate operations: fused ones round differently by batch.
    """
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).view(1, -1, 1)
    x = (torch.arange(width, device=images.device) - (width - 1) / 2).view(1, 1, -1)
    xx, xy, yx, yy, x0, y0 = (
        v.view(-1, 1, 1) if isinstance(v, Tensor) else torch.full((len(images), 1, 1), float(v), device=images.device)
        for v in (xx, xy, yx, yy, x0, y0)
    )
    across = xx.mul(x).add(xy.mul(y)).add(x0).mul(2 / width)  # grid_sample's [-1, 1] reaches the outer pixels' edges
    down = yx.mul(x).add(yy.mul(y)).add(y0).mul(2 / height)
    return F.grid_sample(images, torch.stack((across, down), dim=-1), "bilinear", "zeros", align_corners=False)


def shrunk(images: Tensor, size: int) -> Tensor:
    """Return the images with a side of `size` pixels, each the mean of what it covers, weighted linearly."""
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def cutout(images: Tensor, positions: Tensor, seed: int) -> Tensor:
    """Zero one square, centred anywhere, so partly outside (DeVries & Taylor 2017; 16 of 32 pixels, as for CIFAR-10)."""
    centre = (Purpose.CUTOUT_ROW, Purpose.CUTOUT_COLUMN)
    return images.masked_fill(box(images, positions, seed, centre, images.shape[-1] * 16 // 32), 0)


def box(images: Tensor, positions: Tensor, seed: int, centre: tuple[Purpose, Purpose], size: int | Tensor) -> Tensor:
    """Return (B, 1, H, W) bool: a square of `size` pixels, one number or (B,), with a uniformly drawn centre."""
    inside = []
    for length, purpose in zip(images.shape[-2:], centre, strict=True):
        start = random_integers(seed, purpose, positions, length) - size // 2
        places = torch.arange(length, device=images.device).view(1, -1)
        end = start + size
        inside.append((places >= start.unsqueeze(1)) & (places < end.unsqueeze(1)))
    rows, columns = inside
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
