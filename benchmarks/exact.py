"""What --exact-shards promises, over whole runs, and what it costs; and how far runs drift apart without it.

    python benchmarks/exact.py same --data FOLDER --steps 500 lenet resnet20      # on 1, 2, 3, 4, 5 and 7 processes
    python benchmarks/exact.py drift --data FOLDER --steps 0 --limit-train 4000 lenet     # a whole run without exact shards
    python benchmarks/exact.py cost --data FOLDER --rounds 3 lenet resnet20       # images/s against a run without
    python benchmarks/exact.py restarts --data FOLDER --steps 500 lenet           # stopped ten times, on ten world sizes

Models train by --recipe, shortened to --steps, one thread a process, with --batch-size and --exact-shards; all models where none is
named. `same` compares weights byte by byte, the lines of metrics but for their times, and predictions. `drift` says by
how much the largest weight differs and how far validation accuracies lie apart. `cost` takes turns, without, exact, without ..., on
one process and on --processes. Processes share the cores, so that only ratios mean something.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from same_numbers import ROOT, difference, lines_of, run_script

sys.path.insert(0, str(ROOT))

from cifar_dist.models import MODELS

WORLD_SIZES = (1, 2, 3, 4, 5, 7)


def main(argv: Sequence[str]) -> int:
    """Do what was asked for and print its table."""
    given = read_options(argv)
    with tempfile.TemporaryDirectory() as folder:
        unlike = 0
        for model in given.models or MODELS:
            row = {"same": same, "drift": drift, "cost": cost, "restarts": restarts}[given.what](
                model, given, Path(folder, model)
            )
            unlike += "DIFFERENT" in row
            print(f"| {model} | {row} |", flush=True)
    return 1 if unlike else 0


def read_options(argv: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("same", "drift", "cost", "restarts"))
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--steps", type=int, default=500, help="0: the recipe's own, as of the next three")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit-train", type=int, default=0)
    parser.add_argument("--limit-eval", type=int, default=500)
    parser.add_argument("--exact-shards", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2, help="of `cost`, besides one")
    parser.add_argument("--rounds", type=int, default=3, help="of `cost`")
    return parser.parse_intermixed_args(argv)


def train(model: str, given: Any, folder: Path, processes: int = 1, *more: str, exact: bool = True) -> Path:
    """Train in processes of their own and return the run folder."""
    launch(["train.py", *options(model, given, folder, exact=exact), *more], processes)
    return folder


def options(model: str, given: Any, folder: Path, exact: bool = True) -> list[str]:
    """Return a run's words; what is asked for with 0 is left to the recipe."""
    words = ["--model", model, "--recipe", given.recipe, "--threads", "1", "--no-test"]
    words += ["--exact-shards", str(given.exact_shards)] if exact else []
    for name in ("steps", "batch_size", "limit_train", "limit_eval"):
        words += [f"--{name.replace('_', '-')}", str(getattr(given, name))] if getattr(given, name) else []
    words += ["--data", given.data, "--data-dir", str(Path(given.data_dir).resolve())]
    return [*words, "--output-dir", str(folder)]


def launch(words: Sequence[str], processes: int) -> None:
    """Run a script in so many processes on the CPU; ends with its last line where it fails."""
    done = run_script(words, processes, ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")


def same(model: str, given: Any, folder: Path) -> str:
    runs = [train(model, given, folder / str(size), size) for size in WORLD_SIZES]
    found = [difference(runs[0], run) for run in runs[1:]]
    cells = [f"DIFFERENT: {text}" if text else "0" for text in found]
    return " | ".join([str(lines_of(runs[0])[-1]["step"]), *cells])


def drift(model: str, given: Any, folder: Path) -> str:
    """How far runs on several processes end from the one on one process: weights, and validation accuracy in points."""
    runs = [train(model, given, folder / str(size), size, exact=False) for size in WORLD_SIZES[:4]]
    weights = [load_file(run / "model.safetensors") for run in runs]
    accuracies = [lines_of(run)[-1]["accuracy"] for run in runs]
    cells = [f"{100 * accuracies[0]:.1f} %"]
    for other, accuracy in zip(weights[1:], accuracies[1:], strict=True):
        names = [name for name in other if np.issubdtype(other[name].dtype, np.floating)]
        apart = max(float(np.abs(other[name].astype(np.float64) - weights[0][name]).max()) for name in names)
        cells.append(f"{apart:.1e}, {100 * (accuracy - accuracies[0]):+.1f} points")
    return " | ".join(cells)


def cost(model: str, given: Any, folder: Path) -> str:
    """Images/s with exact shards over images/s without, of each round, on one process and on several."""
    cells = []
    for processes in (1, given.processes):
        ratios = []
        for turn in range(given.rounds):
            speeds = [
                speed(
                    train(
                        model,
                        given,
                        folder / f"{processes}-{turn}-{exact}",
                        processes,
                        "--log-every",
                        "10",
                        exact=exact,
                    )
                )
                for exact in (False, True)
            ]
            ratios.append(speeds[1] / speeds[0])
        cells.append(" / ".join(f"{ratio:.2f}" for ratio in sorted(ratios)))
    return " | ".join(cells)


def speed(folder: Path) -> float:
    """Return the median images/s of a run's training lines but the first."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return median([line["images_per_second"] for line in lines if line["kind"] == "train"][1:])


def restarts(model: str, given: Any, folder: Path) -> str:
    """Whether a run that was stopped and went on nine times, each time on another number of processes, ends as one that wasn't."""
    given.exact_shards = max(given.exact_shards, 10)
    whole, moved = train(model, given, folder / "whole"), folder / "moved"
    (folder / "stop.py").write_text(STOP)
    for i, processes in enumerate((4, 1, 7, 2, 10, 3, 8, 5, 9)):
        step = given.steps * (i + 1) // 10
        launch([str(folder / "stop.py"), str(step), *options(model, given, moved)], processes)
    text = difference(whole, train(model, given, moved, 6))
    return f"{given.steps} | DIFFERENT: {text}" if text else f"{given.steps} | 0"


STOP = """
import os, signal, sys
from cifar_dist.cli.train import main
from cifar_dist.exits import finish
from cifar_dist.training import engine, preemption
stop, step_of = int(sys.argv[1]), engine.train_step
preemption.VOTE_EVERY_S = 0.0
def train_step(trainer, step, *rest):
    norm = step_of(trainer, step, *rest)
    if step + 1 == stop and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGUSR1)
    return norm
engine.train_step = train_step
status = main(sys.argv[2:])
finish(0 if status == 75 else status)
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
