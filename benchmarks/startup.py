"""What a run spends besides its steps: from the command to the first of them, and on evaluations, checkpoints and reports.

    python benchmarks/startup.py --model resnet20 --rounds 5
    python benchmarks/startup.py --model resnet20 --finish --epochs 3 --limit-train 2000

Options that aren't listed below are train.py's. A run is train.py in a process of its own, where a clock is put around some of
our functions; nothing in the package knows of it.

The first command starts the same run with `python train.py` and with `accelerate launch train.py`, in turns, --rounds times each,
and prints the median of each phase. A phase ends when its function of PHASES returns for the first time, and the next begins
there, so that they add up to the time from the command to the end of the first step. CPU seconds are those of rank 0's threads
and of the launcher; where the machine does something else besides, they move less than the clock.

The second does one short run, and says what the recipe's whole run takes from what each event cost in it:

    whole run = start and end + sum over kinds of event (first + (events - 1) * median of the others)

where a step, a validation, a checkpoint, a page ... are events. The whole run validates, saves and reports as often as its
options say. That its record, which is read at each validation, is longer by the end is left out. What is written goes where
TMPDIR says.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).parents[1]
LAUNCHED = "ACCELERATE_MIXED_PRECISION" in os.environ  # by accelerate launch
STEP = "cifar_dist.training.engine.train_step"
PHASES = {  # of a start, after the imports: the function whose first return ends each
    "command line": "cifar_dist.cli.train.check_early",
    "process group": "cifar_dist.cli.train.join",
    "run folder": "cifar_dist.training.run.open_folder",
    "accelerator": "cifar_dist.training.build.accelerate",
    "data": "cifar_dist.training.build.make_splits",
    "model and optimizer": "cifar_dist.training.build.build_state",
    "record": "cifar_dist.training.run.begin_record",
    "Weights & Biases' process": "cifar_dist.training.run.Views",
    "first step": STEP,
}
EVENTS = {  # none of these functions calls another
    "steps": STEP,
    "training lines": "cifar_dist.training.engine.log_training",
    "validations": "cifar_dist.training.engine.validate",
    "checkpoints": "cifar_dist.training.engine.save_checkpoint",
    "pages": "cifar_dist.training.views.Views._write_page",
    "test": "cifar_dist.training.run.test",
    "pictures": "cifar_dist.training.views.Views._draw",
    "end of Weights & Biases": "cifar_dist.tracking.process.Tracker.finish",
}


class Moment(NamedTuple):
    """When something was over, on the clock that all processes share, and the CPU seconds of the process until then."""

    clock_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(time.monotonic(), time.process_time())

    def since(self, before: "Moment") -> "Moment":
        return Moment(self.clock_s - before.clock_s, self.cpu_s - before.cpu_s)


class Run(NamedTuple):
    """What one run's clock says: its imports, and the beginning and end of each call of the functions above."""

    imports: dict[str, Moment]
    calls: dict[str, list[tuple[Moment, Moment]]]
    whole_s: float  # until its process has ended
    config: dict[str, Any]


class Cost(NamedTuple):
    """What the events of one kind cost: how many there are in the short run and in the whole one, and the seconds of each."""

    here: int
    first_s: float
    then_s: float
    events: int

    @property
    def total_s(self) -> float:
        return self.first_s + (self.events - 1) * self.then_s


def be_train(report: Path, argv: Sequence[str]) -> NoReturn:
    """Be train.py with a clock, and write what it says to `report`."""
    imports = {"before train.py": Moment.now()}
    sys.path[0] = str(ROOT)  # as train.py has it
    import cifar_dist  # noqa: F401, I001  # first: it sets the environment that torch reads
    import torch  # noqa: F401

    imports["import torch"] = Moment.now()
    import accelerate  # noqa: F401

    imports["import accelerate"] = Moment.now()
    from cifar_dist.cli.train import main
    from cifar_dist.exits import finish

    imports["import cifar_dist"] = Moment.now()
    calls: dict[str, list[tuple[Moment, Moment]]] = {}
    for path in {*PHASES.values(), *EVENTS.values()}:
        put_clock(path, calls.setdefault(path, []))
    status = main(argv)
    if os.environ.get("RANK", "0") == "0":
        report.write_text(json.dumps({"imports": imports, "calls": calls, "launcher_cpu_s": launcher_cpu_s()}))
    finish(status)


def put_clock(path: str, calls: list[tuple[Moment, Moment]]) -> None:
    """Note the beginning and the end of every call of the function at `path`."""
    owner, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(resolve_name(owner), name)

    @wraps(function)
    def clocked(*args: Any, **kwargs: Any) -> Any:
        began = Moment.now()
        try:
            return function(*args, **kwargs)
        finally:
            calls.append((began, Moment.now()))

    setattr(resolve_name(owner), name, clocked)


def launcher_cpu_s() -> float:
    """Return what the launcher, which only waits by now, has used; 0 without one."""
    if not LAUNCHED:
        return 0.0
    import psutil

    times = psutil.Process(os.getppid()).cpu_times()
    return times.user + times.system


def measure(launcher: Sequence[str], options: Sequence[str]) -> Run:
    """Do one run; where it fails, show its error and end with its status."""
    with tempfile.TemporaryDirectory() as name:
        report, folder = Path(name, "clock.json"), Path(name, "run")
        command = [*launcher, __file__, "--be-train", str(report), *options, "--output-dir", str(folder)]
        began = time.monotonic()
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        whole_s = time.monotonic() - began
        if child.returncode:
            print(f"{child.stderr.rstrip()}\nthe run ended with status {child.returncode}", file=sys.stderr)
            sys.exit(child.returncode)
        said = json.loads(report.read_text())
        config = json.loads((folder / "config.json").read_text())["config"]

    def moment(pair: Sequence[float]) -> Moment:
        return Moment(pair[0] - began, pair[1] + said["launcher_cpu_s"])

    imports = {phase: moment(pair) for phase, pair in said["imports"].items()}
    calls = {path: [(moment(a), moment(b)) for a, b in pairs] for path, pairs in said["calls"].items()}
    return Run(imports, calls, whole_s, config)


def phases(run: Run) -> dict[str, Moment]:
    """Return what each phase of the start took, and all of them together."""
    ends = {**run.imports, **{phase: run.calls[path][0][1] for phase, path in PHASES.items()}}
    taken, before = {}, Moment(0.0, 0.0)
    for phase, end in ends.items():
        taken[phase], before = end.since(before), end
    began, ended = run.calls[STEP][1]
    return {**taken, "all": before, "(second step)": ended.since(began)}


def show_start(runs: Mapping[str, Sequence[Run]]) -> None:
    """Print the median of each phase, in seconds, for each way to start."""
    taken = {way: [phases(run) for run in found] for way, found in runs.items()}
    names = list(next(iter(taken.values()))[0])
    rows = [
        [name, *(cell for found in taken.values() for cell in _medians([one[name] for one in found]))] for name in names
    ]
    show(["", *(f"{way}, {unit}" for way in taken for unit in ("s", "CPU s"))], rows)
    for way, found in taken.items():
        all_s = [one["all"].clock_s for one in found]
        print(f"{way}: {median(all_s):.2f} s to the end of the first step (from {min(all_s):.2f} to {max(all_s):.2f})")


def _medians(found: Sequence[Moment]) -> list[str]:
    return [f"{median(values):.3f}" for values in zip(*found, strict=True)]


def costs(run: Run, train_images: int) -> dict[str, Cost]:
    """Return what each kind of event costs, in this run and in the whole one."""
    seconds = {what: [ended.since(began).clock_s for began, ended in run.calls[path]] for what, path in EVENTS.items()}
    start_s = run.calls[STEP][0][0].clock_s
    end_s = run.whole_s - max(ended.clock_s for calls in run.calls.values() for _, ended in calls)
    counts = events_of_whole_run(run.config, train_images, median(seconds["steps"][1:]))
    found = {what: Cost(len(s), s[0], median(s[1:] or s), counts[what]) for what, s in seconds.items() if s}
    return {"start and end": Cost(1, start_s + end_s, 0.0, 1), **found}


def events_of_whole_run(recorded: Mapping[str, Any], train_images: int, step_s: float) -> dict[str, int]:
    """Return how many events of each kind the recipe's whole run has, with the other options as `recorded`."""
    sys.path.insert(0, str(ROOT))
    from cifar_dist.config import TrainConfig
    from cifar_dist.inputs.plan import BatchPlan
    from cifar_dist.recipes import RECIPES

    recipe = RECIPES[recorded["recipe"]](recorded["model"])
    config = replace(TrainConfig.from_dict(recorded), epochs=recipe.epochs, steps=recipe.steps)
    plan = BatchPlan.from_config(config, train_images, 1)
    done = range(1, plan.total_steps + 1)
    validations = sum(plan.is_epoch_end(step, config.eval_every) for step in done)
    between_s = plan.total_steps / validations * step_s
    return {
        **dict.fromkeys(EVENTS, 1),
        "steps": plan.total_steps,
        "training lines": sum(plan.is_log_step(step, config.log_every) for step in done),
        "validations": validations,
        "checkpoints": validations * (1 + int(between_s // (60 * config.checkpoint_minutes))),
        "pages": validations + 1,
    }


def show_finish(found: Mapping[str, Cost]) -> None:
    """Print what each kind of event cost, and its share of the whole run."""
    whole_s = sum(cost.total_s for cost in found.values())
    rows = [
        [
            what,
            f"{cost.here:,}",
            f"{cost.first_s:.3f}",
            f"{cost.then_s:.3f}" if cost.here > 1 else "",
            f"{cost.events:,}",
            f"{cost.total_s:,.1f}",
            f"{cost.total_s / whole_s:.2%}",
        ]
        for what, cost in found.items()
    ]
    show(["", "events", "first, s", "then, s", "in the whole run", "s", "share"], rows)
    print(f"all but the steps: {1 - found['steps'].total_s / whole_s:.2%} of {whole_s:,.0f} s")


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose columns but the first hold numbers."""
    from rich.console import Console  # not in the process of the run
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--launch-config", default=str(ROOT / "launch/cpu.yaml"), help="of accelerate launch")
    parser.add_argument("--finish", action="store_true", help="measure what interrupts the steps, not the start")
    parser.add_argument("--epochs", type=int, default=3, help="of the short run")
    parser.add_argument("--limit-train", type=int, default=2000, help="training images of the short run")
    parser.add_argument("--train-images", type=int, default=45_000, help="of the whole run")
    given, options = parser.parse_known_args()
    if given.finish:
        short = ["--epochs", str(given.epochs), "--limit-train", str(given.limit_train)]
        show_finish(costs(measure([sys.executable], [*options, *short]), given.train_images))
        return
    options += ["--steps", "2", "--limit-eval", "100", "--no-test"]
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", given.launch_config]
    ways = {"python": [sys.executable], "accelerate launch": accelerate}
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, launcher in ways.items():
            runs[name].append(measure(launcher, options))
    show_start(runs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--be-train"]:
        be_train(Path(sys.argv[2]), sys.argv[3:])
    main()
