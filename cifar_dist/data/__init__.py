"""Data sets by name: the official CIFAR-10 and CIFAR-100, class folders, a synthetic set, or whichever of them can be had."""

from pathlib import Path

from cifar_dist.data.cache import Decoded, cached, load_cached
from cifar_dist.data.cifar import OFFICIAL, read_official
from cifar_dist.data.dataset import Dataset, Split
from cifar_dist.data.folders import list_folder, read_folder
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


def load_dataset(data: str, data_dir: Path, progress: Report = unheard) -> Dataset:
    """Load the set that `--data` names. Raises `UserError` with the way out. Safe to call from every rank at once.

    `progress` is told how many images are decoded where they have to be; by the one process of a machine that does it.
    """
    if data == "auto":
        data = choose_data(data_dir, progress)[0]
    if data in OFFICIAL:  # whose download has a bar of its own, and decoding takes a second
        return load_cached(cache_folder(data, data_dir), lambda: read_official(data, data_dir))
    if data == "synthetic":
        return load_cached(cache_folder(data, data_dir), lambda: _draw_synthetic(progress), progress)
    check_data_name(data)
    listing = list_folder(Path(data))
    folder = cached(data_dir, f"folder-{listing.key}")
    return load_cached(folder, lambda: read_folder(Path(data), listing, progress), progress)


def cache_folder(data: str, data_dir: Path) -> Path:
    """Return where the set that `--data` names is kept decoded; raises `UserError`. `auto` means CIFAR-10 here."""
    check_data_name(data)
    if data in NAMES:
        return cached(data_dir, "cifar10" if data == "auto" else data)
    return cached(data_dir, f"folder-{list_folder(Path(data)).key}")


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
            load_dataset("cifar10", data_dir, progress)
        except UserError as error:
            return "synthetic", str(error)
    return "cifar10", ""


def _draw_synthetic(progress: Report) -> Decoded:
    sizes, seeds = SYNTHETIC_SIZES, SYNTHETIC_SEEDS
    train = draw_images(sizes["train"], seeds["train"], lambda done, _: progress(done, sum(sizes.values())))
    test = draw_images(
        sizes["test"], seeds["test"], lambda done, _: progress(sizes["train"] + done, sum(sizes.values()))
    )
    return Decoded("synthetic", True, CLASSES, *train, *test)
