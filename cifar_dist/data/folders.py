"""Class folders of images: train/CLASS/* and test/CLASS/*, in a format of data/pictures.py, 32x32 pixels or resized."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_dist.config import SIDE
from cifar_dist.data.cache import Decoded
from cifar_dist.data.pictures import PictureError, as_model_sees, opened, stacked
from cifar_dist.errors import UserError
from cifar_dist.progress import Report, unheard
from cifar_dist.text import printable

EXIF_ORIENTATION = 0x0112


class Listing(NamedTuple):
    """What is in a folder, found without opening a file."""

    classes: tuple[str, ...]
    train: list[tuple[str, int]]  # (path, target), in order of class and name
    test: list[tuple[str, int]]
    key: str  # changes whenever a name, a size or a modification time does


def list_folder(root: Path) -> Listing:
    """Raises `UserError` where `root` doesn't look like class folders."""
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise UserError(f"{root} has no folder {part}/; a data folder holds train/CLASS/* and test/CLASS/*")
    if extra := sorted(p.name for p in root.iterdir() if p.is_dir() and p.name in ("val", "valid", "validation")):
        raise UserError(
            f"{root} has a folder {extra[0]}/, which would not be used; move its images into train/ (--val-fraction holds some out)"
        )
    classes = {part: _class_names(root / part) for part in ("train", "test")}
    if classes["train"] != classes["test"]:
        odd = sorted(set(classes["train"]) ^ set(classes["test"]))
        raise UserError(f"train/ and test/ of {root} must hold the same classes; only one of them has {', '.join(odd)}")
    if len(classes["train"]) < 2:
        raise UserError(f"{root}/train holds {len(classes['train'])} class folders; at least 2 are needed")
    if odd_names := [name for name in classes["train"] if name != printable(name)]:
        raise UserError(
            f"the class folder {odd_names[0]!r} of {root} can't be a class's name, on pages and in files, unless it is UTF-8 and "
            "without control characters; rename it in train/ and test/"
        )
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    train, test = (_list_part(root / part, classes["train"], digest) for part in ("train", "test"))
    return Listing(classes["train"], train, test, digest.hexdigest()[:16])


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders, but for hidden ones, as .ipynb_checkpoints."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _list_part(folder: Path, classes: tuple[str, ...], digest: "hashlib._Hash") -> list[tuple[str, int]]:
    files = []
    for target, name in enumerate(classes):
        with os.scandir(folder / name) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            if not entry.is_file():
                what = "a folder" if entry.is_dir() else "no file, or a link that leads nowhere"
                raise UserError(f"{entry.path} is {what}; images lie directly in the folder of their class")
        found = sorted((entry.name, entry.stat()) for entry in visible)
        if not found:
            raise UserError(
                f"class folder {folder / name} is empty; put its images there or remove it from train/ and test/"
            )
        digest.update(os.fsencode(f"{folder.name}/{name}\0"))
        for file_name, stat in found:
            digest.update(os.fsencode(file_name) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
            files.append((f"{folder}/{name}/{file_name}", target))
    return files


def read_folder(root: Path, listing: Listing, image_size: int | None = None, progress: Report = unheard) -> Decoded:
    """Decode every file; raises `UserError` naming the first that can't be.

    With `image_size` each becomes what `predict` would see of it, whatever its size; without, only what is 32x32 and loses
    nothing by becoming RGB values of 8 bits is taken. A grey image has three equal channels.
    """
    files = listing.train + listing.test
    images = stacked(lambda i: _decode_file(files[i][0], image_size), len(files), image_size or SIDE, progress)
    targets, n = np.array([target for _, target in files], dtype=np.int64), len(listing.train)
    return Decoded(printable(str(root)), False, listing.classes, images[:n], targets[:n], images[n:], targets[n:])


def _decode_file(path: str, image_size: int | None) -> np.ndarray:
    """Return pixels (H, W, 3) uint8."""
    try:
        with opened(path) as image:
            return as_model_sees(image, image_size) if image_size else _as_it_is(image)
    except PictureError as error:
        raise UserError(f"{path} {error}") from None


def _as_it_is(image: Any) -> np.ndarray:
    width, height = image.size
    if (width, height) != (SIDE, SIDE):  # before decoding: a small file may hold a huge picture
        rule = f"images must be {SIDE}x{SIDE} unless they are resized: --image-size {SIDE}"
        raise PictureError(f"is {width}x{height} pixels; {rule}")
    if lost := _what_is_lost(image):
        raise PictureError(f"has {lost}, which images of three times 8 bits lose; convert it first")
    return np.asarray(image.convert("RGB"))


def _what_is_lost(image: Any) -> str:
    """Return what a picture says besides RGB values of 8 bits, and would be silently left out; empty if nothing."""
    if image.mode in ("F", "I") or ";16" in image.mode:
        return f"more than 8 bits a value (mode {image.mode})"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        return "transparent pixels"
    if (orientation := image.getexif().get(EXIF_ORIENTATION, 1)) != 1:
        return f"an EXIF orientation ({orientation})"
    if getattr(image, "n_frames", 1) > 1:
        return f"{image.n_frames} frames"
    return ""
