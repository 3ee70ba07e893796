"""Two images in one, with the classes of both: mixup and cutmix.

Each takes images and their partners (B, C, H, W) float, positions (B,) int64 and the seed, and returns the mixed images and
the share (B,) float32 in [0, 1] that is left of each one's own class. Partners are drawn from the whole epoch, not from
the batch at hand, so that they don't depend on how it is shared out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cifar_dist.inputs.augment.geometry import box
from cifar_dist.randomness import Purpose, random_integers, random_uniform


def partner_places(positions: Tensor, seed: int, num_images: int) -> Tensor:
    """Return the place (B,) in the epoch's order of each sample's partner."""
    return random_integers(seed, Purpose.MIX_PARTNER, positions, num_images)


def mixup(images: Tensor, partners: Tensor, positions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Blend the two, with a share drawn from Beta(1, 1): uniform (Zhang et al. 2018; alpha 1 on CIFAR-10)."""
    share = random_uniform(seed, Purpose.MIX_SHARE, positions)
    weight = share.view(-1, 1, 1, 1)
    return images.mul(weight).add(partners.mul(1 - weight)), share


def cutmix(images: Tensor, partners: Tensor, positions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Paste a square of the partner, of an area drawn uniformly, centred anywhere (Yun et al. 2019; alpha 1).

    The share is that of the pixels, after the square is clipped at the edges.
    """
    area = random_uniform(seed, Purpose.MIX_SHARE, positions)
    size = area.sqrt().mul(images.shape[-1]).long()
    pasted = box(images, positions, seed, (Purpose.MIX_ROW, Purpose.MIX_COLUMN), size)
    share = 1 - pasted.sum(dim=(1, 2, 3)).float() / (images.shape[-2] * images.shape[-1])
    return torch.where(pasted, partners, images), share


MIXES: dict[str, Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {"mixup": mixup, "cutmix": cutmix}
