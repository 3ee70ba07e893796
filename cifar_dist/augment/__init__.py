"""Augmentations by name: vectorised, on the images' device, each a pure function of (seed, sample positions)."""

from cifar_dist.augment.colour import jitter
from cifar_dist.augment.geometry import crop, cutout, flip, rotate
from cifar_dist.augment.mix import MIXES, cutmix, mixup, partner_places
from cifar_dist.augment.pipeline import AUGMENTATIONS, COLOURS, GEOMETRY, Normalize, augment, check_augmentations
from cifar_dist.augment.policy import trivial

__all__ = [
    "AUGMENTATIONS",
    "COLOURS",
    "GEOMETRY",
    "MIXES",
    "Normalize",
    "augment",
    "check_augmentations",
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "jitter",
    "mixup",
    "partner_places",
    "rotate",
    "trivial",
]
