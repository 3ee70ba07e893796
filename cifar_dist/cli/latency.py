"""`python -m cifar_dist latency RUN`: how fast a model answers, as a table, JSON and a picture."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cifar_dist.cli import command_parser
from cifar_dist.config import POSITIVE, TrainConfig, check_bounds, option
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED, out_of_memory
from cifar_dist.files import write_json
from cifar_dist.inference.latency import Cell, measure, noise
from cifar_dist.inference.predictor import Predictor, load_model
from cifar_dist.inference.settings import SHARED, prepare
from cifar_dist.models import ALIASES, MODELS, build_model, model_name
from cifar_dist.options import add_flags, check_output
from cifar_dist.record.environment import cpu_model, environment
from cifar_dist.runtime.accelerator import choose_precision
from cifar_dist.runtime.compiling import compile_model
from cifar_dist.text import count, duration, printable
from cifar_dist.training.weights import weights_path

HALF = (0.5, 0.5, 0.5)  # mean and std of fresh weights: time doesn't depend on them
BUSY = 0.3  # of the cores at work before this one begins
HEADINGS = ("", "images", "warm-up", "calls", "images/s", "p50 ms", "p90 ms", "p99 ms")
WIDTHS = (8, 6, 20, 7, 10, 9, 9, 9)


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """The options of `latency` that `train.py` doesn't have, or has with another meaning."""

    batch_sizes: tuple[int, ...] = option((1, 2, 4, 8, 16, 32, 64, 128, 256), "how many images a call")
    seconds: float = option(
        1.0, "how long each batch size is measured, after a fifth of it to warm up", must_be=POSITIVE
    )
    compile: bool = option(False, "measure the model compiled, too")
    output: str = option(
        "", "where to write the JSON, and a picture of the same name (default: latency.json beside the weights, if any)"
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UserError("--batch-sizes must be numbers of 1 or greater")
        check_output(self.output)
        if self.output.lower().endswith(".png"):
            raise UserError(f"--output {self.output} is for the JSON, and the picture gets its name; end it in .json")


class Subject(NamedTuple):
    """What is measured."""

    model: Predictor
    weights: Path | None  # None: fresh ones


def main(argv: Sequence[str]) -> int:
    """Measure, print and write; raises `UserError`."""
    parser = command_parser("latency", usage="%(prog)s RUN [options]")
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run folder, a weights file, or a model's name for fresh weights"
    )
    add_flags(parser, LatencyOptions)
    add_flags(parser, TrainConfig, (*SHARED, "data_dir"))
    given = parser.parse(argv)
    run, data_dir = given.pop("run"), given.pop("data_dir", TrainConfig.data_dir)
    shared = {name: given.pop(name) for name in SHARED if name in given}
    options = LatencyOptions(**given)
    if not run:
        raise UserError("which model? python -m cifar_dist latency runs/NAME, or a name as models lists them")
    prepare(shared)
    subject, console = find(run, shared), Console(speaks=True)
    output = Path(options.output) if options.output else None
    if subject.weights and not output:
        output = subject.weights.with_name("latency.json")
    record = describe(subject, options)
    console.say(title(record), "bold")
    console.say("from pixels (uint8) to probabilities, both in this machine's memory", "dim")
    if record["load_average"] > BUSY * record["cores"]:
        load = f"load average {record['load_average']:.1f} on {count(record['cores'], 'core')}"
        console.warn(f"this machine is busy ({load}), and these numbers hold what its other work costs")
    console.say(line_of(HEADINGS))
    cells: list[Cell] = []
    difference = None
    for cell, difference in measure_all(subject.model, options, data_dir, console):  # noqa: B007
        cells.append(cell)
        console.say(line_of(cells_of(cell)))
    if difference is not None:
        console.say(f"compiled, probabilities differ by {difference:.1g} at most", "dim")
    if not cells:
        raise UserError(f"there is no memory for {count(min(options.batch_sizes), 'image')} a call")
    if output:
        write_json(output, {**record, "compiled_differs_by": difference, "cells": [cell.to_dict() for cell in cells]})
        from cifar_dist.inference.latency_plot import draw_latency  # imports matplotlib, after what is measured

        console.say(f"written to {output} and {draw_latency(cells, output.with_suffix('.png'), title(record))}")
    return FINISHED


def find(run: str, shared: dict[str, Any]) -> Subject:
    """Return the model of a run or a weights file, or one of that name with fresh weights; raises `UserError`."""
    if run in MODELS or run in ALIASES:
        name = model_name(run)
        config = choose_precision(TrainConfig(epochs=1, model=name, **shared))
        torch.manual_seed(0)
        classes = [str(number) for number in range(10)]
        model = Predictor(name, build_model(name), config, classes=classes, mean=HALF, std=HALF)
        return Subject(model, None)
    if not Path(run).exists() and "/" not in run:
        raise UserError(f"{run} is neither a run, nor a weights file, nor one of the models {', '.join(MODELS)}")
    chosen = {name: shared[name] for name in ("device", "mixed_precision") if name in shared}
    return Subject(load_model(run, **chosen), weights_path(run))


def describe(subject: Subject, options: LatencyOptions) -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {
        "model": subject.model.name,
        "weights": str(subject.weights) if subject.weights else None,
        "image_size": subject.model.side,
        "mixed_precision": subject.model.mixed_precision,
        "seconds": options.seconds,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "environment": environment(subject.model.device, 1),
    }


def title(record: dict[str, Any]) -> str:
    here = record["environment"]
    device = record["cpu"] if here["device"].startswith("cpu") else here["device"]
    precision = {"no": "float32"}.get(record["mixed_precision"], record["mixed_precision"])
    where = (
        f"{device}, {count(here['threads_per_process'], 'thread')}, {here['host']}, torch {here['packages']['torch']}"
    )
    return printable(f"{record['model']}, {record['weights'] or 'fresh weights'}, {precision}, on {where}")


def measure_all(
    model: Predictor, options: LatencyOptions, data_dir: str, console: Console
) -> Iterator[tuple[Cell, float | None]]:
    """Yield each cell as soon as it is measured, with the largest difference so far of a compiled probability from its eager one."""
    eager: dict[int, np.ndarray] = {}
    difference = None
    for compiled in (False, True) if options.compile else (False,):
        if compiled:
            compile_model(model.model, model.device, data_dir)
        for size in sorted(set(options.batch_sizes)):
            try:
                if compiled:
                    torch.compiler.reset()  # it compiles eight sizes at most, and runs all others as they are
                cell = measure(model, size, options.seconds, compiled)
                answers = model.probabilities(noise(size, model.side))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                console.warn(f"out of memory at {count(size, 'image')} a call; larger batches are left out")
                break
            if not compiled:
                eager[size] = answers
            elif size in eager:
                difference = max(difference or 0.0, float(np.abs(answers - eager[size]).max()))
            yield cell, difference


def cells_of(cell: Cell) -> tuple[str, ...]:
    warmup = f"{count(len(cell.warmup_s), 'call')}, {duration(sum(cell.warmup_s))}"
    speeds = (f"{cell.images_per_s:,.0f}", *(f"{cell.percentile_ms(percent):,.3f}" for percent in (50, 90, 99)))
    way = "compiled" if cell.compiled else "eager"
    return way, str(cell.batch_size), warmup, f"{len(cell.calls_s):,}", *speeds


def line_of(cells: Sequence[str]) -> str:
    return " ".join(
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
