"""What a data set is once decoded: uint8 images, targets, classes, a fingerprint; and how it is cut into splits."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.sampling import fold_numbers, stratified

# What decides which image is in which split.
SPLIT_OPTIONS = ("val_fraction", "test_fraction", "folds", "fold", "split_seed")


@dataclass(frozen=True)
class Split:
    """Some images of a set, on one device: images (M, 3, 32, 32) uint8, targets (M,) int64, index (N,) int64 into both."""

    images: Tensor
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.targets.to(device), self.index.to(device))

    def labels(self) -> Tensor:
        """Return the targets (N,) int64 of this split alone, on the CPU."""
        return self.targets[self.index].cpu()

    def subset(self, places: Tensor) -> "Split":
        return replace(self, index=self.index[places.to(self.index.device)])

    def gather(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return (images (B, 3, 32, 32) uint8, targets (B,) int64) at `places` (B,) int64 of this split."""
        index = self.index[places]
        return self.images.index_select(0, index), self.targets.index_select(0, index)

    def pixels(self) -> np.ndarray:
        """Return all images of this split, in its order, as people look at them: (N, 32, 32, 3) uint8, on the CPU."""
        return self.images[self.index].permute(0, 2, 3, 1).contiguous().cpu().numpy()


@dataclass(frozen=True)
class Dataset:
    """A decoded data set. `mean` and `std` are those of the training images in [0, 1], per channel."""

    name: str  # for people: "CIFAR-10", "synthetic", or a folder
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str  # SHA-256 of classes, pixels and targets
    synthetic: bool = False


@dataclass(frozen=True)
class Splits:
    """What a run uses of a data set. `val` is None when it trains on all training images."""

    train: Split
    val: Split | None
    test: Split


def make_splits(dataset: Dataset, config: TrainConfig, device: torch.device) -> Splits:
    """Cut the images as SPLIT_OPTIONS say, apply the limits, and move everything to `device`. Raises `UserError`."""
    train, test = dataset.train.to(device), dataset.test.to(device)
    seed = config.split_seed
    if config.test_fraction is not None:
        pool = _joined(train, test)
        train, test = _hold_out(pool, stratified(pool.labels(), round(len(pool) * config.test_fraction), seed))
        _check_size(f"--test-fraction {config.test_fraction}", "use more, or leave it out", pool, test, dataset)
    targets = train.labels()
    if config.folds is not None:
        held_out = fold_numbers(targets, config.folds, seed).eq(config.fold or 0).nonzero().flatten()
    else:
        held_out = stratified(targets, round(len(targets) * config.val_fraction), seed)
    kept, val = _hold_out(train, held_out)
    if config.folds is not None:
        _check_size(f"a fold of --folds {config.folds}", "use fewer", train, val, dataset)
    elif config.val_fraction:
        _check_size(f"--val-fraction {config.val_fraction}", "use more, or 0", train, val, dataset)
    return Splits(
        train=_limit(kept, config.limit_train, seed),
        val=_limit(val, config.limit_eval, seed) if len(val) else None,
        test=_limit(test, config.limit_eval, seed),
    )


def _joined(a: Split, b: Split) -> Split:
    images, targets = torch.cat((a.images, b.images)), torch.cat((a.targets, b.targets))
    return Split(images, targets, torch.cat((a.index, b.index + len(a.images))))


def _hold_out(split: Split, places: Tensor) -> tuple[Split, Split]:
    """Return (the rest, the images at `places`)."""
    chosen = torch.zeros(len(split), dtype=torch.bool)
    chosen[places] = True
    return split.subset((~chosen).nonzero().flatten()), split.subset(chosen.nonzero().flatten())


def _check_size(what: str, way_out: str, source: Split, part: Split, dataset: Dataset) -> None:
    if len(part) < len(dataset.classes):
        raise UserError(
            f"{what} of {len(source)} images is {len(part)}, fewer than the {len(dataset.classes)} classes; {way_out}"
        )


def _limit(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    return split.subset(stratified(split.labels(), limit, seed))


def fingerprint(classes: tuple[str, ...], arrays: list[np.ndarray]) -> str:
    """Return the SHA-256 of the class names and the arrays' shapes and bytes, as hex."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the exact per-channel mean and std of images (N, C, H, W) uint8 scaled to [0, 1]."""
    mean, std = [], []
    values = np.arange(256) / 255
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].reshape(-1), minlength=256) / images[:, channel].size
        m = float(share @ values)
        mean.append(m)
        std.append(float(share @ (values - m) ** 2) ** 0.5)
    return tuple(mean), tuple(std)
