"""Data sets by name: the official CIFAR-10 and CIFAR-100, class folders, a synthetic set, or whichever of them can be had."""

from pathlib import Path

from cifar_dist.config import SIDE
from cifar_dist.data.cache import Decoded, cached, load_cached
from cifar_dist.data.cifar import OFFICIAL, read_official
from cifar_dist.data.dataset import Dataset, Split
from cifar_dist.data.folders import list_folder, read_folder
from cifar_dist.data.pictures import resized_pixels
from cifar_dist.data.splits import SPLIT_OPTIONS, Splits, make_splits
from cifar_dist.data.synthetic import CLASSES, draw_images
from cifar_dist.errors import UserError, unknown
from cifar_dist.progress import Report, unheard

__all__ = [
    "SPLIT_OPTIONS",
    "Dataset",
    "Split",
    "Splits",
    "cache_folder",
    "check_data_name",
    "choose_data",
    "load_dataset",
    "make_splits",
]

NAMES = (*OFFICIAL, "auto", "synthetic")
SYNTHETIC_SEEDS = {"train": 0, "test": 1}
SYNTHETIC_SIZES = {"train": 50_000, "test": 10_000}  # CIFAR-10's


def load_dataset(data: str, data_dir: Path, image_size: int | None = None, progress: Report = unheard) -> Dataset:
    """Load the set that `--data` names, its images as `--image-size` says. Safe to call from every rank at once.

    `progress` is told how many images are decoded where they have to be; by the one process of a machine that does it.
    Raises `UserError` with the way out.
    """
    if data == "auto":
        data = choose_data(data_dir, progress)[0]
    check_data_name(data)
    if data not in NAMES:
        listing = list_folder(Path(data))
        folder = _sized(data_dir, f"folder-{listing.key}", image_size)
        return load_cached(folder, lambda: read_folder(Path(data), listing, image_size, progress), progress)
    folder = cache_folder(data, data_dir, image_size)
    if image_size and image_size != SIDE:
        return load_cached(folder, lambda: _resized(load_dataset(data, data_dir, None, progress), image_size))
    if data == "synthetic":
        return load_cached(folder, lambda: _draw_synthetic(progress), progress)
    # An official set's download has a bar of its own, and decoding takes a second.
    return load_cached(folder, lambda: read_official(data, data_dir))


def cache_folder(data: str, data_dir: Path, image_size: int | None = None) -> Path:
    """Return where the set that `--data` names is kept decoded; raises `UserError`. `auto` means CIFAR-10 here."""
    check_data_name(data)
    if data not in NAMES:  # of a folder, only what is decoded without a size is known to have lost nothing
        return _sized(data_dir, f"folder-{list_folder(Path(data)).key}", image_size)
    return _sized(data_dir, "cifar10" if data == "auto" else data, None if image_size == SIDE else image_size)


def _sized(data_dir: Path, key: str, image_size: int | None) -> Path:
    return cached(data_dir, f"{key}-{image_size}px" if image_size else key)


def check_data_name(data: str) -> None:
    """Raise `UserError` unless `data` is one of NAMES or a folder."""
    if data in NAMES or (data and Path(data).is_dir()):
        return
    if "/" in data:
        raise UserError(f"--data {data} is not a folder; give one that is, or one of: {', '.join(NAMES)}")
    raise unknown("data set", data, NAMES)


def choose_data(data_dir: Path, progress: Report = unheard) -> tuple[str, str]:
    """Return what `auto` takes, cifar10 or synthetic, and why it isn't cifar10. Downloads; for one rank only."""
    if not cache_folder(
        "cifar10", data_dir
    ).exists():  # one that is there and damaged is no reason to train on another set
        try:
            load_dataset("cifar10", data_dir, None, progress)
        except UserError as error:
            return "synthetic", str(error)
    return "cifar10", ""


def _resized(dataset: Dataset, image_size: int) -> Decoded:
    train, test = (
        (resized_pixels(part.images.numpy(), image_size), part.targets.numpy())
        for part in (dataset.train, dataset.test)
    )
    return Decoded(dataset.name, dataset.synthetic, dataset.classes, *train, *test)


def _draw_synthetic(progress: Report) -> Decoded:
    sizes, seeds = SYNTHETIC_SIZES, SYNTHETIC_SEEDS
    train = draw_images(sizes["train"], seeds["train"], lambda done, _: progress(done, sum(sizes.values())))
    test = draw_images(
        sizes["test"], seeds["test"], lambda done, _: progress(sizes["train"] + done, sum(sizes.values()))
    )
    return Decoded("synthetic", True, CLASSES, *train, *test)
