"""Pictures as people have them, in one of FORMATS: opened by their first bytes, judged by their size before their pixels."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_dist.progress import Report, unheard

if TYPE_CHECKING:  # Pillow is only needed where something is decoded
    from PIL import Image

# Pillow decodes more by the first bytes, whatever a file's name says; an EPS would start Ghostscript, a program of its own.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MOST_PIXELS = 2**26  # 8192 x 8192, 200 MB of RGB; a small file may hold a huge picture
WHITE = (255, 255, 255, 255)
REPORTED = 100  # images, after which progress is told


class PictureError(Exception):
    """Why a picture can't be used: words that follow its name, with the way out."""


@contextmanager
def opened(source: Any) -> Iterator["Image.Image"]:
    """Open a path or a binary file whose pixels are decoded inside; raises `PictureError` for whatever goes wrong there."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source, formats=FORMATS) as image:
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"is no image in one of the formats {', '.join(FORMATS)}; convert or remove it") from None
    except Exception as error:  # decoders raise whatever they like
        raise PictureError(f"can't be decoded ({' '.join(str(error).split())}); repair or remove it") from None


def as_model_sees(image: "Image.Image", side: int) -> np.ndarray:
    """Return any picture as pixels (side, side, 3) uint8: upright, its first frame, on white, shrunk or enlarged as `resized` does.

    A grey one has three equal channels, as Pillow converts it.

    Raises `PictureError` for one that is huge, or whose values have no known white.
    """
    from PIL import ImageOps

    if image.width * image.height > MOST_PIXELS:
        raise PictureError(f"has {image.width}x{image.height} pixels, more than {MOST_PIXELS:,}; resize it first")
    return np.asarray(resized(_on_white(ImageOps.exif_transpose(image)), side))


def resized(image: "Image.Image", side: int) -> "Image.Image":
    """Return the largest square in a picture's middle as `side` x `side` pixels, smoothed where it shrinks; such stay as they are."""
    from PIL import Image, ImageOps

    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def resized_pixels(images: np.ndarray, side: int) -> np.ndarray:
    """Return images (N, 3, H, W) uint8 as (N, 3, side, side), each `resized`."""
    from PIL import Image

    def resize(i: int) -> np.ndarray:
        return np.asarray(resized(Image.fromarray(images[i].transpose(1, 2, 0).copy()), side))

    return stacked(resize, len(images), side)


def stacked(make: Callable[[int], np.ndarray], count: int, side: int, progress: Report = unheard) -> np.ndarray:
    """Return what `make` returns for 0 to `count` - 1, pixels (side, side, 3) uint8 each, as (count, 3, side, side); tells how many."""
    images = np.empty((count, 3, side, side), dtype=np.uint8)

    def fill(i: int) -> None:
        images[i] = make(i).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock while it works
        for done, _ in enumerate(pool.map(fill, range(count)), start=1):
            if done % REPORTED == 0:
                progress(done, count)
    return images


def _on_white(image: "Image.Image") -> "Image.Image":
    """Return a picture of any mode in RGB, 16 bits rounded to 8, on white where it is transparent."""
    from PIL import Image

    if image.mode == "F":
        raise PictureError("holds floating-point values, of which none is known to be white; convert it to 8 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion cuts off all above 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError("holds values of more than 16 bits; convert it to 8 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")
