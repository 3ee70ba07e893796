"""`eval.py`: evaluate a run or a weights file, print a table, write JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cifar_dist.config import TrainConfig, option
from cifar_dist.console import Console
from cifar_dist.data import load_dataset, make_splits
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED, guarded
from cifar_dist.files import write_json
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.options import OneLineParser, add_flags, check_output, with_launchers
from cifar_dist.record.reader import read_run
from cifar_dist.runtime import collectives
from cifar_dist.runtime.accelerator import accelerate, choose_precision, join
from cifar_dist.runtime.watch import Watch
from cifar_dist.text import percent
from cifar_dist.training.evaluation import evaluate
from cifar_dist.training.weights import load_weights, weights_path

SHARED = (
    "data_dir",
    "limit_eval",
    "mixed_precision",
    "tta",
    "device",
    "threads",
)  # options that mean what they mean to train.py


@dataclass(frozen=True)
class EvalOptions:
    """The options of `eval.py` that `train.py` doesn't have, or has with another default."""

    checkpoint: str = option(
        "", "a run folder, one of its checkpoints/step_*, or a weights file (default: none, required)"
    )
    split: Literal["test", "val"] = option("test", "which images")
    data: str = option("", "cifar10, synthetic, auto or a folder (default: what the weights were trained on)")
    output: str = option("", "where to write the JSON (default: beside the weights, eval-SPLIT.json)")


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    return guarded(lambda: _evaluate(argv))


def read_options(argv: Sequence[str]) -> tuple[EvalOptions, dict[str, Any]]:
    """Return our own options and the given ones that are shared with `train.py`; raises `UserError`."""
    parser = OneLineParser(
        prog="eval.py",
        description="Evaluate a run or a weights file exactly, on any number of processes.",
    )
    add_flags(parser, EvalOptions)
    add_flags(parser, TrainConfig, SHARED)
    given = with_launchers(parser.parse(argv))
    given.pop("compile", None)  # one pass over the images is over before a compiler is
    options = EvalOptions(**{name: value for name, value in given.items() if name not in SHARED})
    if not options.checkpoint:
        raise UserError("--checkpoint is required: a run folder, one of its checkpoints/step_*, or a weights file")
    check_output(options.output)
    return options, {name: given[name] for name in SHARED if name in given}


def _evaluate(argv: Sequence[str]) -> int:
    options, shared = read_options(argv)
    # Epochs are not used; a TrainConfig carries the shared options with their meaning and their checks.
    join(TrainConfig(epochs=1, **shared))
    path = collectives.on_all(lambda: weights_path(options.checkpoint))
    model, about = collectives.on_all(lambda: load_weights(path))
    config = choose_precision(TrainConfig(epochs=1, **{"mixed_precision": about["mixed_precision"], **shared}))
    accelerator = accelerate(config)
    console = Console(speaks=accelerator.is_main_process)
    name = options.data or about["data"]
    dataset = collectives.on_all(lambda: load_dataset(name, Path(config.data_dir)))
    collectives.check_equal(dataset.fingerprint, "the data")
    if dataset.classes != tuple(about["classes"]):
        raise UserError(
            f"{path} knows the classes {' '.join(about['classes'])}, {dataset.name} has {' '.join(dataset.classes)}; use other --data"
        )
    splits = make_splits(dataset, replace(config, **about["split"]), accelerator.device)
    split = splits.test if options.split == "test" else splits.val
    if split is None:
        raise UserError(f"{path} was trained on all training images, so there is no validation split; use --split test")
    console.synthetic_note(dataset.synthetic)
    limit = collectives.on_main(lambda: read_run(path.parent).config.get("limit_eval"))
    if limit and "limit_eval" not in shared:
        console.warn(
            f"the run itself counted {limit:,} images; here all {len(split):,} count, or as many as --limit-eval says"
        )
    if dataset.fingerprint != about["fingerprint"]:
        console.warn(f"{dataset.name} is not the data these weights were trained on ({about['dataset']})")

    normalize = Normalize(about["mean"], about["std"], accelerator.device)
    with Watch():
        result = evaluate(model.to(accelerator.device), split, normalize, len(dataset.classes), accelerator, config.tta)
    console.result_table(
        dataset.classes, result.confusion, result.second, f"{about['model']}, {options.split} images of {dataset.name}"
    )
    shares = f"accuracy {percent(result.accuracy)}, top-2 {percent(result.top2_accuracy)}"
    console.say(f"{shares}, loss {result.loss:.4f} on {result.num_images:,} images")
    record: dict[str, Any] = {"weights": str(path), "about": about, "split": options.split, "dataset": dataset.name}
    record |= {"synthetic": dataset.synthetic, "fingerprint": dataset.fingerprint}
    record |= result.counted(dataset.classes)
    output = Path(options.output) if options.output else path.parent / f"eval-{options.split}.json"
    collectives.on_main(lambda: write_json(output, record))
    console.say(f"written to {output}")
    return FINISHED
