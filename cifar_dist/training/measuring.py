"""One set of weights, measured on a split as `eval.py` does it: counts, scores, and a temperature from the validation split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from cifar_dist.config import SIDE, TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Dataset, Split, load_dataset, make_splits
from cifar_dist.errors import UserError
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.models import check_image_size
from cifar_dist.record.reader import read_run
from cifar_dist.report.score_tables import calibration_line, class_table, top_line
from cifar_dist.runtime import collectives
from cifar_dist.scores.summary import Logits, score
from cifar_dist.text import percent
from cifar_dist.training.evaluation import evaluate
from cifar_dist.training.metrics import EvalResult
from cifar_dist.training.robustness import measure_corruptions


class Weights(NamedTuple):
    """What is evaluated."""

    name: str  # as --checkpoint has it
    path: Path  # the file; of a mean the first
    averaged: list[str] | None  # the files that a mean is of
    model: nn.Module
    about: dict[str, Any]  # what the file says of itself


class Images(NamedTuple):
    """What weights are evaluated on."""

    dataset: Dataset
    split_name: str  # test or val
    split: Split
    validation: Split | None  # where a temperature is fitted: not on the split itself


def measure(
    weights: Weights,
    images: Images,
    corruptions: Sequence[str],
    config: TrainConfig,
    accelerator: Accelerator,
    console: Console,
) -> dict[str, Any]:
    """Evaluate one set of weights, print what was found, and return its record. Collective.

    `corruptions`: as of `--corruptions`, empty for none.
    """
    about, (dataset, split_name, split, held_out) = weights.about, images
    note = "" if not weights.averaged else averaging_note(weights.model)
    if note:
        console.say(f"{weights.name}: {note}")

    normalize = Normalize(about["mean"], about["std"], accelerator.device)
    model = weights.model.to(accelerator.device)

    def look_at(some: Split) -> EvalResult:
        with console.bar(split_name if some is split else "val", "images") as report:
            return evaluate(model, some, normalize, len(dataset.classes), accelerator, config.tta, report)

    result = look_at(split)
    validation = logits_of(look_at(held_out)) if held_out else None
    record: dict[str, Any] = {
        "name": weights.name,
        "weights": str(weights.path),
        "averaged": weights.averaged,
        "note": note,
    }
    record |= {"about": about, "split": split_name, "dataset": dataset.name, "synthetic": dataset.synthetic}
    record |= {"fingerprint": dataset.fingerprint, "tta": config.tta, "limit_eval": config.limit_eval}
    record |= result.counted(dataset.classes)
    record |= score(result.confusion.numpy(), logits_of(result), validation, dataset.classes)
    title = f"{about['model']}, {split_name} images of {dataset.name}"
    console.rich.print(class_table(record, title))
    console.say(f"{top_line(record)} on {result.num_images:,} images")
    console.say(calibration_line(record))
    if "quantisation_error" in record:
        errors = record["quantisation_error"], percent(record["topographic_error"])
        console.say(f"quantisation error {errors[0]:.3f}, topographic error {errors[1]}")
    if validation is None:
        console.say(no_temperature(split_name))
    record["corruptions"] = None
    if corruptions:
        where = (config.limit_eval, accelerator.device)
        record["corruptions"] = measure_corruptions(
            corruptions, split, dataset.classes, *where, look_at, result.accuracy, console
        )
    model.to("cpu")  # a GPU needn't hold all of them
    return record


def choose(
    weights: Weights, split_name: str, data: str, config: TrainConfig, device: torch.device, console: Console
) -> Images:
    """Return the images that weights are to be evaluated on, and say what is unusual; raises `UserError`. Collective.

    `split_name`: test or val; `data`: as of `load_dataset`, empty for what the weights were trained on.
    """
    path, about = weights.path, weights.about
    size = config.image_size or about.get("image_size")
    if size and size != SIDE:
        way_out = "use that of the run, or leave it out"
        check_image_size(about["model"], about["model_options"], size, "--image-size", way_out)
    dataset = collectives.on_all(lambda: load_dataset(data or about["data"], Path(config.data_dir), size))
    collectives.check_equal(dataset.fingerprint, "the data")
    if dataset.classes != tuple(about["classes"]):
        raise UserError(
            f"{path} knows the classes {' '.join(about['classes'])}, {dataset.name} has {' '.join(dataset.classes)}; use other --data"
        )
    splits = make_splits(dataset, replace(config, **about["split"]), device)
    split = splits.test if split_name == "test" else splits.val
    if split is None:
        raise UserError(f"{path} was trained on all training images, so there is no validation split; use --split test")
    console.synthetic_note(dataset.synthetic)
    limit = collectives.on_main(lambda: read_run(path.parent).config.get("limit_eval"))
    if limit and config.limit_eval is None:
        console.warn(
            f"the run itself counted {limit:,} images; here all {len(split):,} count, or as many as --limit-eval says"
        )
    if dataset.fingerprint != about["fingerprint"]:
        console.warn(f"{dataset.name} is not the data these weights were trained on ({about['dataset']})")
    return Images(dataset, split_name, split, splits.val if split_name == "test" else None)


def averaging_note(model: nn.Module) -> str:
    """Return what became of batch norm's running statistics when weights were averaged."""
    if any(name.endswith("running_var") for name, _ in model.named_buffers()):
        return "batch norm's running statistics are averaged too, not measured anew on training images"
    return "there is no batch norm, so nothing but weights is averaged"


def no_temperature(split: str) -> str:
    """Return why no temperature was fitted, in one line."""
    if split == "val":
        return "no temperature: it is fitted on validation images, which therefore can't judge it; --split test does"
    return "no temperature: it is fitted on validation images, and these weights were trained on all training images"


def logits_of(result: EvalResult) -> Logits:
    assert result.logits is not None and result.targets is not None
    return result.logits.numpy(), result.targets.numpy()
