"""The fault harness finds nothing in a part of its tries, and would find what there is."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import faults

needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or platform.system() != "Linux", reason="faults are injected in C, on Linux: no gcc"
)


@pytest.mark.slow
@needs_gcc
def test_a_part_of_all_faults_loses_nothing_and_changes_nothing(tmp_path):
    command = [sys.executable, "benchmarks/faults.py", "--tries", "40", "--minutes", "2.5", "--work", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    tries = [json.loads(line) for line in (tmp_path / "tries.jsonl").read_text().splitlines()]
    assert len(tries) >= 10 and len({scenario for scenario, _, _ in tries}) > 2
    disturbed = [entry["said"][0][0] for _, _, entry in tries]
    assert sum(status != 0 for status in disturbed) > len(tries) / 4  # the faults were there


@pytest.mark.slow
@needs_gcc
def test_a_run_that_would_lose_something_is_found(tmp_path):
    """Checkpoints that are never synced, as they were before they were written well."""
    code = "import sys; sys.path.insert(0, 'benchmarks'); import faults; import os; from cifar_dist import files\n"
    code += "from cifar_dist.record import checkpoint\n"
    code += "checkpoint.write_synced = lambda path, data: path.write_bytes(data)\n"
    code += "faults.WRITES = ('cut',); faults.SCENARIOS = {'run': faults.Scenario('nothing', 'run', 'w', ('cut',))}\n"
    code += "sys.exit(faults.main(sys.argv[1:]))"
    script = tmp_path / "faults.py"
    script.write_text(code)
    command = [sys.executable, script, "--tries", "25", "--work", tmp_path / "work"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=None)
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr


def write_run(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "seconds": 1.5}\n')
    (folder / "summary.json").write_text('{"status": "finished", "seconds": 3}')
    torch.save({"model": {"w": torch.ones(3)}, "progress": {"step": 1, "seconds": 2.0}}, folder / "training.pt")
    np.savez(folder / "predictions-test.npz", logits=np.ones(3))
    return folder


def put(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda _: None, []),
        (put("metrics.jsonl", b'{"step": 1, "loss": 2.0, "seconds": 9}\n'), []),
        (put("metrics.jsonl", b'{"step": 1, "loss": 2.5, "seconds": 1.5}\n'), ["other metrics.jsonl"]),
        (put("model.safetensors", b"Weights"), ["other model.safetensors"]),
        (put("summary.json", b'{"status": "failed", "seconds": 3}'), ["other summary.json"]),
        (put("changes.diff", b"x"), []),
        (put(".partial-x", b""), ["left over .partial-x"]),
        (lambda folder: (folder / "summary.json").unlink(), ["missing summary.json"]),
        (lambda folder: torch.save({"model": {"w": torch.zeros(3)}}, folder / "training.pt"), ["other training.pt"]),
        (lambda folder: np.savez(folder / "predictions-test.npz", logits=np.zeros(3)), ["other predictions-test.npz"]),
    ],
)
def test_what_differs_between_two_run_folders_is_found(tmp_path, change, found):
    expected, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    change(other)
    assert faults.differences(expected, other) == found


def test_a_pulled_plug_takes_what_no_fsync_covered(tmp_path):
    for name in ("synced", "lost", "renamed", "metrics.jsonl"):
        (tmp_path / name).write_text("1\n2\n3\n")
    log = [("open", "synced"), ("write", "synced"), ("fsync", "synced"), ("open", "lost"), ("write", "lost")]
    log += [
        ("open", "before"),
        ("write", "before"),
        ("rename", f"before -> {tmp_path}/renamed"),
        ("write", "metrics.jsonl"),
    ]
    lines = [f"{k}\t{op}\t{path if ' -> ' in path else tmp_path / path}" for k, (op, path) in enumerate(log)]
    lines = [line.replace("before ->", f"{tmp_path}/before ->") for line in lines]
    (tmp_path / "log").write_text("\n".join([*lines, "99\twrite\tnever done"]) + "\n")
    faults.cut_power(tmp_path / "log")
    assert (tmp_path / "synced").read_text() == "1\n2\n3\n"
    assert (tmp_path / "lost").read_text() == (tmp_path / "renamed").read_text() == ""
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n2\n"
