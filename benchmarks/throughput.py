"""How fast we train, beside the bare loop and what users would write without us: images/s on CPUs, and ratios.

    python benchmarks/throughput.py --cases lenet@4 resnet20@128 --json throughput.json

A case is a model at a batch size, with recipe li2024 for lenet (no augmentation) and default for others. Five loops train it:

    a   bare         forward, backward and optimizer, on one random batch that is already in memory
    a'  best         the same, with all that our runs set up by themselves to be fast
    b   ours         train.py, with data, augmentation, metrics, logging and checkpoints, through Accelerate
    c   tutorial     as PyTorch's tutorial has it: torchvision's CIFAR10, transforms, a DataLoader with two workers, loss.item()
    d   accelerate   as Accelerate's examples have it: everything prepared, a scheduler, the same DataLoader

All run the same model. With --threads all have as many; without, a' and b choose for themselves and a, c and d have torch's
default, which is all cores. a, c and d have torch's own optimizer and dropout and leave torch as it comes, but
that a flushes denormal numbers to zero as b does. c and d crop and flip where the recipe does. Where CIFAR-10's archive isn't in
--data-dir, they take the decoded images of --data and do with each what torchvision's CIFAR10 would: array, PIL image, transforms.

Every measurement is a process of its own, in rounds of all five that begin with another loop each time. Imports, the first step
and a warm-up of a fifth of --seconds are not counted. Then all but b count whole steps until --seconds have passed. b does as many
as a did in a first measurement, which is in no round, and what its run folder says has two speeds:

    without pauses   from the last training line of the warm-up to the last of all, as the run logs it. It logs as often as
                     the recipe says, or more often where that would be less than once in the warm-up.
    all in           an epoch at that speed and its checkpoints: one at the end, and one every five minutes. What one takes is
                     measured in the same run, which saves one after each line and about every half second: the time between
                     those two lines less that of the steps, divided by the number of checkpoints. TMPDIR says where they go.

Validation, test, pages and pictures count in neither. The ratios are of b, all in, to each loop of the same round.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
LOOPS = ("bare", "best", "ours", "tutorial", "accelerate")
ROWS = {
    "bare": "a   bare loop",
    "best": "a'  set up as our runs",
    "ours": "b   train.py, all in",
    "without_pauses": "    without pauses",
    "tutorial": "c   tutorial",
    "accelerate": "d   Accelerate's example",
}
CHECKPOINT_EVERY_S = 300.0  # train.py's default
NEVER = 1_000_000_000

Measured = dict[str, Any]  # what one process said of its speed


class Case(NamedTuple):
    """A model at a batch size."""

    model: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.model}@{self.batch_size}"

    @classmethod
    def parse(cls, word: str) -> "Case":
        """lenet@4 -> Case("lenet", 4)."""
        model, _, size = word.partition("@")
        if not (model and size.isdecimal() and int(size) > 0):
            raise argparse.ArgumentTypeError(f"{word!r} is not MODEL@BATCH_SIZE; write, for example, lenet@4")
        return cls(model, int(size))


DEFAULT_CASES = [
    Case.parse(word) for word in ("lenet@4", "lenet@128", "ghasemi@60", "resnet20@128", "resnet20@512", "resnet18@128")
]


def measure(loop: str, case: Case, given: argparse.Namespace) -> Measured:
    """Measure any loop but b, in a process of its own."""
    first = "cifar_dist" if loop == "best" else "torch"  # which may set what the other reads
    command = [sys.executable, "-c", f"import {first}; from benchmarks.loops import main; main()", loop]
    command += ["--model", case.model, "--batch-size", str(case.batch_size), "--seconds", str(given.seconds)]
    command += ["--data", given.data, "--data-dir", given.data_dir, *threads(given)]
    command += ["--mixed-precision", given.mixed_precision]
    return json.loads(output(command, f"{case}: {loop}").splitlines()[-1])


def threads(given: argparse.Namespace) -> list[str]:
    return ["--threads", str(given.threads)] if given.threads else []


def measure_ours(case: Case, given: argparse.Namespace, bare: Measured) -> Measured:
    """Measure b, over as many steps as `bare` took."""
    warm_up: int = bare["warm_up_steps"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {
            "model": case.model,
            "recipe": bare["recipe"],
            "batch-size": case.batch_size,
            "mixed-precision": given.mixed_precision,
            "steps": warm_up + bare["steps"],
            "device": "cpu",
            "data": given.data,
            "data-dir": given.data_dir,
            "val-fraction": 0,
            "eval-every": NEVER,  # no checkpoints and pages but those we count
            "log-every": min(bare["log_every"], warm_up),
            "checkpoint-minutes": 0,
            "keep-checkpoints": NEVER,
            "wandb": "disabled",
            "output-dir": folder,
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        output([sys.executable, str(ROOT / "train.py"), "--no-test", *words, *threads(given)], f"{case}: train.py")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        saved_steps = [int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")]
        epoch_images = json.loads((folder / "config.json").read_bytes())["dataset"]["train"]
    return speeds_of_run(lines, warm_up, saved_steps, epoch_images)


def output(command: Sequence[str], what: str) -> str:
    """Run a command and return its output; where it fails, show its error and end with its status."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    child = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if child.returncode:
        print(f"{child.stderr.rstrip()}\n{what} ended with status {child.returncode}", file=sys.stderr)
        sys.exit(child.returncode)
    return child.stdout


def speeds_of_run(
    lines: Sequence[Mapping[str, Any]], warm_up: int, saved_steps: Sequence[int], epoch_images: int
) -> Measured:
    """Return a run's speed all in (`images_per_s`) and `without_pauses`, from its `lines` and the steps it saved.

    There must be a line within the first `warm_up` steps and one after them, and a checkpoint between.
    """
    training = [line for line in lines if line["kind"] == "train"]
    counted = training[sum(line["step"] <= warm_up for line in training) - 1 :]
    first, last = counted[0], counted[-1]
    images, all_s = last["samples"] - first["samples"], last["seconds"] - first["seconds"]
    # Each line has the speed since the one before.
    steps_s = sum((b["samples"] - a["samples"]) / b["images_per_second"] for a, b in pairwise(counted))
    checkpoints = sum(first["step"] <= step < last["step"] for step in saved_steps)  # each right after its step's line
    checkpoint_s = max(0.0, all_s - steps_s) / checkpoints
    epoch_s = epoch_images * steps_s / images
    pauses_s = checkpoint_s * (1 + epoch_s // CHECKPOINT_EVERY_S)
    return {
        "images_per_s": epoch_images / (epoch_s + pauses_s),
        "without_pauses": images / steps_s,
        "checkpoint_s": checkpoint_s,
        "checkpoints": checkpoints,
        "images": images,
        "seconds": all_s,
    }


def order(number: int) -> tuple[str, ...]:
    """Return the loops in the order of round `number`, counted from 0: each round begins one loop later."""
    start = number % len(LOOPS)
    return LOOPS[start:] + LOOPS[:start]


def speeds(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Return a round's images/s, by the keys of ROWS."""
    of_loops = {loop: one["images_per_s"] for loop, one in measured.items()}
    return {**of_loops, "without_pauses": measured["ours"]["without_pauses"]}


def spread(rounds: Sequence[Mapping[str, float]], below: str) -> tuple[float, float, float]:
    """Return the minimum, median and maximum over the rounds of our speed divided by that of `below`."""
    ratios = [speed["ours"] / speed[below] for speed in rounds]
    return min(ratios), median(ratios), max(ratios)


def table(case: Case, rounds: Sequence[Mapping[str, float]]) -> Table:
    """Return a case's table: the median speed of each loop, and b's ratio to it."""
    shown = Table(title=f"{case}, {len(rounds)} rounds", title_justify="left")
    for name in ("loop", "images/s", "b / loop: min", "median", "max"):
        shown.add_column(name, justify="left" if name == "loop" else "right")
    for key, label in ROWS.items():
        ratios = ["" if key == "ours" else f"{ratio:.3f}" for ratio in spread(rounds, key)]
        shown.add_row(label, f"{median(speed[key] for speed in rounds):,.0f}", *ratios)
    return shown


def machine() -> dict[str, Any]:
    """Return what else the numbers depend on."""
    versions = {name: version(name) for name in ("torch", "torchvision", "accelerate")}
    where = {"cpu": cpu_model(), "cores": os.cpu_count(), "python": platform.python_version()}
    return {"date": time.strftime("%Y-%m-%d"), **where, **versions}


def cpu_model() -> str:
    with suppress(OSError):  # there is none but on Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return a reader of numbers greater than 0."""

    def read(word: str) -> float:
        with suppress(ValueError):
            if (number := kind(word)) > 0:
                return number
        raise argparse.ArgumentTypeError(f"must be {'a whole number' if kind is int else 'a number'} > 0, got {word!r}")

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=DEFAULT_CASES, metavar="MODEL@BATCH_SIZE")
    parser.add_argument("--rounds", type=positive(int), default=5)
    parser.add_argument("--seconds", type=positive(float), default=10.0, help="that a measurement counts, about")
    parser.add_argument("--threads", type=positive(int), help="of each process (default: see above)")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "auto"), default="no", help="of a' and b")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")
    given = parser.parse_args()
    console = Console(highlight=False)
    cases: list[dict[str, Any]] = []
    record = {
        **machine(),
        "threads": given.threads,
        "mixed_precision": given.mixed_precision,
        "seconds": given.seconds,
        "cases": cases,
    }
    for case in given.cases:
        bare = measure("bare", case, given)
        rounds: list[dict[str, Measured]] = []
        cases.append({**case._asdict(), "recipe": bare["recipe"], "rounds": rounds})
        for number in range(given.rounds):
            measured = {
                loop: measure_ours(case, given, bare) if loop == "ours" else measure(loop, case, given)
                for loop in order(number)
            }
            rounds.append(measured)
            shown = "  ".join(f"{loop} {measured[loop]['images_per_s']:,.0f}" for loop in LOOPS)
            console.print(f"{case} round {number + 1}/{given.rounds}, images/s: {shown}", soft_wrap=True)
            if given.json:
                given.json.write_text(json.dumps(record, indent=1) + "\n")
        console.print(table(case, [speeds(measured) for measured in rounds]))


if __name__ == "__main__":
    main()
