"""Whether a file computes what the model does, on images of the run's own test split where they are at hand."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.data import cache_folder, load_dataset, make_splits
from cifar_dist.data.pictures import resized_pixels
from cifar_dist.data.synthetic import draw_images
from cifar_dist.errors import UserError
from cifar_dist.export.formats import Compute
from cifar_dist.training.weights import side_of

NUM_IMAGES = 128
FIRST = (1, 3)  # images of the first batches, the rest at once: no file may be for one size of batch only
# Of the largest logit. Another order of float32's sums moves logits by some 1e-6 of it (110 layers, random weights: 4e-7);
# a wrong mean, channel order or running statistic by 1e-2 and more. So there is room on both sides.
TOLERANCE = 1e-4


class Images(NamedTuple):
    """What files are checked on."""

    pixels: Tensor  # (N, 3, S, S) uint8
    what: str  # for people; no path in it, as it is published
    why: str = ""  # they aren't the run's own


class Difference(NamedTuple):
    """How far a file's logits are from the model's."""

    largest: float  # absolute
    scale: float  # the model's largest absolute logit

    @property
    def small(self) -> bool:
        """Whether rounding explains it. Of a nan it is false."""
        return self.largest <= TOLERANCE * self.scale or self.largest == 0


def images_to_check(about: Mapping[str, Any], data_dir: Path) -> Images:
    """Return NUM_IMAGES of the test split that the weights belong to, evenly spaced; synthetic ones where it isn't decoded here.

    Downloads and decodes nothing. `about` is what the weights file says of itself.
    """
    name = about["data"] if about["data"] != "auto" or about["dataset"] != "synthetic" else "synthetic"
    size = about.get("image_size")
    try:
        config = TrainConfig(epochs=1, data=name, data_dir=str(data_dir), image_size=size, **about["split"])
        if not cache_folder(name, data_dir, size).is_dir():
            raise UserError(f"--data {name} is not decoded in {data_dir}")
        dataset = load_dataset(name, data_dir, size)
        if dataset.fingerprint != about["fingerprint"]:
            raise UserError(f"--data {name} is not what the weights were trained on")
    except UserError as error:
        drawn = resized_pixels(draw_images(NUM_IMAGES, seed=1)[0], side_of(about))
        return Images(torch.from_numpy(drawn), "synthetic images", str(error))
    test = make_splits(dataset, config, torch.device("cpu")).test
    number = min(NUM_IMAGES, len(test))
    places = torch.linspace(0, len(test) - 1, number).round().long()
    return Images(test.gather(places)[0], "test images of the data it was trained on")


@torch.inference_mode()
def logits_of(compute: Compute, pixels: Tensor) -> Tensor:
    """Return the logits (N, K) of pixels (N, 3, S, S) uint8, in batches of several sizes."""
    sizes = [size for size in FIRST if size < len(pixels)]
    return torch.cat([compute(batch) for batch in pixels.split([*sizes, len(pixels) - sum(sizes)])])


def difference(logits: Tensor, eager: Tensor) -> Difference:
    """Return how far a file's logits (N, K) are from the model's; of another shape, nan."""
    largest = (logits - eager).abs().max().item() if logits.shape == eager.shape else math.nan
    return Difference(largest, eager.abs().max().item())
