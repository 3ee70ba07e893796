"""Shows that a refactoring changes no number: small runs at two commits, compared bit for bit.

    python benchmarks/same_numbers.py OLD NEW [CASE ...]      # revisions as git has them; . is the working tree as it is

Each case is trained by train.py of both revisions on the same images, with the same options, one thread a process. Compared are
the lines of metrics.jsonl without their times, the predictions, and the weights. Exit status 0 if all are the same, else 1.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
CLASSES = ("bird", "cat", "dog", "ship")
TIMES = ("seconds", "images_per_second")
SMALL = "--batch-size 32 --epochs 3 --log-every 3 --threads 1 --seed 5"
RESNET = "--model resnet20 --limit-train 160 --epochs 2"
RESUMED = "--checkpoint-minutes 0 --keep-checkpoints 50"  # then from the middle of an epoch


class Case(NamedTuple):
    """One configuration."""

    options: str
    processes: int = 1
    resume_at: int | None = None  # a step whose checkpoint is gone on from, in another folder


CASES = {
    "lenet": Case("--model lenet"),
    "lenet on 3": Case("--model lenet", 3),
    "lenet adamw": Case("--model lenet --optimizer adamw --lr 0.001 --weight-decay 0.01"),
    "lenet resumed": Case(f"--model lenet --ema-decay 0.9 {RESUMED}", 1, 10),
    "accumulated": Case("--model lenet --micro-batch-size 5 --max-grad-norm 0.5"),
    "accumulated on 3": Case("--model lenet --micro-batch-size 3", 3),
    "dropout": Case("--model mlp --model-options dropout=0.2 width=64"),
    "mixup": Case("--model lenet --augment crop rotate trivial mixup --label-smoothing 0.1"),
    "resnet20": Case(f"{RESNET} --ema-decay 0.9"),
    "resnet20 on 3": Case(RESNET, 3),
    "resnet20 sync on 3": Case(f"{RESNET} --batch-norm sync", 3),
    "resnet20 exact": Case(f"{RESNET} --exact-shards 6"),
    "resnet20 exact on 3": Case(f"{RESNET} --exact-shards 6", 3),
    "muon": Case(
        "--model speednet --model-options width=24 --optimizer muon --lr 0.1 --augment shift alternate --schedule linear "
        "--warmup 0 --batch-size 100 --limit-train 200 --epochs 2 --early-size 24 --tta"  # 100: both had lr 0.1 for the rest
    ),
    "som": Case("--recipe pandey2020 --model som --model-options rows=4 columns=4"),
    "bf16": Case("--model zhang --mixed-precision bf16"),
}


def main(argv: Sequence[str]) -> int:
    """Compare the cases at two revisions; returns the exit status."""
    if len(argv) < 2 or (unknown := [name for name in argv[2:] if name not in CASES]):
        wrong = f"unknown case {unknown[0]!r}; one of: {', '.join(CASES)}" if len(argv) > 1 else "give OLD and NEW"
        print(f"error: {wrong}. {(__doc__ or '').splitlines()[2].strip()}", file=sys.stderr)
        return 2
    names, start = list(argv[2:]) or list(CASES), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, checkouts(argv[:2], Path(folder)) as trees:
        data = Path(folder, "images")
        write_images(data)
        different = 0
        for name in names:
            folders = [Path(folder, "runs", tree.name, name) for tree in trees]
            with ThreadPoolExecutor(2) as pool:
                runs = list(pool.map(train, trees, [CASES[name]] * 2, [data] * 2, folders))
            verdict = difference(*runs)
            different += bool(verdict)
            print(f"{name:24} {verdict or 'same'}", flush=True)
    count = f"{len(names) - different} of {len(names)} cases are the same"
    print(f"{count}: {argv[0]} and {argv[1]}, {time.monotonic() - start:.0f} s")
    return 1 if different else 0


@contextmanager
def checkouts(revisions: Sequence[str], folder: Path) -> Iterator[list[Path]]:
    """Check both revisions out beside each other."""
    trees = [folder / name for name in ("old", "new")]
    try:
        for revision, tree in zip(revisions, trees, strict=True):
            if revision == ".":
                tree.symlink_to(ROOT)
                continue
            done = git("worktree", "add", "--detach", str(tree), revision)
            if done.returncode:
                sys.exit(f"error: {revision}: {done.stderr.strip().splitlines()[-1]}")
        yield trees
    finally:
        for tree in trees:
            if not tree.is_symlink():
                git("worktree", "remove", "--force", str(tree))


def git(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)


def write_images(root: Path) -> None:
    """Write 240 training and 100 test images of noise, a colour for each class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 25)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                colour = 128 + 25 * np.array([number & 1, number >> 1, 0.5])
                pixels = rng.normal(colour, 50, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:04d}.png")


def train(tree: Path, case: Case, data: Path, folder: Path) -> Path | str:
    """Train and return the run folder, or the line with which the revision refuses."""
    where = ["--data", str(data), "--data-dir", str(folder.parents[1] / f"data-{tree.name}")]
    commands = [[*where, "--output-dir", str(folder), *SMALL.split(), *case.options.split()]]
    if case.resume_at:
        checkpoint = f"{folder}/checkpoints/step_{case.resume_at:08d}"
        folder = folder.with_name(f"{folder.name} again")
        commands.append(["--resume", checkpoint, "--output-dir", str(folder), *where])
    for command in commands:
        done = run_script(["train.py", *command], case.processes, tree)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith(("error:", "failed:"))]
            return (lines or done.stderr.splitlines()[-1:] or ["it said nothing"])[0]
    return folder


def run_script(words: Sequence[str], processes: int, tree: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script of a checkout to its end, in so many processes on the CPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *words]
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = str(tree)
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def difference(old: Path | str, new: Path | str) -> str:
    """Return in what two runs differ first; empty if in nothing."""
    if isinstance(old, str) or isinstance(new, str):
        return "; ".join(f"{which}: {run}" for which, run in (("OLD", old), ("NEW", new)) if isinstance(run, str))
    return (
        line_difference(lines_of(old), lines_of(new)) or prediction_difference(old, new) or weight_difference(old, new)
    )


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def line_difference(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> str:
    if len(old) != len(new):
        return f"{len(old)} lines in metrics.jsonl, {len(new)}"
    for a, b in zip(old, new, strict=True):
        for name in dict.fromkeys([*a, *b]):
            if a.get(name) != b.get(name):
                return f"{a['kind']} line of step {a['step']}: {name} {a.get(name)}, {b.get(name)}"
    return ""


def prediction_difference(old: Path, new: Path) -> str:
    for name in sorted({path.name for run in (old, new) for path in run.glob("predictions-*.npz")}):
        with np.load(old / name) as a, np.load(new / name) as b:
            if a["logits"].tobytes() != b["logits"].tobytes():
                return f"logits in {name} by up to {np.abs(a['logits'] - b['logits']).max():.3g}"
    return ""


def weight_difference(old: Path, new: Path) -> str:
    a, b = (load_file(run / "model.safetensors") for run in (old, new))
    if a.keys() != b.keys():
        return f"the names of tensors: {', '.join(sorted(a.keys() ^ b.keys()))}"
    for name, tensor in a.items():
        if tensor.tobytes() != b[name].tobytes():
            return f"{name} by up to {np.abs(tensor.astype(np.float64) - b[name]).max():.3g}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
