"""What Weights & Biases costs a step: the same short training with --wandb disabled and another mode, alternately.

    python benchmarks/wandb_overhead.py --data FOLDER --repeats 5

Prints the time of a step by mode, without evaluation and checkpoints, and the ratio of each pair; the pairs' median is what to
report, since a shared machine's speed drifts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]


def microseconds_per_step(mode: str, options: argparse.Namespace, folder: Path) -> float:
    """Train once and return the mean time of a step over all but the first epoch, in microseconds."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--model",
        options.model,
        "--batch-size",
        str(options.batch_size),
    ]
    command += [
        "--data",
        options.data,
        "--data-dir",
        options.data_dir,
        "--epochs",
        str(options.epochs),
        "--threads",
        "1",
    ]
    command += ["--log-every", "10", "--no-test", "--wandb", mode, "--output-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    counted = [line for line in lines if line["kind"] == "train" and line["epoch"] > 1]
    return 1e6 * median(options.batch_size / line["images_per_second"] for line in counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="offline", choices=("auto", "online", "offline"))
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            off, on = (
                microseconds_per_step(mode, options, Path(folder, f"{repeat}-{mode}"))
                for mode in ("disabled", options.mode)
            )
            ratios.append(on / off)
            print(
                f"{repeat}: disabled {off:,.0f} us a step, {options.mode} {on:,.0f} us, ratio {on / off:.3f}",
                flush=True,
            )
    print(f"median ratio of {len(ratios)} pairs: {median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
