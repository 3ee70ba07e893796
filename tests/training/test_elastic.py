"""Workers and agents that die under torchrun: what is left goes on from the last checkpoint, to the same bits."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers.runs import ROOT, Result, torchrun

pytestmark = pytest.mark.slow

SMALL = "--model lenet --batch-size 8 --steps 900 --limit-train 200 --eval-every 100 --threads 1 --exact-shards 4"
OFTEN = "--checkpoint-minutes 0"
PATIENCE_S = 500  # with what takes a tenth of it on a machine that does nothing else


@pytest.fixture(scope="module")
def options(folders, data_dir) -> list[str]:
    return [*SMALL.split(), "--data", str(folders), "--data-dir", str(data_dir)]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Result:
    """The run that nothing happened to, on one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    torchrun(1, ["train.py", *options, "--output-dir", str(folder)])
    return Result(0, folder)


def agent(folder: Path, options: list[str], *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", *words, "train.py", *options, *OFTEN.split()]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log").open("w") as log:
        return subprocess.Popen(
            [*command, "--output-dir", str(folder)],
            env=environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The agent's training processes, in order of their rank there."""
    children = psutil.Process(process.pid).children()
    return sorted((p for p in children if "train.py" in p.cmdline()), key=lambda p: int(p.environ()["LOCAL_RANK"]))


def wait_for(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it didn't happen"
        time.sleep(0.1)


def starts(run: Path) -> list[tuple[int, int]]:
    return [(s["from_step"], s["world_size"]) for s in Result(0, run).json("config.json")["starts"]]


@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_killed_worker_all_go_on_from_the_last_checkpoint(options, whole, tmp_path, rank):
    run = tmp_path / "run"
    process = agent(run, options, "--standalone", "--nproc_per_node=2", "--max-restarts=3")
    wait_for(lambda: [*run.glob("checkpoints/step_*/manifest.json")])
    workers(process)[rank].send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE_S) == 0
    assert {world_size for _, world_size in starts(run)} == {2}
    assert 0 < starts(run)[1][0] < 900
    assert (run / "model.safetensors").read_bytes() == whole.weights()


def test_with_an_agent_less_the_others_go_on_and_end_at_the_same_bits(options, whole, tmp_path):
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=1", "--local-addr=127.0.0.1")
    elastic = ("--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=3", *meeting)
    # The one that stays keeps the meeting place: without is_host whoever is the first to be there would.
    meet = "--rdzv-conf=last_call_timeout=15,is_host="
    first, second = (agent(run, options, *elastic, meet + is_host) for is_host in ("1", "0"))
    try:
        wait_for(lambda: [*run.glob("checkpoints/step_*/manifest.json")] and starts(run)[-1][1] == 2)
        for process in (*workers(second), psutil.Process(second.pid)):
            process.kill()
        assert first.wait(PATIENCE_S) == 0
    finally:
        for process in (first, second):
            for left in (process.pid,):
                if process.poll() is None:
                    os.killpg(left, signal.SIGKILL)
    assert [world_size for _, world_size in starts(run)][-2:] == [2, 1]
    assert (run / "model.safetensors").read_bytes() == whole.weights()


def test_without_an_output_dir_a_restart_goes_on_in_the_folder_of_the_launch(options, whole, tmp_path):
    words = [*options, *OFTEN.split(), "--data", str(Path(options[options.index("--data") + 1]).resolve())]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*launcher, str(ROOT / "train.py"), *words],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    wait_for(lambda: [*tmp_path.glob("runs/*/checkpoints/step_*/manifest.json")])
    training = [p for p in psutil.Process(process.pid).children() if "--max-restarts=3" not in p.cmdline()]
    training[0].send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE_S) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert starts(run)[1][0] > 0
    assert (run / "model.safetensors").read_bytes() == whole.weights()


def test_processes_whose_launcher_was_killed_save_and_stop(options, whole, tmp_path):
    folder = tmp_path / "run"
    process = agent(folder, options, "--standalone", "--nproc_per_node=2")
    wait_for(lambda: (folder / "metrics.jsonl").exists())
    ranks = workers(process)
    assert len(ranks) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in ranks))
    summary = Result(0, folder).json("summary.json")
    assert (summary["status"], summary["signal"]) == ("interrupted", "SIGTERM")
    (log,) = tmp_path.glob("run-*.log")
    assert log.read_text().count("the launcher is gone, so the run saves a checkpoint and stops") == 1
    torchrun(1, ["train.py", *options, "--output-dir", str(folder)])
    assert Result(0, folder).weights() == whole.weights()
