"""What a comparison keeps of a run: its results and a short curve in place of thousands of lines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

from cifar_dist.record import curves
from cifar_dist.record.lines import CountedResult, Line, Options, Result
from cifar_dist.record.metric import SPLITS
from cifar_dist.record.reader import RunRecord
from cifar_dist.text import reason

COUNTS = ("confusion_matrix", "second_guess_correct")  # large, and not compared


class ComparedResult(Result, total=False):
    """A result without its counts."""

    images_per_class: list[int]


class CurvePoint(NamedTuple):
    """A validation, or an epoch's end where nothing is held out, and training since the point before."""

    epoch: float
    seconds: float | None  # of training, validation included
    samples: float | None  # images trained on
    train_loss: float | None
    val_loss: float | None
    val_accuracy: float | None


@dataclass(frozen=True)
class ComparedRun:
    """One run. Its record has no lines any more."""

    record: RunRecord
    results: dict[str, ComparedResult]  # by split; val is that of the weights that were kept
    curve: list[CurvePoint]
    step: int
    total_steps: int | None
    seconds: float | None
    samples: float | None  # images trained on
    macs_per_sample: int | None  # multiply-accumulates to train on one image; None of a run that doesn't say

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def config(self) -> Options:
        return self.record.config

    @property
    def synthetic(self) -> bool:
        return bool(self.record.dataset.get("synthetic"))

    @property
    def macs(self) -> float | None:
        """Multiply-accumulates of the whole training, without validations."""
        return None if self.macs_per_sample is None or self.samples is None else self.macs_per_sample * self.samples

    @property
    def share_done(self) -> float | None:
        return self.step / self.total_steps if self.total_steps else None

    @classmethod
    def of(cls, record: RunRecord) -> "ComparedRun":
        """Return what is compared of a run. Lines that can't be what they should make it a broken run without results."""
        try:
            return cls._of(record)
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            problem = f"metrics.jsonl or summary.json holds what a run never writes: {reason(error)}"
            nothing = replace(record, config={}, dataset={}, starts=[], lines=[])
            return cls(
                replace(nothing, status="broken", problem=record.problem or problem), {}, [], 0, None, None, None, None
            )

    @classmethod
    def _of(cls, record: RunRecord) -> "ComparedRun":
        lines, summary = record.lines, record.summary
        return cls(
            record=replace(record, lines=[]),
            results={split: result for split in SPLITS if (result := _result(record, split))},
            curve=_curve(lines),
            step=max((line["step"] for line in lines), default=0),
            total_steps=summary.get("total_steps"),
            seconds=summary.get("seconds") or (lines[-1]["seconds"] if lines else None),
            samples=max((line["samples"] or 0 for line in lines), default=None),
            macs_per_sample=summary.get("macs_per_sample"),
        )


def _result(record: RunRecord, split: Literal["test", "val"]) -> ComparedResult | None:
    """Return the result on a split: of the weights the run kept, as far as it came."""
    if summarised := record.summary.get(split):
        if list(summarised["per_class_accuracy"]) != list(record.dataset["classes"]):
            raise ValueError(f"the classes of {split} are not those of the data")
        if not isinstance(summarised["accuracy"], float | int):
            raise TypeError(f"accuracy {summarised['accuracy']!r} is no number")
        result = cast(ComparedResult, {name: value for name, value in summarised.items() if name not in COUNTS})
        if counts := cast(CountedResult, summarised).get("confusion_matrix"):
            result["images_per_class"] = [sum(row) for row in counts]
        return result
    lines = [line for line in record.lines if line["kind"] == split and line["accuracy"] is not None]
    # The first of equal ones, as training keeps it.
    return cast(ComparedResult | None, max(lines, key=lambda line: line["accuracy"] or 0.0, default=None))


def _curve(lines: Sequence[Line]) -> list[CurvePoint]:
    at = {line["step"]: (line["seconds"], line["samples"]) for line in lines if line["kind"] != "test"}
    usable = [line for line in lines if line["loss"] is not None]
    return [CurvePoint(p.epoch, *at[p.step], p.train_loss, p.val_loss, p.val_accuracy) for p in curves.points(usable)]
