"""What a comparison keeps of a run: its results and a short curve in place of thousands of lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cifar_dist.errors import UserError
from cifar_dist.record import curves
from cifar_dist.record.reader import RunRecord

FORWARD_AND_BACKWARD = 3  # a backward pass multiplies twice as often as a forward pass

COUNTS = ("confusion_matrix", "second_guess_correct")  # large, and not compared


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
    results: dict[str, dict[str, Any]]  # by split; val is that of the weights that were kept
    curve: list[CurvePoint]
    step: int
    total_steps: int | None
    seconds: float | None
    samples: float | None  # images trained on
    macs_per_sample: int | None  # multiply-accumulates to train on one image; None for a model that isn't ours

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def config(self) -> dict[str, Any]:
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


def condense(record: RunRecord) -> ComparedRun:
    """Return what is compared of a run. Lines that can't be what they should make it a broken run without results."""
    try:
        return _condense(record)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        problem = f"metrics.jsonl or summary.json holds what a run never writes: {type(error).__name__}: {error}"
        record = replace(
            record, status="broken", problem=record.problem or problem, config={}, dataset={}, starts=[], lines=[]
        )
        return ComparedRun(record, {}, [], 0, None, None, None, None)


def _condense(record: RunRecord) -> ComparedRun:
    lines, summary = record.lines, record.summary
    last = lines[-1] if lines else {}
    samples = max((line["samples"] or 0 for line in lines), default=None)
    return ComparedRun(
        record=replace(record, lines=[]),
        results={split: result for split in ("val", "test") if (result := _result(record, split))},
        curve=_curve(lines),
        step=max((line["step"] for line in lines), default=0),
        total_steps=summary.get("total_steps") or planned_steps(record.config, record.dataset),
        seconds=summary.get("seconds") or last.get("seconds"),
        samples=samples,
        macs_per_sample=training_macs(record.config, len(record.dataset.get("classes", ()))),
    )


def _result(record: RunRecord, split: str) -> dict[str, Any] | None:
    """Return the result on a split, as `EvalResult.to_dict` has it: of the weights the run kept, as far as it came."""
    if summarised := record.summary.get(split):
        if list(summarised["per_class_accuracy"]) != list(record.dataset["classes"]):
            raise ValueError(f"the classes of {split} are not those of the data")
        result = {name: value for name, value in summarised.items() if name not in COUNTS}
        if not isinstance(result["accuracy"], float | int):
            raise TypeError(f"accuracy {result['accuracy']!r} is no number")
        if "confusion_matrix" in summarised:
            result["images_per_class"] = [sum(row) for row in summarised["confusion_matrix"]]
        return result
    lines = [line for line in record.lines if line["kind"] == split and line["accuracy"] is not None]
    return max(lines, key=lambda line: line["accuracy"], default=None)  # the first of equal ones, as training keeps it


def _curve(lines: Sequence[Mapping[str, Any]]) -> list[CurvePoint]:
    at = {line["step"]: (line["seconds"], line["samples"]) for line in lines if line["kind"] != "test"}
    usable = [line for line in lines if line["loss"] is not None]
    return [CurvePoint(p.epoch, *at[p.step], p.train_loss, p.val_loss, p.val_accuracy) for p in curves.points(usable)]


def planned_steps(config: Mapping[str, Any], dataset: Mapping[str, Any]) -> int | None:
    """Return how many steps the run is to take; None where its record doesn't say."""
    if config.get("steps"):
        return int(config["steps"])
    epochs, size, images = config.get("epochs"), config.get("batch_size"), dataset.get("train")
    if not (epochs and size and images):
        return None
    return int(epochs) * (images // size if config.get("drop_last") else -(-images // size))


def training_macs(config: Mapping[str, Any], num_classes: int) -> int | None:
    """Return the multiply-accumulates to train on one image, the mean over the run; None where the model isn't known."""
    from cifar_dist.models import forward_macs  # imports torch, which a comparison can start without

    try:
        options = tuple(config.get("model_options", ()))
        macs = forward_macs(config.get("model", ""), options, num_classes)
        if size := config.get("early_size"):
            epochs = config.get("epochs") or 2
            less = macs - forward_macs(config.get("model", ""), options, num_classes, size)
            macs -= round(less * (epochs // 2) / epochs)
        return FORWARD_AND_BACKWARD * macs
    except (UserError, RuntimeError, TypeError):
        return None
