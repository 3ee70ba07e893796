"""What storing does to images (B, 3, H, W) float64 in [0, 1]: by Pillow, one after the other."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Write as JPEG of this quality, and read again."""

    def through(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, through)


def pixelate(images: Tensor, share: float) -> Tensor:
    """Make an image smaller, to this share of its side, and as large as before, both by averages over boxes."""

    def through(image: Image.Image) -> Image.Image:
        small = int(image.width * share), int(image.height * share)
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _each(images, through)


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = images.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    changed = [np.asarray(change(Image.fromarray(one))) for one in pixels]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).double() / 255
