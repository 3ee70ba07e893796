"""Data sets by name: the official CIFAR-10, class folders, a synthetic set, or whichever of them can be had."""

from pathlib import Path

from cifar_dist.data.cache import Decoded, cached, load_cached
from cifar_dist.data.cifar10 import read_cifar10
from cifar_dist.data.dataset import Dataset, Split
from cifar_dist.data.folders import list_folder, read_folder
from cifar_dist.data.splits import SPLIT_OPTIONS, Splits, make_splits
from cifar_dist.data.synthetic import CLASSES, draw_images
from cifar_dist.errors import UserError, unknown

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

NAMES = ("cifar10", "auto", "synthetic")
SYNTHETIC_SEEDS = {"train": 0, "test": 1}
SYNTHETIC_SIZES = {"train": 50_000, "test": 10_000}  # CIFAR-10's


def load_dataset(data: str, data_dir: Path) -> Dataset:
    """Load the set that `--data` names. Raises `UserError` with the way out. Safe to call from every rank at once."""
    if data == "auto":
        data = choose_data(data_dir)[0]
    decoders = {"synthetic": _draw_synthetic, "cifar10": lambda: read_cifar10(data_dir)}
    if data in decoders:
        return load_cached(cache_folder(data, data_dir), decoders[data])
    check_data_name(data)
    listing = list_folder(Path(data))
    return load_cached(cached(data_dir, f"folder-{listing.key}"), lambda: read_folder(Path(data), listing))


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


def choose_data(data_dir: Path) -> tuple[str, str]:
    """Return what `auto` takes, cifar10 or synthetic, and why it isn't cifar10. Downloads; for one rank only."""
    if not cache_folder(
        "cifar10", data_dir
    ).exists():  # one that is there and damaged is no reason to train on another set
        try:
            load_dataset("cifar10", data_dir)
        except UserError as error:
            return "synthetic", str(error)
    return "cifar10", ""


def _draw_synthetic() -> Decoded:
    train, test = (draw_images(SYNTHETIC_SIZES[part], SYNTHETIC_SEEDS[part]) for part in ("train", "test"))
    return Decoded("synthetic", True, CLASSES, *train, *test)
