"""Augmentations by name: vectorised, on the images' device, each a pure function of (seed, sample positions)."""

from cifar_dist.augment.geometry import shrunk
from cifar_dist.augment.mix import MIXES, partner_places
from cifar_dist.augment.pipeline import AUGMENTATIONS, Normalize, Visits, augment, check_augmentations

__all__ = [
    "AUGMENTATIONS",
    "MIXES",
    "Normalize",
    "Visits",
    "augment",
    "check_augmentations",
    "partner_places",
    "shrunk",
]
