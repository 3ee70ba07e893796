"""Common corruptions of test images at five severities, after Hendrycks & Dietterich (2019).

The severities are those of the paper's own CIFAR-10-C (`make_cifar_c.py` of github.com/hendrycks/robustness). The images are
others than in its files: random numbers come from our hash, and so does the direction of motion. Noise, blur, light and coding
are computed as there. Glass and zoom blur, frost, snow, spatter and elastic transformation are left out: some need pictures or
libraries that aren't here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifar_dist.corruptions.blur import defocus_blur, gaussian_blur, motion_blur
from cifar_dist.corruptions.coding import jpeg_compression, pixelate
from cifar_dist.corruptions.draws import Draws
from cifar_dist.corruptions.light import brightness, contrast, fog, saturate
from cifar_dist.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise

SEVERITIES = (1, 2, 3, 4, 5)
SEED = 0  # one for everybody, so that models are compared on the same images
ROUNDING = 1e-6  # of a pixel's value, which floating point may fall short by


class Corruption(NamedTuple):
    """A way to spoil images, and how much at each severity."""

    change: Callable[..., Tensor]  # images (B, 3, H, W) float64 in [0, 1], Draws where it draws, one of `amounts`
    draws: bool
    amounts: tuple[Any, ...]


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, True, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, True, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, True, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Corruption(speckle_noise, True, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(gaussian_blur, False, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": Corruption(defocus_blur, False, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion_blur": Corruption(motion_blur, True, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "fog": Corruption(fog, True, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(brightness, False, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, False, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Corruption(saturate, False, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "pixelate": Corruption(pixelate, False, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(jpeg_compression, False, (80, 65, 58, 50, 40)),
}


def corrupt(name: str, severity: int, pixels: Tensor, numbers: Tensor, seed: int = SEED) -> Tensor:
    """Return corrupted copies of pixels (B, 3, 32, 32) uint8, on the CPU, whose result depends on no other image.

    `numbers` (B,) int64 tell the images apart, whatever batch they come in; values are cut off to whole ones, as in CIFAR-10-C.
    """
    change, draws, amounts = CORRUPTIONS[name]
    images = pixels.double() / 255
    drawn = (Draws(numbers, seed),) if draws else ()
    changed = change(images, *drawn, amounts[severity - 1])
    return (changed.clamp(0, 1) * 255 + ROUNDING).to(torch.uint8)
