"""From uint8 pixels to what the model sees: colours, normalisation, geometry. Mixing comes after, in `engine.load_batch`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cifar_dist.augment.colour import jitter
from cifar_dist.augment.geometry import crop, cutout, flip, rotate
from cifar_dist.augment.mix import MIXES
from cifar_dist.augment.policy import trivial
from cifar_dist.errors import UserError, lookup

Augmentation = Callable[[Tensor, Tensor, int], Tensor]
COLOURS: dict[str, Augmentation] = {"jitter": jitter, "trivial": trivial}  # before normalisation
GEOMETRY: dict[str, Augmentation] = {"crop": crop, "flip": flip, "rotate": rotate, "cutout": cutout}  # after it
AUGMENTATIONS = (*COLOURS, *GEOMETRY, *MIXES)


class Normalize:
    """Pixels in [0, 255] -> float32 (x / 255 - mean) / std, elementwise, so equal for every cut of a batch."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, -1, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, -1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul(self.scale).add_(self.shift)  # not fused: a fused tail would round differently

    def undo(self, images: Tensor) -> Tensor:
        """Return the pixels of normalised images, in [0, 1], for people to look at."""
        return ((images - self.shift) / self.scale / 255).clamp(0, 1)


def check_augmentations(names: Sequence[str]) -> None:
    """Raise `UserError` for a name that doesn't exist or a combination that makes no sense."""
    known = dict.fromkeys(AUGMENTATIONS)
    for name in names:
        lookup(known, name, "augmentation")
        if names.count(name) > 1:
            raise UserError(f"--augment {' '.join(names)} names {name} twice; once is enough")
    if len([name for name in names if name in MIXES]) > 1:
        raise UserError(f"--augment {' '.join(names)}: an image is mixed once; use mixup or cutmix")


def augment(pixels: Tensor, positions: Tensor, names: Sequence[str], seed: int, normalize: Normalize) -> Tensor:
    """Return images (B, 3, 32, 32) float32: pixels uint8, with the named colour changes, normalised, moved, in named order."""
    images = pixels
    for name in names:
        if name in COLOURS:
            images = COLOURS[name](images.float(), positions, seed)
    images = normalize(images)
    for name in names:
        if name in GEOMETRY:
            images = GEOMETRY[name](images, positions, seed)
    return images
