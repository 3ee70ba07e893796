"""What a data set is once decoded: uint8 images, targets, classes, a fingerprint; and how it is cut into splits."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.sampling import stratified


@dataclass(frozen=True)
class Split:
    """Some images of a set, on one device: images (M, 3, 32, 32) uint8, targets (M,) int64, index (N,) int64 into both."""

    images: Tensor
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def subset(self, places: Tensor) -> "Split":
        return replace(self, index=self.index[places])

    def gather(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return (images (B, 3, 32, 32) uint8, targets (B,) int64) at `places` (B,) int64 of this split."""
        index = self.index[places]
        return self.images[index], self.targets[index]


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
    """Cut train into train and validation, apply the limits, and move everything to `device`. Raises `UserError`."""
    train, test = _on(dataset.train, device), _on(dataset.test, device)
    targets = dataset.train.targets
    num_val = round(len(targets) * config.val_fraction)
    if config.val_fraction and num_val < len(dataset.classes):
        raise UserError(
            f"--val-fraction {config.val_fraction} of {len(targets)} images is {num_val}, "
            f"fewer than the {len(dataset.classes)} classes; use more, or 0"
        )
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    held_out[stratified(targets, num_val, config.split_seed)] = True
    train_split = train.subset((~held_out).nonzero().flatten().to(device))
    val_split = train.subset(held_out.nonzero().flatten().to(device)) if num_val else None
    seed = config.split_seed
    return Splits(
        train=_limit(train_split, config.limit_train, seed),
        val=val_split and _limit(val_split, config.limit_eval, seed),
        test=_limit(test, config.limit_eval, seed),
    )


def _on(split: Split, device: torch.device) -> Split:
    return Split(split.images.to(device), split.targets.to(device), split.index.to(device))


def _limit(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    targets = split.targets[split.index].cpu()
    return split.subset(stratified(targets, limit, seed).to(split.index.device))


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
