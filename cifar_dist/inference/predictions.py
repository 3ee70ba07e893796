"""What a model says of pictures: files, folders, bytes and arrays, a block at a time; one that can't be read stops no other."""

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import numpy as np
import torch

from cifar_dist.data.pictures import PictureError, as_model_sees, opened
from cifar_dist.errors import UserError
from cifar_dist.files import read_file
from cifar_dist.inference.predictor import Predictor
from cifar_dist.runtime.launch import default_threads
from cifar_dist.training.evaluation import EVAL_BLOCK

if TYPE_CHECKING:  # Pillow is imported where the first picture is opened
    from PIL import Image

Picture: TypeAlias = Union[str, os.PathLike[str], bytes, np.ndarray, "Image.Image"]
# Of the files in a folder that count as its images.
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm"}
LARGEST_FILE = 10**9  # bytes
MOST_DECODERS = 8  # threads, each of which may hold a large picture


class Guess(NamedTuple):
    """A class, and the probability in [0, 1] that the model gives it."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture."""

    name: str  # its path; "image 0", "image 1" ... of what has none
    top: tuple[Guess, ...] = ()  # the most probable first
    error: str = ""  # why there is none: words that follow the name


@dataclass(frozen=True)
class Source:
    """A picture that is yet to be read; `error` says why it never will be."""

    name: str
    content: Picture | None = None
    error: str = ""


def predict(model: Predictor, images: Picture | Iterable[Picture], top: int = 3) -> list[Prediction]:
    """Return the `top` most probable classes of each picture, in order; one that can't be read has an `error` in their place.

    A picture is a path, the bytes of a file, a Pillow image, or an array uint8 (H, W) or (H, W, 3); a folder stands for all
    images in it. Whatever its size, the model sees its middle square in as many pixels as it was trained on.
    Raises `UserError` for anything else.
    """
    one = isinstance(images, str | os.PathLike | bytes) or hasattr(images, "convert")  # a Pillow image
    if isinstance(images, np.ndarray):
        one = images.ndim == 2 or (images.ndim == 3 and images.shape[2] == 3)
    pictures: Iterable[Picture] = [images] if one else images  # type: ignore[list-item, assignment] # as just seen
    return [prediction for prediction, _ in look_at(model, sources(pictures), top)]


def sources(pictures: Iterable[Picture]) -> Iterator[Source]:
    """Yield each picture under its name, and those in folders one by one."""
    for number, picture in enumerate(pictures):
        if isinstance(picture, str | os.PathLike):
            yield from _files(os.fspath(picture))
        elif isinstance(picture, bytes | np.ndarray) or hasattr(picture, "convert"):
            yield Source(f"image {number}", picture)
        else:
            raise UserError(
                f"a picture is a path, bytes, an array or a Pillow image, not {type(picture).__name__}; give one of these"
            )


def look_at(
    model: Predictor, pictures: Iterable[Source], top: int = 3
) -> Iterator[tuple[Prediction, np.ndarray | None]]:
    """Yield what the model says of each picture, with the pixels (S, S, 3) uint8 it saw, None where it saw none.

    Blocks are as large as evaluation's, so that the same images in the same order give the same bits.
    """
    if top < 1:
        raise UserError(f"top must be 1 or greater, got {top}")
    remaining = iter(pictures)
    with ThreadPoolExecutor(min(MOST_DECODERS, default_threads())) as pool:
        while block := list(islice(remaining, EVAL_BLOCK)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about what it reads all the same, and what is refused
                seen = list(pool.map(partial(_decode, side=model.side), block))
            shares = iter(_probabilities(model, [pixels for pixels in seen if isinstance(pixels, np.ndarray)]))
            for source, pixels in zip(block, seen, strict=True):
                if isinstance(pixels, str):
                    yield Prediction(source.name, error=pixels), None
                else:
                    yield Prediction(source.name, _best(next(shares), model.classes, top)), pixels


def _probabilities(model: Predictor, images: list[np.ndarray]) -> np.ndarray:
    if not images:
        return np.empty((0, len(model.classes)))
    return model.probabilities(torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()))


def _best(shares: np.ndarray, classes: tuple[str, ...], top: int) -> tuple[Guess, ...]:
    """Return the most probable classes; of equal ones the first class first."""
    return tuple(Guess(classes[c], float(shares[c])) for c in np.argsort(-shares, kind="stable")[:top])


def _files(name: str) -> Iterator[Source]:
    """Yield a file, or the images in a folder and in the folders in it, sorted; neither hidden ones, nor behind links to folders."""
    if not os.path.isdir(name):  # noqa: PTH112 # pathlib would take a - for a folder's name, and drop a leading ./
        yield Source(name, Path(name))
        return
    found: list[Source] = []

    def note(error: OSError) -> None:
        found.append(Source(str(error.filename), error=f"can't be read: {error.strerror}"))

    for folder, inner, files in os.walk(name, onerror=note):
        inner[:] = [part for part in inner if not part.startswith(".")]
        paths = [Path(folder, file) for file in files if not file.startswith(".")]
        found += [Source(str(path), path) for path in paths if path.suffix.lower() in SUFFIXES]
    yield from sorted(found, key=lambda source: Path(source.name).parts)
    if not found:
        yield Source(name, error=f"is a folder without images, by their names: {' '.join(sorted(SUFFIXES))}")


def _decode(source: Source, side: int) -> np.ndarray | str:
    """Return the pixels (side, side, 3) uint8 that a model sees of a picture, or why there are none."""
    if source.error or source.content is None:
        return source.error
    try:
        if isinstance(source.content, np.ndarray):
            return as_model_sees(_image_of(source.content), side)
        if isinstance(source.content, bytes):
            return _decode_bytes(source.content, side)
        if isinstance(source.content, str | os.PathLike):
            return _decode_bytes(_read(Path(source.content)), side)
        return as_model_sees(source.content, side)
    except PictureError as error:
        return str(error)
    except Exception as error:  # a Pillow image may decode itself only now, and raise whatever it likes
        return f"can't be decoded ({' '.join(str(error).split())}); repair or remove it"


def _decode_bytes(content: bytes, side: int) -> np.ndarray:
    with opened(BytesIO(content)) as image:
        return as_model_sees(image, side)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, LARGEST_FILE)
    except OSError as error:
        raise PictureError(f"can't be read: {error.strerror}") from None
    except ValueError as error:  # it says which file
        raise PictureError(str(error).removeprefix(f"{path} ")) from None


def _image_of(pixels: np.ndarray) -> "Image.Image":
    from PIL import Image

    if (
        pixels.dtype != np.uint8
        or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))
        or not pixels.size
    ):
        raise PictureError(f"is an array {pixels.dtype} {pixels.shape}; uint8 (H, W) or (H, W, 3) is needed")
    return Image.fromarray(pixels)
