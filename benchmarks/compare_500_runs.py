"""Time `compare` on many runs: python benchmarks/compare_500_runs.py RUN_FOLDER [--runs 500] [--seeds 5].

Makes copies of one finished run, with other seeds, learning rates and results, and a training record of 20 epochs as
`--log-every 25` writes it; runs the command on them in a process of its own, start-up included.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EPOCHS, LINES_AN_EPOCH = 20, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run's folder, whose lines and predictions are copied")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5, help="runs of one configuration")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(given.runs):
            write_run(given.run, Path(folder) / f"{index:04d}", index // given.seeds, index % given.seeds)
        size = sum(path.stat().st_size for path in Path(folder).rglob("metrics.jsonl"))
        command = [sys.executable, "-m", "cifar_dist", "compare", folder]
        before = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        taken = time.perf_counter() - before
        page = (Path(folder) / "comparison" / "compare.html").stat().st_size
        print(
            f"{given.runs} runs of {given.seeds} seeds, {size / 1e6:.1f} MB of metrics.jsonl: "
            f"{taken:.1f} s, a page of {page / 1e6:.2f} MB"
        )


def write_run(source: Path, target: Path, point: int, seed: int) -> None:
    """Write a run of configuration number `point`."""
    noise = random.Random(f"{point} {seed}")
    target.mkdir()
    config, summary = (json.loads((source / name).read_bytes()) for name in ("config.json", "summary.json"))
    config["config"] |= {"seed": seed, "lr": (point + 1) / 1000, "epochs": EPOCHS}
    shift = noise.gauss(0, 0.005) - 0.0005 * point
    for split in ("val", "test"):
        summary[split] = moved(summary[split], shift)
    (target / "config.json").write_text(json.dumps(config, indent=1))
    (target / "summary.json").write_text(json.dumps(summary, indent=1))
    (target / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in record(source, shift)))
    predictions = source / "predictions-test.npz"
    if predictions.exists():
        shutil.copy(predictions, target)


def record(source: Path, shift: float) -> list[dict[str, Any]]:
    """Return the lines of a run of `EPOCHS` epochs, made from the source's last ones."""
    lines = [json.loads(line) for line in (source / "metrics.jsonl").open()]
    last = {line["kind"]: line for line in lines}
    images, found = last["train"]["samples"] / last["train"]["epoch"], []
    for count in range(1, EPOCHS * LINES_AN_EPOCH + 1):
        epoch = count / LINES_AN_EPOCH
        where = {"step": 25 * count, "epoch": epoch, "samples": round(images * epoch), "seconds": round(3.1 * count, 3)}
        found.append({**last["train"], **where, "loss": 2.3 / (1 + epoch)})
        if count % LINES_AN_EPOCH == 0:
            found.append({**moved(last["val"], shift), **where, "loss": 2.3 / (1 + 0.8 * epoch)})
    return [*found, {**moved(last["test"], shift), **where}]


def moved(result: dict[str, Any], shift: float) -> dict[str, Any]:
    """Return the result with all accuracies moved by `shift`."""
    classes = {name: share + shift for name, share in result["per_class_accuracy"].items()}
    return {**result, "accuracy": result["accuracy"] + shift, "per_class_accuracy": classes}


if __name__ == "__main__":
    main()
