"""SIGKILL at random moments: the final weights are those of a run that was never interrupted. KILLS=20 for a long soak."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers.runs import ROOT, Result, untimed

KILLS = int(os.environ.get("KILLS", "3"))
RUN = f"--model resnet20 --batch-size 32 --steps {40 * (KILLS + 1)} --limit-train 150 --limit-eval 40 --log-every 7 --checkpoint-minutes 0"


def start(world_size: int, folder, folders, data_dir) -> subprocess.Popen:
    script = [
        "train.py",
        *RUN.split(),
        "--data",
        str(folders),
        "--data-dir",
        str(data_dir),
        "--output-dir",
        str(folder),
    ]
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"] if world_size > 1 else []
    )
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, *script, "--threads", "1", "--ema-decay", "0.9"]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_again_and_again_a_run_ends_with_the_same_bytes(world_size, folders, data_dir, tmp_path):
    whole, killed = Result(0, tmp_path / "whole"), Result(0, tmp_path / "killed")
    assert start(world_size, whole.folder, folders, data_dir).wait(600) == 0
    generator, kills, steps = random.Random(world_size), 0, []
    while kills < KILLS:
        metrics = killed.folder / "metrics.jsonl"
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        run = start(world_size, killed.folder, folders, data_dir)
        deadline = time.monotonic() + 300
        while run.poll() is None and time.monotonic() < deadline:  # let it get a little further, then pull the plug
            if metrics.exists() and metrics.read_bytes().count(b"\n") > lines:
                break
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.4))
        assert run.poll() is None, "the run ended before the next kill; give it more steps"
        os.killpg(run.pid, signal.SIGKILL)
        kills += 1
        run.wait()
        kill_leftovers(killed.folder)
        steps.append(sorted(p.name for p in (killed.folder / "checkpoints").glob("step_*"))[-1:])
    assert start(world_size, killed.folder, folders, data_dir).wait(600) == 0
    assert kills == KILLS
    assert killed.weights() == whole.weights(), steps
    assert untimed(killed.metrics()) == untimed(whole.metrics())
    print(f"{kills} kills on {world_size} processes, newest checkpoint after each: {steps}")


def kill_leftovers(folder) -> None:
    """The launcher starts its workers in sessions of their own."""
    import psutil

    for process in psutil.process_iter():
        try:
            if str(folder) in process.cmdline():
                process.kill()
                process.wait(30)
        except psutil.Error:
            pass
