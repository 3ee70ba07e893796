"""From uint8 pixels to what the model sees: colours, normalisation, geometry. Mixing comes after, in `batches.Batches`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from cifar_dist.errors import UserError, lookup
from cifar_dist.inputs.augment.colour import jitter
from cifar_dist.inputs.augment.geometry import alternate, crop, cutout, flip, rotate, shift
from cifar_dist.inputs.augment.mix import MIXES
from cifar_dist.inputs.augment.policy import trivial
from cifar_dist.inputs.normalize import Normalize

Augmentation = Callable[[Tensor, Tensor, int], Tensor]
COLOURS: dict[str, Augmentation] = {"jitter": jitter, "trivial": trivial}  # before normalisation
GEOMETRY: dict[str, Augmentation] = {
    "crop": crop,
    "flip": flip,
    "shift": shift,
    "rotate": rotate,
    "cutout": cutout,
}  # after
ALTERNATE = "alternate"  # the one that needs to know which image it is: a flip, after normalisation too
AUGMENTATIONS = (*COLOURS, *GEOMETRY, ALTERNATE, *MIXES)


class Visits(NamedTuple):
    """Which images are seen, and when."""

    positions: Tensor  # (B,) int64: global sample positions, one for each visit of an image
    indices: Tensor  # (B,) int64: of the images in the training set
    epoch: int


def check_augmentations(names: Sequence[str]) -> None:
    """Raise `UserError` for a name that doesn't exist or a combination that makes no sense."""
    known = dict.fromkeys(AUGMENTATIONS)
    for name in names:
        if "," in name:
            raise UserError(f"--augment {name} has a comma; separate augmentations by spaces: {name.replace(',', ' ')}")
        lookup(known, name, "augmentation")
        if names.count(name) > 1:
            raise UserError(f"--augment {' '.join(names)} names {name} twice; once is enough")
    if ALTERNATE in names and "flip" in names:
        raise UserError(f"--augment {' '.join(names)} mirrors images twice; use flip or {ALTERNATE}")
    if len([name for name in names if name in MIXES]) > 1:
        raise UserError(f"--augment {' '.join(names)}: an image is mixed once; use mixup or cutmix")


def augment(pixels: Tensor, visits: Visits, names: Sequence[str], seed: int, normalize: Normalize) -> Tensor:
    """Return images (B, 3, H, W) float32: pixels uint8, with the named colour changes, normalised, moved, in named order."""
    images = pixels
    for name in names:
        if name in COLOURS:
            images = COLOURS[name](images.float(), visits.positions, seed)
    images = normalize(images)
    for name in names:
        if name in GEOMETRY:
            images = GEOMETRY[name](images, visits.positions, seed)
        elif name == ALTERNATE:
            images = alternate(images, visits.indices, visits.epoch, seed)
    return images
