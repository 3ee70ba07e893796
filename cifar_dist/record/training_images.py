"""A few training images that a run has kept, as they are and as its first steps saw them."""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_dist.record.folder import RunFolder

TRAINING_IMAGES_FILE = "training-images.npz"


class Labelled(NamedTuple):
    """Images and what they are."""

    images: np.ndarray  # (N, S, S, 3) uint8
    labels: list[str]  # of two lines at most, each for one of two mixed images


class TrainingImages(NamedTuple):
    """The same images twice, drawn by the run's seed."""

    plain: Labelled
    augmented: Labelled  # without normalisation


def write_training_images(folder: RunFolder, kept: TrainingImages) -> None:
    folder.write_arrays(
        TRAINING_IMAGES_FILE,
        **{f"{name}_images": some.images for name, some in kept._asdict().items()},
        **{f"{name}_labels": np.array(some.labels, dtype=np.str_) for name, some in kept._asdict().items()},
    )


def read_training_images(path: Path) -> TrainingImages | None:
    """Return those of the run folder `path`; None where it has none that can be read."""
    try:
        with np.load(path / TRAINING_IMAGES_FILE) as file:  # which refuses pickled objects
            kept = TrainingImages(
                *(Labelled(file[f"{name}_images"], file[f"{name}_labels"].tolist()) for name in TrainingImages._fields)
            )
    except (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error):
        return None
    return kept if all(map(_is_drawable, kept)) else None


def _is_drawable(some: Labelled) -> bool:
    images = some.images
    fits = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8 and len(images) == len(some.labels)
    return fits and all(isinstance(label, str) for label in some.labels)
