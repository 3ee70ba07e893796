"""The runs of docs/RESULTS.md, the cheapest first, as many side by side as give the most images/s in total.

How many these are is measured first: processes that train resnet20 at 128 with captured steps, 1, 2, 4 and 8 of them at a time.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu_jobs import (  # noqa: E402
    PRECISION,
    Ended,
    Job,
    Record,
    Records,
    Result,
    about,
    commits,
    cores,
    dates,
    fail_where_a_run_warns,
    hardware,
    percent,
    run_jobs,
    table,
)
from cifar_dist.config import TrainConfig  # noqa: E402
from cifar_dist.models import build_model  # noqa: E402
from cifar_dist.recipes import PUBLISHED, RECIPES, models_of  # noqa: E402

OURS = ("mlp", "resnet20", "resnet18", "resnet34", "resnet50")  # models trained with recipe default
PACKING = "packing"
LEVELS = (1, 2, 4, 8)  # processes at a time
LEVEL_S, PAUSE_S = 3.0, 1.0
SAVING_S = 12.0  # in which a run that is stopped saves a checkpoint


def results(given: argparse.Namespace, record: Record, end: float) -> Ended:
    """Train what isn't trained yet, as far as time goes; a run that is stopped goes on in the next call."""
    jobs = [job for job in trainings(given) if any(word in job.name for word in given.only)]
    kept = {name for name, one in record.done.items() if one["result"].get("words") == given.train_words}
    todo = [job for job in jobs if job.name not in kept]
    print(f"results: {len(todo)} of {len(jobs)} runs are to be trained", flush=True)
    if given.dry_run:
        print("\n".join(shlex.join(job.command) for job in todo))
        return Ended({})
    folder = given.out / "results"
    if todo and not given.parallel and not packed(record):
        run_jobs([packing(given)], record, folder, end)
    parallel = given.parallel or packed(record) or 1
    if todo:
        print(f"results: {parallel} at a time", flush=True)
    return run_jobs(todo, record, folder, end, parallel, grace_s=SAVING_S)


def packed(record: Record) -> int:
    """Return how many processes at a time were fastest in total; 0 where that isn't known of this GPU."""
    measured = record.done.get(PACKING)
    if not measured or measured["hardware"]["gpu"] != hardware()["gpu"]:
        return 0
    totals: dict[str, float] = measured["result"]
    return int(max(totals, key=lambda level: totals[level]))


def trainings(given: argparse.Namespace) -> list[Job]:
    """One job for each run of docs/RESULTS.md: one seed after another, and of a seed the cheapest first."""
    recipes = [name for name in RECIPES if name not in ("default", "speed94")]
    pairs = [(recipe, model) for recipe in recipes for model in models_of(recipe)]
    pairs += [("default", model) for model in OURS]
    pairs.sort(key=lambda pair: expected_cost(RECIPES[pair[0]](pair[1])))
    return [training(recipe, model, seed, given) for seed in range(given.seeds) for recipe, model in pairs]


def expected_cost(config: TrainConfig) -> int:
    """Return how many layers all steps go through: to start one costs a GPU more than most of these layers take."""
    with torch.device("meta"):
        model = build_model(config.model, options=config.model_options)
    layers = sum(not list(module.children()) for module in model.modules())
    images = 50_000 * (1 - config.val_fraction)
    return layers * (config.steps or round((config.epochs or 0) * images / config.batch_size))


def training(recipe: str, model: str, seed: int, given: argparse.Namespace) -> Job:
    label = f"{recipe.replace('/', '.')}-{model}-{seed}"
    folder = given.out / "results" / label
    precision = PRECISION if recipe == "default" else "no"
    words = ["--recipe", recipe, "--model", model, "--seed", str(seed), "--mixed-precision", precision]
    words += ["--data", given.data, "--data-dir", given.data_dir, "--output-dir", str(folder)]
    words += ["--device", given.device, "--threads", "1", "--capture", "on", *given.train_words]
    kept = {"recipe": recipe, "model": model, "seed": seed, "precision": precision, "words": given.train_words}
    return Job(label, [sys.executable, str(ROOT / "train.py"), *words], partial(read_run, folder, kept))


def read_run(folder: Path, kept: Mapping[str, Any]) -> Result | None:
    """Return what a finished run says of itself."""
    summary = json.loads((folder / "summary.json").read_bytes())
    if summary["status"] != "finished":
        return None
    dataset = json.loads((folder / "config.json").read_bytes())["dataset"]
    of_run = {key: summary[key] for key in ("seconds", "step", "best_step", "train", "val", "test")}
    sizes = {key: dataset[key] for key in ("name", "fingerprint", "synthetic", "train", "val", "test")}
    return {**kept, **of_run, "dataset": sizes}


def results_rows(records: Records) -> list[str]:
    records = dict(records)
    note = []
    if packing := records.pop(PACKING, None):
        totals = ", ".join(f"{level}: {speed:,.0f}" for level, speed in packing["result"].items())
        note = [f"Processes at a time, and images/s of all together (resnet20 at 128, captured): {totals}."]
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, record in records.items():
        groups.setdefault((record["result"]["recipe"], record["result"]["model"]), {})[name] = record
    titles = ("recipe", "model", "paper", "ours, test", "top-2", "n", "data: train / val / test", "wall time")
    rows = table((*titles, "commit", "date"), [results_row(*key, group) for key, group in groups.items()])
    return [*(rows if groups else []), *note, about(records or {PACKING: packing})]


def results_row(recipe: str, model: str, group: Records) -> list[str]:
    """Return the cells of one recipe and model, over its seeds."""
    runs = [record["result"] for record in group.values()]
    details = [
        *filter(None, [shlex.join(runs[0]["words"])]),
        *([PRECISION] if runs[0]["precision"] == PRECISION else []),
    ]
    published, data = PUBLISHED.get((recipe, model)), runs[0]["dataset"]
    times = sorted({round(run["seconds"]) for run in runs})
    wall = " to ".join(f"{seconds:,}" for seconds in dict.fromkeys((times[0], times[-1]))) + " s"
    beside = max(record["parallel"] for record in group.values())
    return [
        ", ".join([f"`{recipe}`", *details]),
        model,
        "–" if published is None else f"{100 * published:g} %",
        *(percent([run["test"][key] for run in runs]) for key in ("accuracy", "top2_accuracy")),
        str(len(runs)),
        f"{data['name']}, {data['train']:,} / {data['val']:,} / {data['test']:,}",
        wall + (f", {beside} at a time" if beside > 1 else ""),
        commits(group),
        dates(group),
    ]


# How many at a time


def packing(given: argparse.Namespace) -> Job:
    levels = [level for level in LEVELS if level == 1 or level <= cores() // (1 if given.cpu else 2)]
    what = {"data": given.data, "data_dir": given.data_dir, "device": given.device, "levels": levels}
    command = [sys.executable, str(Path(__file__).resolve()), "--pack", json.dumps(what)]
    return Job(PACKING, command, partial(read_last_line, given.out / "results" / f"{PACKING}.log"))


def read_last_line(log: Path) -> Result:
    result: Result = json.loads(log.read_text().splitlines()[-1])
    return result


def pack(what: dict[str, Any]) -> dict[int, float]:
    """Return the images/s of all processes together, for each number of them."""
    levels = what["levels"]
    with tempfile.TemporaryDirectory() as folder:
        own = [sys.executable, str(Path(__file__).resolve()), "--pace"]
        children = []
        for place in range(max(levels)):
            command = [*own, json.dumps({**what, "place": place, "folder": folder})]
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        while len(list(Path(folder).glob("ready-*"))) < len(children):
            if any(child.poll() for child in children):
                sys.exit("error: a process to be timed failed; see above")
            time.sleep(0.1)
        (Path(folder) / "begin.part").write_text(str(time.time() + 1))
        (Path(folder) / "begin.part").rename(Path(folder) / "begin")
        counts = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    return {level: sum(count[i] for count in counts) / LEVEL_S for i, level in enumerate(levels)}


def pace(what: dict[str, Any]) -> list[int]:
    """Train while it is this process's turn; returns how many images that were, for each number of processes."""
    from dataclasses import replace

    from benchmarks.loops import configure
    from cifar_dist.console import Console
    from cifar_dist.runtime.accelerator import join
    from cifar_dist.training.build import build, initialise
    from cifar_dist.training.captured import capture_steps
    from cifar_dist.training.step import train_step

    where = {key: what[key] for key in ("data", "data_dir", "device")}
    config = replace(configure("resnet20", batch_size=128, mixed_precision="no", **where), threads=1, capture="on")
    join(config)
    fail_where_a_run_warns()
    console = Console(speaks=False)
    trainer = build(config, console)
    initialise(trainer)
    capture_steps(trainer, console)
    wait = torch.cuda.synchronize if trainer.device.type == "cuda" else lambda: None
    folder, done, counts = Path(what["folder"]), 0, []

    def some() -> int:
        nonlocal done
        for _ in range(10 if trainer.device.type == "cuda" else 1):
            train_step(trainer, done % trainer.plan.total_steps, 1e-3, False)
            done += 1
        trainer.state.sums.settle()
        wait()
        return done * config.batch_size

    some(), some()
    (folder / f"ready-{what['place']}").touch()
    while not (folder / "begin").exists():
        time.sleep(0.01)
    begin = float((folder / "begin").read_text())
    for level in what["levels"]:
        time.sleep(max(0.0, begin - time.time()))
        before = after = done * config.batch_size
        while what["place"] < level and time.time() < begin + LEVEL_S:
            after = some()
        counts.append(after - before)
        begin += LEVEL_S + PAUSE_S
    return counts


if __name__ == "__main__":
    print(json.dumps({"--pack": pack, "--pace": pace}[sys.argv[1]](json.loads(sys.argv[2]))))  # type: ignore[operator]
