"""What is imported before the first step and by commands that train nothing; the benchmark of start and finish."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers.runs import ROOT

from benchmarks import startup
from benchmarks.startup import Cost, Moment, Run
from cifar_dist.data import load_dataset
from cifar_dist.recipes import default

UNNEEDED = {  # before the first step: each takes from a tenth of a second to a few
    "PIL",  # decodes what isn't cached
    "jinja2",  # writes pages
    "matplotlib",  # draws pictures
    "pandas",
    "scipy",  # compares runs
    "sklearn",
    "torch._dynamo",  # compiles; torch's own optimizers import it
    "torchvision",  # unpacks CIFAR-10
    "transformers",
    "wandb",  # has a process of its own
}
LIGHT = (  # need no torch, and so are there at once
    "cifar_dist.config",
    "cifar_dist.console",
    "cifar_dist.options",
    "cifar_dist.compare.runs",
    "cifar_dist.slurm.squeue",
    "cifar_dist.tracking.follower",
)
UNTIL_THE_FIRST_STEP = """
import json, os, sys
from pathlib import Path
from cifar_dist.cli.train import main
from cifar_dist.training import engine

step = engine.train_step

def first_step(*args):
    step(*args)
    Path(sys.argv[1]).write_text(json.dumps(list(sys.modules)))
    os._exit(0)

engine.train_step = first_step
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_run_takes_its_first_step_without_what_only_reports_need(folders, data_dir, tmp_path):
    load_dataset(str(folders), data_dir)  # decoded, as it is in every run but the first
    options = ["--model", "resnet20", "--batch-size", "32", "--epochs", "1"]
    options += ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]
    command = [sys.executable, "-c", UNTIL_THE_FIRST_STEP, str(tmp_path / "modules.json"), *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    imported = set(json.loads((tmp_path / "modules.json").read_text()))
    assert {"torch", "accelerate", "cifar_dist.training.engine"} <= imported
    assert UNNEEDED & imported == set()


def test_what_trains_nothing_does_without_torch():
    code = f"import sys, {', '.join(LIGHT)}; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def clocked(**calls: list[tuple[float, float]]) -> Run:
    """A run that ended after 100 s, with the (beginning, end) of each call by the name of its function; half of it CPU time."""
    paths = {path.rpartition(".")[2]: path for path in {*startup.PHASES.values(), *startup.EVENTS.values()}}
    found = {paths[name]: [(Moment(a, a / 2), Moment(b, b / 2)) for a, b in pairs] for name, pairs in calls.items()}
    imports = {"before train.py": Moment(1.0, 0.5), "import torch": Moment(3.0, 1.5)}
    config = replace(default("resnet20"), epochs=1, eval_every=2, log_every=50).to_dict()
    return Run(imports, {**{path: [] for path in paths.values()}, **found}, 100.0, config)


def test_the_phases_of_a_start_add_up_to_the_time_until_the_first_step_is_done():
    ends = {path.rpartition(".")[2]: [(0.0, 4.0 + i)] for i, path in enumerate(startup.PHASES.values())}
    run = clocked(**{**ends, "train_step": [(11.5, 12.0), (13.0, 13.25)]})
    taken = startup.phases(run)
    assert [*taken] == ["before train.py", "import torch", *startup.PHASES, "all", "(second step)"]
    assert [one.clock_s for one in taken.values()] == [1.0, 2.0, *[1.0] * len(startup.PHASES), 12.0, 0.25]
    assert taken["all"] == Moment(12.0, 6.0) and taken["(second step)"].cpu_s == 0.125


def test_the_cost_of_a_whole_run_is_the_first_event_and_the_median_of_the_others_for_the_rest():
    steps = [(10.0, 12.0), (12.0, 13.0), (13.0, 14.0), (14.0, 19.0)]
    found = startup.costs(
        clocked(train_step=steps, validate=[(20.0, 24.0), (30.0, 32.0), (40.0, 43.0)], test=[(90, 95)]), 45_000
    )
    total = 352 * default("resnet20").epochs
    assert found["start and end"] == Cost(1, 10.0 + 5.0, 0.0, 1)
    assert found["steps"] == Cost(4, 2.0, 1.0, total) and found["steps"].total_s == 2.0 + (total - 1) * 1.0
    assert found["validations"] == Cost(3, 4.0, 2.5, total // 704)
    assert found["test"] == Cost(1, 5.0, 5.0, 1) and found["test"].total_s == 5.0
    assert "pictures" not in found  # there were none


def test_a_whole_run_validates_logs_and_saves_as_its_options_say():
    config = replace(default("resnet20"), epochs=1, eval_every=2, log_every=50, checkpoint_minutes=5.0).to_dict()
    epochs = default("resnet20").epochs  # the recipe's: those recorded are the short run's
    fast = startup.events_of_whole_run(config, 45_000, 0.1)
    assert (fast["steps"], fast["training lines"]) == (
        352 * epochs,
        8 * epochs,
    )  # 50, 100, ... 350, and the epoch's end
    assert (fast["validations"], fast["checkpoints"], fast["pages"]) == (epochs // 2, epochs // 2, epochs // 2 + 1)
    slow = startup.events_of_whole_run(
        config, 45_000, 1.0
    )  # 704 s from one validation to the next: two more checkpoints
    assert slow["checkpoints"] == 3 * slow["validations"]


def benchmark(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks/startup.py"), "--model", "lenet", "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_benchmark_shows_every_phase_and_every_kind_of_event(folders, data_dir):
    where = ["--data", str(folders), "--data-dir", str(data_dir)]
    start = benchmark("--rounds", "1", *where)
    assert start.returncode == 0, start.stderr
    assert all(f"\n{phase} " in start.stdout for phase in (*startup.PHASES, "import torch", "all"))
    assert "\npython: " in start.stdout and "\naccelerate launch: " in start.stdout
    finish = benchmark("--finish", "--epochs", "2", "--limit-train", "200", "--batch-size", "50", *where)
    assert finish.returncode == 0, finish.stderr
    assert all(f"\n{kind} " in finish.stdout for kind in ("start and end", *startup.EVENTS))
    wrong = benchmark("--finish", "--lr", "-1", *where)
    assert wrong.returncode == 2 and "--lr must be greater than 0" in wrong.stderr
