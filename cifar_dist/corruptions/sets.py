"""Sets of corrupted images to evaluate on: made from a split as they are needed, or read from published files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cifar_dist.corruptions import CORRUPTIONS, SEED, SEVERITIES, corrupt
from cifar_dist.data import Split
from cifar_dist.data.splits import stratified
from cifar_dist.errors import UserError, unknown
from cifar_dist.text import shortened

ALL = "all"
LABELS = "labels.npy"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # of such labels
SHAPE = (32, 32, 3)


class CorruptedSet(NamedTuple):
    """Images that were corrupted in one way, or gathered anew."""

    name: str
    severity: int | None  # 1 to 5; None of a set that has none, such as CIFAR-10.1
    split: Split


@dataclass(frozen=True)
class CorruptedSplit(Split):
    """A split whose images are corrupted when they are looked at: on the CPU, so that they are the same everywhere."""

    name: str
    severity: int

    def gather(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return (corrupted images (B, 3, 32, 32) uint8, targets (B,) int64) at `places` (B,) int64 of this split."""
        pixels, targets = super().gather(places)
        changed = corrupt(self.name, self.severity, pixels.cpu(), self.index[places].cpu(), SEED)
        return changed.to(pixels.device), targets


def check_corruptions(words: Sequence[str], split: str) -> None:
    """Raise `UserError` unless `--corruptions` is all, names, or one folder, and goes with `--split`."""
    if tuple(words) == (ALL,):
        return
    for word in words:
        if word in CORRUPTIONS:
            continue
        if not Path(word).is_dir():
            if "/" in word:
                raise UserError(
                    f"--corruptions {shortened(word)} is not a folder; give one with {LABELS}, or {ALL}, or names"
                )
            raise unknown("corruption", word, [ALL, *CORRUPTIONS])
        if len(words) > 1:
            raise UserError(f"--corruptions takes names or one folder, and {word} is a folder; leave the others out")
        if split != "test":
            raise UserError(f"--split {split} has no effect on the images in {word}; leave it out")
    if twice := [word for word in words if list(words).count(word) > 1]:
        raise UserError(f"--corruptions names {twice[0]} twice; leave one out")


def is_folder(words: Sequence[str]) -> bool:
    """Whether `--corruptions`, as `check_corruptions` lets it through, means a folder of files."""
    return len(words) == 1 and words[0] != ALL and words[0] not in CORRUPTIONS


def corrupted_sets(words: Sequence[str], split: Split) -> Iterator[CorruptedSet]:
    """Yield the split with each of the named corruptions at each severity."""
    for name in CORRUPTIONS if tuple(words) == (ALL,) else words:
        for severity in SEVERITIES:
            corrupted = CorruptedSplit(split.images, split.targets, split.index, name, severity)
            yield CorruptedSet(name, severity, corrupted)


def files_of(folder: Path, classes: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """Return the images and the labels of each set in a folder, by name; raises `UserError` where there is none.

    CIFAR-10-C: NAME.npy and `labels.npy`; CIFAR-10.1: cifar10.1_VERSION_data.npy and cifar10.1_VERSION_labels.npy.
    """
    if tuple(classes) != CLASSES:
        raise UserError(f"the labels in {folder} are those of CIFAR-10, and these weights know {' '.join(classes)}")
    found = {}
    for path in sorted(folder.glob("cifar10.1_*_data.npy")):
        name = path.name.removesuffix("_data.npy")
        found[name] = (path, folder / f"{name}_labels.npy")
    if (folder / LABELS).exists():
        used = {path for pair in found.values() for path in pair}
        others = [path for path in sorted(folder.glob("*.npy")) if path.name != LABELS and path not in used]
        found |= {path.stem: (path, folder / LABELS) for path in others}
    if not found:
        raise UserError(
            f"{folder} holds no CIFAR-10-C ({LABELS} and gaussian_noise.npy, ...) and no CIFAR-10.1 (cifar10.1_v6_data.npy)"
        )
    return found


def check_files(folder: Path, classes: Sequence[str]) -> None:
    """Raise `UserError` where a set in the folder isn't what it should be, before any is looked at."""
    for images_file, labels_file in files_of(folder, classes).values():
        _arrays(images_file, labels_file)


def sets_in(folder: Path, classes: Sequence[str], limit: int | None, device: torch.device) -> Iterator[CorruptedSet]:
    """Yield the sets of images in a folder, of each `limit` images at most, on `device`; raises `UserError`."""
    for name, (images_file, labels_file) in files_of(folder, classes).items():
        images, labels = _arrays(images_file, labels_file)
        severities: tuple[int | None, ...] = SEVERITIES if labels_file.name == LABELS else (None,)
        size = len(images) // len(severities)
        for i, severity in enumerate(severities):
            part = slice(i * size, (i + 1) * size)
            pixels = torch.from_numpy(np.array(images[part].transpose(0, 3, 1, 2)))
            split = Split(pixels, torch.from_numpy(labels[part].astype(np.int64)), torch.arange(size))
            if limit is not None and limit < size:
                split = split.subset(stratified(split.targets, limit, SEED))
            yield CorruptedSet(name, severity, split.to(device))


def _arrays(images_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 32, 32, 3) uint8 and labels (N,); raises `UserError`."""
    images, labels = _load(images_file), _load(labels_file)
    if images.ndim != 4 or images.shape[1:] != SHAPE or images.dtype != np.uint8 or not len(images):
        raise UserError(f"{images_file} holds {images.shape} {images.dtype}, not (images, 32, 32, 3) uint8")
    if labels.shape != images.shape[:1]:
        raise UserError(f"{labels_file} holds {labels.shape} labels, and {images_file} {len(images):,} images")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise UserError(f"{labels_file} holds other labels than whole numbers from 0 to {len(CLASSES) - 1}")
    if labels_file.name == LABELS and len(images) % len(SEVERITIES):
        raise UserError(f"{images_file} holds {len(images):,} images, which are not as many of each of 5 severities")
    return images, labels


def _load(path: Path) -> np.ndarray:
    """Return an array that lies in a file, without reading it all; nothing in the file runs. Raises `UserError`."""
    if not path.is_file():
        raise UserError(f"{path} is not there, or no file; it belongs with the others in its folder")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not an array of NumPy's ({shortened(str(error), 120)})") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays, not one array")
    return array
