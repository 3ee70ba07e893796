"""From pixels to what a model sees, and back."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """Pixels in [0, 255] -> float32 (x / 255 - mean) / std, elementwise, so equal for every cut of a batch."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        self.scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, -1, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, -1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul(self.scale).add_(self.shift)  # not fused: a fused tail would round differently

    def undo(self, images: Tensor) -> Tensor:
        """Return the pixels of normalised images, in [0, 1], for people to look at."""
        return ((images - self.shift) / self.scale / 255).clamp(0, 1)


def normalize_as(kind: str, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalize:
    """Return what `--normalize` means for images of that mean and std, in [0, 1] per channel."""
    channels = len(mean)
    fixed = {"half": ((0.5,) * channels, (0.5,) * channels), "none": ((0.0,) * channels, (1.0,) * channels)}
    return Normalize(*fixed.get(kind, (mean, std)), device)
