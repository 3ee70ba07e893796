"""Exact metrics: integer counts and float64 sums, added over batches and ranks, divided only at the very end."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.inputs.labels import Labels, count_correct, join_labels
from cifar_dist.record.lines import CountedResult, Counts, Result

LOSS_QUANTUM = 2.0**-20  # nats: float64 adds up its multiples exactly


class TrainSums:
    """Loss and correct predictions since the last log line, exact whoever holds which batch.

    What steps add waits until somebody looks, so that a step costs no host sync and next to no operation.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss_sum, self.correct = 0.0, 0.0
        self.predicts = True
        self.on_device = torch.zeros(
            2, dtype=torch.float64, device=device
        )  # what is counted since somebody looked, the loss in quanta
        self._losses: list[Tensor] = []
        self._guesses: list[tuple[Tensor, Labels]] = []

    def add(self, loss_sum: Tensor, outputs: Tensor | None, labels: Labels) -> None:
        """Add a batch's loss () and what `losses.count_correct` takes; no outputs where a model predicts nothing: nan are correct."""
        self._losses.append(loss_sum.detach())
        if outputs is None:
            self.predicts = False
        else:
            self._guesses.append((outputs.detach(), labels))

    def add_in_place(self, loss_sum: Tensor, outputs: Tensor | None, labels: Labels) -> None:
        """Add the same at once, on the device, which a captured step can do: the same sums, since they are exact."""
        self.on_device[0] += quanta(loss_sum.detach())
        if outputs is not None:
            self.on_device[1] += count_correct(outputs.detach(), labels)

    def settle(self) -> None:
        """Count on the device what waits."""
        if self._losses:
            self.on_device[0] += quanta(torch.stack(self._losses)).sum()
            self._losses = []
        if self._guesses:
            outputs, labels = zip(*self._guesses, strict=True)
            self.on_device[1] += count_correct(torch.cat(outputs), join_labels(labels))
            self._guesses = []

    @property
    def vector(self) -> Tensor:
        """The sums (2,) float64 on the device. They are the same however often somebody looked, and in any order."""
        self.settle()
        loss_quanta, correct = self.on_device.tolist()
        self.on_device.zero_()
        self.loss_sum += loss_quanta * LOSS_QUANTUM
        self.correct = self.correct + correct if self.predicts else math.nan
        return torch.tensor((self.loss_sum, self.correct), dtype=torch.float64, device=self.device)

    def set(self, vector: Tensor) -> None:
        """Start from `vector` (2,)."""
        self.loss_sum, self.correct = vector.tolist()


def quanta(losses: Tensor) -> Tensor:
    """Return losses as whole numbers of LOSS_QUANTUM, float64."""
    return losses.double().div_(LOSS_QUANTUM).round_()


@dataclass(frozen=True)
class EvalResult:
    """What one pass over an evaluation set counted. Everything else derives from it."""

    confusion: Tensor  # (K, K) int64 on the CPU: row = true class, column = predicted class
    second: Tensor  # (K,) int64 on the CPU: images of each true class whose second most probable class is the true one
    loss_sum: float  # cross-entropy, nats, summed over images
    targets: Tensor | None = None  # (M,) int64 on the CPU; None in a result rebuilt from its record
    logits: Tensor | None = None  # (M, K) float32 on the CPU
    map_errors: Tensor | None = (
        None  # (M, 2) float32 on the CPU: distance to the best unit, whether its neighbourhood is torn
    )
    block_s: list[float | None] | None = None  # seconds that each rank took for a block; None of one that had none

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor) -> "EvalResult":
        """Count first and second guesses of `logits` (M, K) float against `targets` (M,) int64, all on the CPU."""
        num_classes = logits.shape[1]
        first, second = logits.argsort(dim=1, descending=True, stable=True)[:, :2].unbind(dim=1)
        confusion = torch.bincount(targets * num_classes + first, minlength=num_classes**2)
        losses: list[float] = F.cross_entropy(logits.double(), targets, reduction="none").tolist()
        return cls(
            confusion.view(num_classes, num_classes),
            torch.bincount(targets[second == targets], minlength=num_classes),
            math.fsum(losses),
            targets,
            logits,
        )

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

    def to_dict(self, classes: tuple[str, ...]) -> Result:
        """Return what is recorded of it."""
        result: Result = {
            "accuracy": self.accuracy,
            "top2_accuracy": self.top2_accuracy,
            "loss": self.loss,
            "num_images": self.num_images,
            "per_class_accuracy": dict(zip(classes, self.per_class_accuracy(), strict=True)),
        }
        if self.map_errors is not None:
            quantisation, topographic = (math.fsum(errors.tolist()) / self.num_images for errors in self.map_errors.T)
            result |= {"quantisation_error": quantisation, "topographic_error": topographic}
        return result

    def counted(self, classes: tuple[str, ...]) -> CountedResult:
        """Return the same with the integers that everything derives from."""
        counts: Counts = {"confusion_matrix": self.confusion.tolist(), "second_guess_correct": self.second.tolist()}
        return {**self.to_dict(classes), **counts}

    @classmethod
    def from_record(cls, record: CountedResult) -> "EvalResult":
        """Rebuild a result from what `counted` gave."""
        confusion, second = torch.tensor(record["confusion_matrix"]), torch.tensor(record["second_guess_correct"])
        return cls(confusion, second, record["loss"] * record["num_images"])
