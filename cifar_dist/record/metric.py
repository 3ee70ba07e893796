"""What runs are compared and ranked by: one number of their results."""

from typing import Literal, NamedTuple

from cifar_dist.record.lines import Result
from cifar_dist.text import NONE, percent

Key = Literal["accuracy", "top2_accuracy", "loss"]


class Metric(NamedTuple):
    """A number of the results on a split."""

    split: Literal["test", "val"]
    key: Key

    @property
    def name(self) -> str:
        return f"{self.split}/{self.key}"

    @property
    def is_share(self) -> bool:
        return self.key != "loss"

    def of(self, result: Result) -> float | None:
        """Return the number; None where an older run didn't measure it."""
        value: float | None = result.get(self.key)
        return value

    def text(self, value: float | None) -> str:
        """Return a value as people read it: 61.12 % or 1.1302."""
        return percent(value) if self.is_share else NONE if value is None else f"{value:.4f}"


SPLITS: tuple[Literal["test", "val"], ...] = ("test", "val")
KEYS: tuple[Key, ...] = ("accuracy", "top2_accuracy", "loss")
METRICS = {metric.name: metric for split in SPLITS for key in KEYS if (metric := Metric(split, key))}
