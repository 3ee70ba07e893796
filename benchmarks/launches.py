"""How many operations Python starts in a training step, eager and replayed (`--capture on`), and the time that Python itself takes.

    python benchmarks/launches.py                            # synthetic images, one process, a CPU
    python benchmarks/launches.py resnet20@128 --steps 50

An operation is what torch's dispatcher is given and that isn't a view: about one kernel on a GPU. What a replay holds is started by
one call there; here it is left out, so that the time of a replayed step is Python's own: the batch, the learning rates, copies.
Numbers are of the step that has least, whose batch was made along with others.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.throughput import Case
from cifar_dist.console import Console
from cifar_dist.options import resolve_train_config
from cifar_dist.runtime.accelerator import join
from cifar_dist.training import captured
from cifar_dist.training.build import Trainer, build
from cifar_dist.training.step import train_step

LR = 0.001
CASES = (Case("lenet", 4), Case("pandey", 64), Case("resnet20", 128), Case("speednet", 200))
RECIPES = {"lenet": "li2024", "pandey": "pandey2020", "resnet20": "he2016", "speednet": "speed94"}  # of others default


class Operations(TorchDispatchMode):
    """Counts what reaches torch's dispatcher."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def main(argv: Sequence[str]) -> int:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", type=Case.parse, default=CASES, metavar="MODEL@BATCH")
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args(argv)
    if given.steps < 2:
        parser.error(f"--steps must be 2 or more, half of them counted and half timed; got {given.steps}")
    print("| step | operations, eager | replayed | eager, ms | Python of a replayed step, µs |\n|---|---|---|---|---|")
    for case in given.cases:
        print(f"| {case} | " + " | ".join(measure(case, given.steps)) + " |", flush=True)
    return 0


def measure(case: Case, steps: int) -> tuple[str, ...]:
    """Return the cells of a case: operations of an eager and of a replayed step, milliseconds, microseconds."""
    AcceleratorState._reset_state(True)
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": case.model, "batch_size": case.batch_size, "capture": "on"}
        given["recipe"] = RECIPES.get(case.model, "default")
        given |= {"data": "synthetic", "data_dir": folder, "device": "cpu", "threads": 1, "mixed_precision": "no"}
        config = resolve_train_config(given)
        join(config)
        trainer = build(config, Console(speaks=False))
        eager = looked_at(trainer, range(steps))
        captured.capture_steps(trainer, Console(speaks=False))
        train_step(trainer, steps, LR, measure_gradient=False)
        assert trainer.captured and trainer.captured.replays, f"the steps of {case} are not captured"
        with mock.patch.object(captured.Captured, "__call__", return_value=None):
            replayed = looked_at(trainer, range(steps + 1, 2 * steps + 1))
    return f"{eager[0]}", f"{replayed[0]}", f"{1e3 * eager[1]:.1f}", f"{1e6 * replayed[1]:.0f}"


def looked_at(trainer: Trainer, steps: range) -> tuple[int, float]:
    """Return the operations of a step and its seconds, the least of several: batches are made for more than one step at once."""
    half, counts, times = len(steps) // 2, [], []
    for step in steps[:half]:
        with Operations() as operations:
            train_step(trainer, step, LR, measure_gradient=False)
        counts.append(operations.count)
    for step in steps[half:]:
        start = time.perf_counter()
        train_step(trainer, step, LR, measure_gradient=False)
        times.append(time.perf_counter() - start)
    return min(counts), min(times)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
