"""`eval.py`: evaluate runs or weights files, print tables, write JSON, pictures and a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cifar_dist.config import TrainConfig, option
from cifar_dist.console import Console
from cifar_dist.corruptions.sets import check_corruptions
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED, guarded
from cifar_dist.files import write_json
from cifar_dist.options import OneLineParser, add_flags, check_output, with_launchers
from cifar_dist.record.folder import PAGE_FILE
from cifar_dist.report.score_tables import checkpoint_table
from cifar_dist.runtime import collectives
from cifar_dist.runtime.accelerator import accelerate, choose_precision, join
from cifar_dist.runtime.watch import Watch
from cifar_dist.text import listed
from cifar_dist.training.measuring import Weights, choose, measure
from cifar_dist.training.robustness import check_can_be_had
from cifar_dist.training.weights import average_weights, load_weights, weights_path

SHARED = (
    "data_dir",
    "image_size",
    "limit_eval",
    "mixed_precision",
    "tta",
    "device",
    "threads",
)  # options that mean what they mean to train.py


@dataclass(frozen=True)
class EvalOptions:
    """The options of `eval.py` that `train.py` doesn't have, or has with another default."""

    checkpoint: tuple[str, ...] = option(
        (),
        "a run folder, one of its checkpoints/step_*, or a weights file; or several, each evaluated (default: none, required)",
    )
    average: bool = option(False, "evaluate the mean of the weights of several checkpoints of one model in their place")
    split: Literal["test", "val"] = option("test", "which images")
    data: str = option("", "cifar10, cifar100, synthetic, auto or a folder (default: what the weights were trained on)")
    corruptions: tuple[str, ...] = option(
        (),
        "also look at corrupted images: all, or names such as fog jpeg_compression; or a folder with CIFAR-10-C or CIFAR-10.1",
    )
    output: str = option(
        "",
        "where to write the JSON, one for all checkpoints, and beside it a page (default: each beside its weights, "
        "eval-SPLIT.json; with --limit-eval 500 eval-SPLIT-500-images.json)",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command with these arguments; returns its exit status."""
    return guarded(lambda: _evaluate(argv))


def read_options(argv: Sequence[str]) -> tuple[EvalOptions, dict[str, Any]]:
    """Return our own options and the given ones that are shared with `train.py`; raises `UserError`."""
    parser = OneLineParser(
        prog="eval.py",
        description="Evaluate runs or weights files exactly, on any number of processes.",
    )
    add_flags(parser, EvalOptions)
    add_flags(parser, TrainConfig, SHARED)
    parser.add_argument("runs", nargs="*", metavar="RUN", default=[], help="the same as --checkpoint RUN")
    given = with_launchers(parser.parse(argv))
    if runs := given.pop("runs", []):
        if "checkpoint" in given:
            raise UserError(f"{' '.join(runs)} and --checkpoint both say which; leave one out")
        given["checkpoint"] = tuple(runs)
    given.pop("compile", None)  # one pass over the images is over before a compiler is
    options = EvalOptions(**{name: value for name, value in given.items() if name not in SHARED})
    if not options.checkpoint:
        raise UserError("--checkpoint is required: a run folder, one of its checkpoints/step_*, or a weights file")
    if "" in options.checkpoint:
        raise UserError("--checkpoint is empty; give a value, or leave it out")
    if options.average and len(options.checkpoint) < 2:
        raise UserError(
            "--average is of several weights, and --checkpoint names one; give two or more, or leave it out"
        )
    check_corruptions(options.corruptions, options.split)
    check_output(options.output)
    if options.output and page_of(Path(options.output)).name in (Path(options.output).name, PAGE_FILE):
        raise UserError(
            f"--output {options.output} would have a page replaced that lies beside it; use another name in .json"
        )
    return options, {name: given[name] for name in SHARED if name in given}


def _evaluate(argv: Sequence[str]) -> int:
    options, shared = read_options(argv)
    # Epochs are not used; a TrainConfig carries the shared options with their meaning and their checks.
    join(TrainConfig(epochs=1, **shared))
    several = collectives.on_all(lambda: load_all(options))
    outputs = output_paths(options, several, shared.get("limit_eval"))
    precision = shared.get("mixed_precision") or common_precision(several)
    config = choose_precision(TrainConfig(epochs=1, **{**shared, "mixed_precision": precision}))
    accelerator = accelerate(config)
    console = Console(speaks=accelerator.is_main_process)
    images = [choose(one, options.split, options.data, config, accelerator.device, console) for one in several]
    for chosen in images:
        check_can_be_had(options.corruptions, chosen.dataset.classes, chosen.split.images.shape[-1])
    with Watch():
        pairs = zip(several, images, strict=True)
        records = [measure(*pair, options.corruptions, config, accelerator, console) for pair in pairs]
    if len(records) > 1:
        console.rich.print(checkpoint_table(records, f"{len(records)} sets of weights, {options.split} images"))
    for path, members in outputs.items():
        content = [records[i] for i in members]
        collectives.on_main(partial(write_all, path, content))
        console.say(f"written to {path} and {page_of(path)}")
    return FINISHED


def load_all(options: EvalOptions) -> list[Weights]:
    """Read the weights that `--checkpoint` names, or their mean; raises `UserError`."""
    paths = {name: weights_path(name) for name in options.checkpoint}
    if len(paths) < len(options.checkpoint):
        raise UserError(f"--checkpoint {' '.join(options.checkpoint)} names one of them twice; leave one out")
    loaded = {name: load_weights(path) for name, path in paths.items()}
    if not options.average:
        return [Weights(name, paths[name], None, *loaded[name]) for name in paths]
    files = [str(path) for path in paths.values()]
    return [Weights(f"the mean of {listed(paths)}", next(iter(paths.values())), files, *average_weights(loaded))]


def common_precision(several: Sequence[Weights]) -> str:
    """Return the precision that all were trained in: a process has one for all; raises `UserError` where they differ."""
    first = several[0]
    for other in several:
        if other.about["mixed_precision"] != first.about["mixed_precision"]:
            kinds = f"{first.about['mixed_precision']}, {other.name} in {other.about['mixed_precision']}"
            raise UserError(f"{first.name} was trained in {kinds}; choose one for all with --mixed-precision")
    precision: str = first.about["mixed_precision"]
    return precision


def output_paths(options: EvalOptions, several: Sequence[Weights], limit: int | None) -> dict[Path, list[int]]:
    """Return the JSON files to write, each with the places of the weights it is about; raises `UserError`.

    What is measured on `limit` images has a name of its own, so that it never takes the place of a whole result.
    """
    if options.output:
        return {Path(options.output): list(range(len(several)))}
    name = f"eval-{options.split}" + "-average" * options.average + (f"-{limit}-images" if limit else "")
    outputs: dict[Path, list[int]] = {}
    for place, weights in enumerate(several):
        path = weights.path.parent / f"{name}.json"
        if path in outputs:
            pair = f"{several[outputs[path][0]].name} and {weights.name}"
            raise UserError(f"{pair} lie in one folder, and {path} can't be of both; use --output for one file for all")
        outputs[path] = [place]
    return outputs


def page_of(output: Path) -> Path:
    """Return where the page about a JSON file is written."""
    return output.with_suffix(".html")


def write_all(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write the JSON, of several as a list under `evaluations`, then the pictures and the page."""
    from cifar_dist.report.evaluation_page import write_evaluation  # matplotlib, for the one process that draws

    write_json(path, records[0] if len(records) == 1 else {"evaluations": records})
    write_evaluation(page_of(path), records)
