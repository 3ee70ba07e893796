"""Images/s of a step, case by case: on one fixed batch, eager and as one captured graph, and in train.py, eager, captured, compiled.

One process measures all, what is cheap for every case first, then the compiled runs, and adds a line to a file for each.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu_jobs import (  # noqa: E402
    PRECISION,
    Ended,
    Job,
    Lines,
    Record,
    Records,
    about,
    add_line,
    fail_where_a_run_warns,
    run_jobs,
    table,
)
from benchmarks.throughput import NEVER, Case, speeds_of_run  # noqa: E402
from cifar_dist.config import TrainConfig  # noqa: E402
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED  # noqa: E402

CASES = (
    "lenet@4 no",
    "lenet@128 no",
    "pandey@64 no",
    "resnet20@128 no",
    "resnet20@128 bf16",
    "resnet20@1024 bf16",
    "resnet18@128 bf16",
    "resnet18@512 bf16",
)
BARE, IN_TRAINING = ("bare", "bare graph"), {"eager": "off", "captured": "on", "compiled": "on"}  # --capture
KINDS = (*BARE, *IN_TRAINING)
WARM_UP = 50  # steps that aren't timed


class Measurement(NamedTuple):
    case: str
    kind: str

    def __str__(self) -> str:
        return f"{self.case}, {self.kind}"


def steps(given: argparse.Namespace, record: Record, end: float) -> Ended:
    """Measure what is not measured yet, as far as time goes."""
    wanted = [Measurement(case, kind) for kind in KINDS for case in CASES]
    wanted.sort(key=lambda m: (m.kind == "compiled", CASES.index(m.case)))  # else case by case
    wanted = [m for m in wanted if any(word in str(m) for word in given.only)]
    todo = [m for m in wanted if str(m) not in record.done]
    print(f"steps: {len(todo)} of {len(wanted)} speeds are to be measured", flush=True)
    if given.dry_run or not todo:
        print(*todo, sep="\n", end="\n" * bool(todo))
        return Ended({})
    folder = given.out / "steps"
    lines = Lines(folder / "steps.jsonl")
    what = {key: getattr(given, key) for key in ("data", "data_dir", "device", "seconds")} | {"out": str(folder)}
    known = {name: one["result"]["images_per_s"] for name, one in record.done.items()}
    command = [sys.executable, str(Path(__file__).resolve()), str(lines.path), json.dumps([what, known, todo])]
    statuses = {str(m): INTERRUPTED for m in todo}

    def look() -> None:
        for line in lines.new():
            if "error" in line:
                statuses[line["name"]] = FAILED
                print(f"FAILED {line['name']}: {line['error']}", flush=True)
                continue
            statuses[line["name"]] = FINISHED
            record.add(line["name"], line["result"])
            print(f"{line['name']}: {line['result']['images_per_s']:,.0f} images/s", flush=True)

    ended = run_jobs([Job("steps", command)], record, folder, end, look=look)
    if ended.statuses["steps"] == FAILED:
        statuses["steps"] = FAILED
    return Ended(statuses, ended.signalled)


def steps_rows(records: Records) -> list[str]:
    rows = []
    for case in CASES:
        speeds = {
            kind: records[name]["result"]["images_per_s"] for kind in KINDS if (name := f"{case}, {kind}") in records
        }
        cells = [f"{speeds[kind]:,.0f}" if kind in speeds else "" for kind in KINDS]
        pairs = (("captured", "eager"), ("compiled", "captured"), ("captured", "bare graph"))
        cells += [f"{speeds[a] / speeds[b]:.2f}" if {a, b} <= speeds.keys() else "" for a, b in pairs]
        rows.append([case.replace(" no", ", float32").replace(f" {PRECISION}", f", {PRECISION}"), *cells])
    titles = ["case", "bare eager", "bare graph", "train.py eager", "captured", "compiled and captured"]
    titles += ["captured / eager", "compiled / captured", "captured / bare graph"]
    note = "Images/s, n = 1: bare on one fixed batch, channels-last, with fused SGD; train.py all in, with an epoch's checkpoint."
    return [*table(titles, rows), f"{note} {about(records)}"]


# In a child


def measure_all(path: Path, what: dict[str, Any], known: dict[str, float], todo: list[list[str]]) -> None:
    """Measure one after another, each added to the file as soon as it is known."""
    from cifar_dist.training.views import Views

    Views._write_page = Views._draw = lambda _: None  # type: ignore[method-assign] # they take longer than what is timed
    fail_where_a_run_warns()
    for measurement in (Measurement(*words) for words in todo):
        try:
            result = measure(measurement, what, known)
        except Exception as error:  # whatever it is, the others are still worth their time
            add_line(path, name=str(measurement), error=f"{type(error).__name__}: {error}")
            continue
        known[str(measurement)] = result["images_per_s"]
        add_line(path, name=str(measurement), result=result)


def measure(measurement: Measurement, what: dict[str, Any], known: dict[str, float]) -> dict[str, Any]:
    from benchmarks.loops import configure

    words, precision = measurement.case.split()
    case = Case.parse(words)
    where = {key: what[key] for key in ("data", "data_dir", "device")}
    config = configure(case.model, batch_size=case.batch_size, mixed_precision=precision, **where)
    if measurement.kind in BARE:
        step = bare_step(config, as_graph=measurement.kind == "bare graph")
        return {"images_per_s": images_per_s(step, config, what["seconds"]), "recipe": config.recipe}
    like = "bare" if measurement.kind == "eager" else "bare graph"  # which is about as fast
    speed = known.get(f"{measurement.case}, {like}", 1000.0)
    return in_training(config, measurement.kind, round(what["seconds"] * speed / config.batch_size), what["out"])


def bare_step(config: TrainConfig, as_graph: bool) -> Callable[[], None]:
    """Return a step on one batch in memory: forward, backward, SGD. On a CPU there is no graph."""
    from benchmarks.loops import plain_model
    from cifar_dist.models import memory_format

    device = torch.device("cuda" if config.device == "gpu" else "cpu")
    model = plain_model(config, 10).to(device)
    model.to(memory_format=memory_format(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    # Drawn on the CPU: after a capture that failed torch 2.11 draws nothing on a GPU.
    images = torch.randn(config.batch_size, 3, 32, 32).to(device).contiguous(memory_format=memory_format(model))
    targets = torch.randint(10, (config.batch_size,)).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == PRECISION):
            outputs = model(images)
        torch.nn.functional.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if not as_graph or device.type == "cpu":
        return step
    aside = torch.cuda.Stream()  # where the first steps are done, as torch's notes on graphs have it
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def images_per_s(step: Callable[[], None], config: TrainConfig, seconds: float) -> float:
    """Return the speed over about so many seconds after a warm-up, until the device has done the last step."""
    wait = torch.cuda.synchronize if config.device == "gpu" else lambda: None

    def timed(count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        return (time.perf_counter() - start) / count

    step()
    timed(3)
    count = max(5, round(seconds / timed(10)))
    return config.batch_size / timed(count)


def in_training(config: TrainConfig, kind: str, count: int, out: str) -> dict[str, Any]:
    """Return the speeds of train.py, in this process, over `count` steps or so after a warm-up; its folder is under `out`."""
    from cifar_dist.in_process import train

    if kind == "compiled":
        torch._dynamo.reset()
    count = max(2 * WARM_UP if config.device == "gpu" else 20, count)
    warm_up = max(WARM_UP, count // 4) if config.device == "gpu" else 5  # steps between lines, each with a checkpoint
    with tempfile.TemporaryDirectory(dir=out) as folder:
        options = {key: getattr(config, key) for key in ("model", "recipe", "batch_size", "mixed_precision", "device")}
        options |= {"data": config.data, "data_dir": config.data_dir, "output_dir": folder, "threads": 1}
        options |= {"steps": warm_up + count, "log_every": warm_up, "val_fraction": 0.0, "test": False}
        # No pauses but checkpoints, each right after a line.
        options |= {"eval_every": NEVER, "checkpoint_minutes": 0.0, "keep_checkpoints": NEVER, "wandb": "disabled"}
        run = train(**options, capture=IN_TRAINING[kind], compile=kind == "compiled")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        saved = [int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")]
        epoch_images = json.loads((run / "config.json").read_bytes())["dataset"]["train"]
    speeds = speeds_of_run(lines, warm_up, saved, epoch_images)
    return {key: speeds[key] for key in ("images_per_s", "without_pauses")} | {"recipe": config.recipe, "steps": count}


if __name__ == "__main__":
    measure_all(Path(sys.argv[1]), *json.loads(sys.argv[2]))
