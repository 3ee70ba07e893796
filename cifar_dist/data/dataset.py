"""What a data set is once decoded: uint8 images, targets, classes, a fingerprint; and how it is cut into splits."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Some images of a set, on one device: images (M, 3, S, S) uint8, targets (M,) int64, index (N,) int64 into both."""

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
        """Return (images (B, 3, S, S) uint8, targets (B,) int64) at `places` (B,) int64 of this split."""
        index = self.index[places]
        return self.images.index_select(0, index), self.targets.index_select(0, index)

    def pixels(self) -> np.ndarray:
        """Return all images of this split, in its order, as people look at them: (N, S, S, 3) uint8, on the CPU."""
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
