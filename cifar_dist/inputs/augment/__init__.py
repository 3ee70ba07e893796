"""Augmentations by name: vectorised, on the images' device, each a pure function of (seed, sample positions)."""

from cifar_dist.inputs.augment.geometry import shrunk
from cifar_dist.inputs.augment.mix import MIXES, partner_places
from cifar_dist.inputs.augment.pipeline import AUGMENTATIONS, Visits, augment, check_augmentations
from cifar_dist.inputs.normalize import Normalize

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
