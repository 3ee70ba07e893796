"""`speed94` beside the published airbench94_muon.py: same data, same device, same number of threads, in turns.

    python benchmarks/speed94.py --script airbench94_muon.py --data FOLDER --steps 4 --rounds 5     time of a step, interleaved
    python benchmarks/speed94.py --script airbench94_muon.py --data FOLDER --full --rounds 3        whole runs: accuracy and time

The script is https://github.com/KellerJordan/cifar10-airbench at commit f1c599c (MIT), fetched by the user. On a GPU it runs as it
is, but for where its images come from, how many runs it does and, with --mode, how it is compiled; PORT lists all that changes on
a CPU, where it isn't compiled (compiled it was slower in every try, docs/EXPERIMENTS.md). A round is one process of each, the
order alternating.

Time is that of training and test-time-augmented evaluation, without imports, data loading and the script's own evaluation after
every epoch. In the interleaved part it is the time between two batches, plus an epoch's preparation shared out over its steps; our
steps are those of the second half of a run, with images of full size. The script computes in half precision on a GPU and in
float32 on a CPU; ours as its recipe says, in bf16 where the processor has it, or as --ours=--mixed-precision --ours=no says.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS_PER_EPOCH = 25
PORT = (  # (what the script says, what it says on a CPU)
    ("@torch.compile\n", ""),
    ("X = G.bfloat16()", "X = G.clone()"),
    ('torch.device("cuda")', 'torch.device("cpu")'),
    ("self.images.half()", "self.images.float()"),
    ("                mod.half()\n", "                mod.float()\n"),
    ("CifarNet().cuda()", "CifarNet()"),
    ('    model.compile(mode="max-autotune")\n', ""),
    ("torch.cuda.Event(enable_timing=True)", "Clock()"),
    ("        torch.cuda.synchronize()\n", ""),
)


class Clock:
    """What the script uses of torch.cuda.Event, for a CPU."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Clock") -> float:
        """Return milliseconds."""
        return 1e3 * (end.at - self.at)


def published(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run the script in this process, whole or for some steps, and return what it measured."""
    import numpy as np
    import torch

    from cifar_dist.data import load_dataset

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(options.threads)
        torch.set_flush_denormal(True)
    source = Path(options.script).read_text()
    changes = PORT if device == "cpu" else ()
    for old, new in changes:
        if old not in source:
            sys.exit(f"error: {options.script} has no {old!r}; it must be airbench94_muon.py of commit f1c599c")
        source = source.replace(old, new)
    dataset = load_dataset(options.data, Path(options.data_dir))
    Path("cifar10").mkdir()
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        content = {"images": torch.from_numpy(np.ascontiguousarray(split.pixels())), "labels": split.labels()}
        torch.save({**content, "classes": list(dataset.classes)}, f"cifar10/{name}.pt")
    sys.argv = [options.script]
    names: dict[str, Any] = {"__name__": "published", "Clock": Clock}
    exec(compile(source, options.script, "exec"), names)
    seen: dict[str, Any] = {}
    names["print_training_details"] = lambda variables, **_: seen.update(variables)
    torch.manual_seed(seed)
    model = names["CifarNet"]().to(device).to(memory_format=torch.channels_last)
    if device == "cuda":
        model.compile(mode=options.mode)
        names["main"]("warmup", model)
    if options.prepare:
        return {}
    if options.full:
        names["main"](seed, model)
        return {"seconds": seen["time_seconds"], "accuracy": seen["val_acc"], "tta_accuracy": seen["tta_val_acc"]}
    return {"step_s": time_steps(names, model, options.steps)}


def time_steps(names: dict[str, Any], model: Any, steps: int) -> float:
    """Return the seconds of a step of the script: the median time between two batches, and its share of an epoch's preparation."""
    times: list[float] = []
    loader = names["CifarLoader"]
    batches = loader.__iter__

    class EnoughError(Exception):
        pass

    def timed(self: Any) -> Any:
        times.append(time.perf_counter())
        for batch in batches(self):
            times.append(time.perf_counter())
            if len(times) > steps + 2:
                raise EnoughError
            yield batch

    loader.__iter__ = timed
    with suppress(EnoughError):
        names["main"](0, model)
    preparation, *between = [b - a for a, b in pairwise(times)]
    return median(between[1:]) + preparation / STEPS_PER_EPOCH


def ours(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run `train.py --recipe speed94`, whole or for some steps, and return what it recorded."""
    words = ["--recipe", "speed94", "--data", options.data, "--data-dir", options.data_dir, "--seed", str(seed)]
    words += ["--threads", str(options.threads), "--wandb", "disabled", "--output-dir", "run", *options.ours]
    if not options.full:
        words += ["--steps", str(options.steps + 1), "--log-every", "1", "--no-test", "--early-size", "none"]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    if not options.full:
        return {"step_s": median(2000 / line["images_per_second"] for line in train[1:])}
    summary = json.loads(Path("run/summary.json").read_text())
    return {"seconds": summary["seconds"], "tta_accuracy": summary["test"]["accuracy"]}


def child(which: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run one side in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--side",
            which,
            json.dumps(vars(options) | {"seed": seed}),
        ]
        cache = {"TORCHINDUCTOR_CACHE_DIR": options.cache} if options.cache else {}
        environment = {**os.environ, **cache}
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--data", default="cifar10", help="cifar10, or the absolute path of a folder")
    parser.add_argument("--data-dir", default="data", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--full", action="store_true", help="whole runs")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a round, without --full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--only", choices=("published", "ours"), help="one side alone, for accuracy")
    parser.add_argument(
        "--ours", nargs="*", action="extend", default=[], help="more options of ours, such as --ours=--compile"
    )
    parser.add_argument(
        "--mode", default="max-autotune", help="of torch.compile, for the script on a GPU: its own, or default"
    )
    parser.add_argument("--cache", help="where to keep compiled code (default: where torch and our runs keep it)")
    parser.add_argument("--prepare", action="store_true", help="only compile the script: with --only published")
    options = parser.parse_args()
    measured: dict[str, list[dict[str, Any]]] = {"published": [], "ours": []}
    for i in range(options.rounds):
        for which in ("published", "ours") if i % 2 == 0 else ("ours", "published"):
            if options.only in (None, which):
                measured[which].append(child(which, options, options.seed + i))
                print(which, json.dumps(measured[which][-1]), flush=True)
    if options.prepare:
        return
    key = "seconds" if options.full else "step_s"
    ratios = [a[key] / b[key] for a, b in zip(measured["published"], measured["ours"], strict=False)]
    if ratios:
        print(
            f"published / ours: min {min(ratios):.2f}  median {median(ratios):.2f}  max {max(ratios):.2f}  (n = {len(ratios)})"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:  # a child
        sys.path.insert(0, str(ROOT))
        given = argparse.Namespace(**json.loads(sys.argv[3]))
        print(json.dumps({"published": published, "ours": ours}[sys.argv[2]](given, given.seed)))
    else:
        main()
