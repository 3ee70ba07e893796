"""Data sets by name: the official CIFAR-10, class folders, a synthetic set, or whichever of them can be had."""

from pathlib import Path

from cifar_dist.data.cache import Decoded, load_cached
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
    if data == "synthetic":
        return load_cached(data_dir, "synthetic", _draw_synthetic)
    if data == "cifar10":
        return load_cached(data_dir, "cifar10", lambda: read_cifar10(data_dir))
    if data == "auto":
        return load_dataset(choose_data(data_dir)[0], data_dir)
    check_data_name(data)
    root = Path(data)
    listing = list_folder(root)
    return load_cached(data_dir, f"folder-{listing.key}", lambda: read_folder(root, listing))


def check_data_name(data: str) -> None:
    """Raise `UserError` unless `data` is one of NAMES or a folder."""
    if data in NAMES or (data and Path(data).is_dir()):
        return
    if "/" in data:
        raise UserError(f"--data {data} is not a folder; give one that is, or one of: {', '.join(NAMES)}")
    raise unknown("data set", data, NAMES)


def choose_data(data_dir: Path) -> tuple[str, str]:
    """Return what `auto` takes, cifar10 or synthetic, and why it isn't cifar10. Downloads; for one rank only."""
    try:
        load_dataset("cifar10", data_dir)
    except UserError as error:
        return "synthetic", str(error)
    return "cifar10", ""


def _draw_synthetic() -> Decoded:
    train, test = (draw_images(SYNTHETIC_SIZES[part], SYNTHETIC_SEEDS[part]) for part in ("train", "test"))
    return Decoded("synthetic", True, CLASSES, *train, *test)
