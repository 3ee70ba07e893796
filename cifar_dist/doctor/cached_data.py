"""Whether a data set's decoded cache still holds the bytes that were written."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_dist.data.cache import ARRAYS
from cifar_dist.data.dataset import fingerprint

ARCHIVE, UNPACKED = "cifar-10-python.tar.gz", "cifar-10-batches-py"  # torchvision's names in the data folder


class CacheState(NamedTuple):
    """What a cache folder holds."""

    recorded: str  # the fingerprint that was written with it
    found: str  # the fingerprint of the bytes there now; empty where they can't be read
    problem: str  # why they can't be read

    @property
    def whole(self) -> bool:
        return bool(self.found) and self.found == self.recorded

    @property
    def damage(self) -> str:
        """Say what is wrong with a cache that is not whole."""
        return self.problem or f"its bytes have fingerprint {self.found[:12]}, written was {self.recorded[:12]}"


def recorded_fingerprint(folder: Path) -> str:
    """Return the fingerprint that a cache says it has; empty where it says none."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
        return str(about["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def inspect_cache(folder: Path) -> CacheState:
    """Read all of a cache from disk and compute its fingerprint anew."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS]
        return CacheState(str(about["fingerprint"]), fingerprint(tuple(about["classes"]), arrays), "")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        return CacheState(recorded_fingerprint(folder), "", " ".join(f"{type(error).__name__}: {error}".split()))


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
