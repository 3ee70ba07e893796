"""Exact metrics: integer counts and float64 sums, added over batches and ranks, divided only at the very end."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class TrainSums:
    """Loss and correct predictions since the last log line: a float64 vector (2,) on the device."""

    def __init__(self, device: torch.device) -> None:
        self.vector = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, correct: Tensor) -> None:
        """Both () and over the batch. No host sync."""
        self.vector += torch.stack((loss_sum, correct))


@dataclass(frozen=True)
class EvalResult:
    """What one pass over an evaluation set counted. Everything else derives from it."""

    confusion: Tensor  # (K, K) int64 on the CPU: row = true class, column = predicted class
    second: Tensor  # (K,) int64 on the CPU: images of each true class whose second most probable class is the true one
    loss_sum: float  # cross-entropy, nats, summed over images

    @property
    def num_images(self) -> int:
        return int(self.confusion.sum())

    @property
    def num_correct(self) -> int:
        return int(self.confusion.diagonal().sum())

    @property
    def accuracy(self) -> float:
        """Top-1, in [0, 1]."""
        return self.num_correct / self.num_images

    @property
    def top2_accuracy(self) -> float:
        """Share of images whose most or second most probable class is right, in [0, 1] (shown by Zhang)."""
        return (self.num_correct + int(self.second.sum())) / self.num_images

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per image."""
        return self.loss_sum / self.num_images

    def per_class_accuracy(self) -> list[float | None]:
        """Share of each true class that was recognised; None for a class without images."""
        totals, correct = self.confusion.sum(dim=1).tolist(), self.confusion.diagonal().tolist()
        return [c / n if n else None for c, n in zip(correct, totals, strict=True)]

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "top2_accuracy": self.top2_accuracy,
            "loss": self.loss,
            "num_images": self.num_images,
            "per_class_accuracy": dict(zip(classes, self.per_class_accuracy(), strict=True)),
        }

    def counts(self) -> dict[str, Any]:
        """Return the integers that everything derives from, JSON-ready."""
        return {"confusion_matrix": self.confusion.tolist(), "second_guess_correct": self.second.tolist()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "EvalResult":
        """Rebuild a result from its `to_dict` and `counts`."""
        confusion, second = (torch.tensor(record[name]) for name in ("confusion_matrix", "second_guess_correct"))
        return cls(confusion, second, record["loss"] * record["num_images"])


class EvalSums:
    """Counts of first and second guesses, int64, and one float64 loss sum a block, on the device. No host sync until `result`.

    A block's sum comes from one rank and zeros from the others, so adding over ranks doesn't round, and the total, taken
    in order of blocks, is the same number on any world size.
    """

    def __init__(self, num_classes: int, num_blocks: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self.second = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.loss_sums = torch.zeros(num_blocks, dtype=torch.float64, device=device)

    def add(self, block: int, logits: Tensor, targets: Tensor) -> None:
        """`logits` (B, K) float, `targets` (B,) int64."""
        first = logits.argmax(dim=1)
        second = logits.scatter(1, first.unsqueeze(1), -torch.inf).argmax(dim=1)
        cells = targets * self.num_classes + first
        self.confusion.scatter_add_(0, cells, torch.ones_like(cells))  # bincount would wait for the device
        self.second.scatter_add_(0, targets, (second == targets).long())
        self.loss_sums[block] = F.cross_entropy(logits.double(), targets, reduction="sum")

    def result(self, sum_across_ranks: Callable[[Tensor], Tensor]) -> EvalResult:
        confusion = sum_across_ranks(self.confusion).view(self.num_classes, self.num_classes)
        loss_sums: list[float] = sum_across_ranks(self.loss_sums).tolist()
        return EvalResult(confusion.cpu(), sum_across_ranks(self.second).cpu(), math.fsum(loss_sums))
