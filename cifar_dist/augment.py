"""Augmentations: vectorised, on the images' device, each a pure function of (seed, sample positions)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.errors import lookup
from cifar_dist.randomness import Purpose, random_integers


def crop(images: Tensor, positions: Tensor, seed: int, pad: int = 4) -> Tensor:
    """Pad by `pad` zeros (the mean colour), then cut one random window of the old size per image (He et al. 2016, §4.2).

    images (B, C, H, W) float, normalised; positions (B,) int64: the global sample positions that decide the draw.
    """
    height, width = images.shape[-2:]
    top = random_integers(seed, Purpose.CROP_ROW, positions, 2 * pad + 1)
    left = random_integers(seed, Purpose.CROP_COLUMN, positions, 2 * pad + 1)
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, positions: Tensor, seed: int) -> Tensor:
    """Mirror each image left-right with probability 1/2."""
    mirrored = random_integers(seed, Purpose.FLIP, positions, 2).bool()
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {"crop": crop, "flip": flip}


def augment(images: Tensor, positions: Tensor, names: tuple[str, ...], seed: int) -> Tensor:
    """Apply the named augmentations in order; shapes and dtype stay."""
    for name in names:
        images = lookup(AUGMENTATIONS, name, "augmentation")(images, positions, seed)
    return images


class Normalize:
    """uint8 images in [0, 255] -> float32 (x / 255 - mean) / std, elementwise, so equal for every cut of a batch."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, -1, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)  # not fused: a fused tail would round differently
