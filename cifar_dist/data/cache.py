"""Decoded data sets on disk: built once per node under a lock, written whole or not at all, memory-mapped by every rank."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cifar_dist.data.dataset import Dataset, Split, channel_statistics, fingerprint
from cifar_dist.errors import UserError
from cifar_dist.files import NO_FILE, is_sealed, locked, read_json, sealed, write_synced
from cifar_dist.progress import Report, unheard
from cifar_dist.text import reason

ARRAYS = ("train_images", "train_targets", "test_images", "test_targets")
CACHE, ABOUT = "cache", "about.json"
VERSION = 2  # part of every key; raise it when decoding or the format changes


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
        about: dict[str, Any] = read_json(folder / ABOUT)
        return str(about["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def inspect_cache(folder: Path) -> CacheState:
    """Read all of a cache from disk and compute its fingerprint anew; raises `OSError` where that may be possible in a moment."""
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        if not is_sealed(about):
            raise ValueError(f"{ABOUT} is not what was written")
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS]
        return CacheState(str(about["fingerprint"]), fingerprint(tuple(about["classes"]), arrays), "")
    except (*NO_FILE, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        return CacheState(recorded_fingerprint(folder), "", reason(error))


class Decoded(NamedTuple):
    """What a source decodes to: images (N, 3, S, S) uint8, targets (N,) int64."""

    name: str
    synthetic: bool
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_targets: np.ndarray
    test_images: np.ndarray
    test_targets: np.ndarray


def cached(data_dir: Path, key: str) -> Path:
    """Return the folder of the cached set `key`, which may not be there yet."""
    return data_dir / CACHE / f"{key}-v{VERSION}"


def copy_caches(source: Path, target: Path) -> None:
    """Copy the cached sets of one data folder to another that lacks them, each wholly or not at all."""
    for folder in sorted((source / CACHE).glob(f"*-v{VERSION}")):
        copy, partial = target / CACHE / folder.name, target / CACHE / f"{folder.name}.partial-{os.getpid()}"
        if not copy.exists():
            shutil.copytree(folder, partial)
            with suppress(OSError):  # another process of this node was faster
                os.replace(partial, copy)
            shutil.rmtree(partial, ignore_errors=True)


def load_cached(folder: Path, decode: Callable[[], Decoded], progress: Report = unheard) -> Dataset:
    """Return the set cached in `folder`, decoding it first where it is missing; one process decodes, the others wait.

    `progress` is told that it takes a while, before that; what decodes may tell more.

    Raises `UserError` unless it holds the bytes that were written: one flipped bit would be other numbers, and no word of it.
    """
    if not folder.exists():
        progress(0, 0)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.exists():
                _write(folder, decode())
    try:
        state = inspect_cache(folder)
    except OSError as error:
        raise UserError(f"the decoded data in {folder} can't be read: {error.strerror} ({error.filename})") from None
    if not state.whole:
        raise UserError(
            f"the decoded data in {folder} are damaged: {state.damage}; delete that folder, and they are decoded again"
        )
    return _read(folder)


def _write(folder: Path, decoded: Decoded) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    arrays = [getattr(decoded, name) for name in ARRAYS]
    mean, std = channel_statistics(decoded.train_images)
    about = {"name": decoded.name, "synthetic": decoded.synthetic, "classes": decoded.classes, "mean": mean, "std": std}
    about["fingerprint"] = fingerprint(decoded.classes, arrays)
    for name, array in zip(ARRAYS, arrays, strict=True):
        with (partial / f"{name}.npy").open("wb") as file:
            np.save(file, array)
            os.fsync(file.fileno())
    write_synced(partial / ABOUT, json.dumps(sealed(about), indent=1).encode())
    os.replace(partial, folder)


def _read(folder: Path) -> Dataset:
    about: dict[str, Any] = read_json(folder / ABOUT)
    # Copy-on-write mapping: never written to, but torch warns about read-only arrays.
    arrays = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ARRAYS}
    train, test = (
        Split(arrays[f"{part}_images"], arrays[f"{part}_targets"], torch.arange(len(arrays[f"{part}_targets"])))
        for part in ("train", "test")
    )
    return Dataset(
        name=about["name"],
        classes=tuple(about["classes"]),
        train=train,
        test=test,
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        fingerprint=about["fingerprint"],
        synthetic=about["synthetic"],
    )
