"""Hung ranks are named, with where they are, by whoever still can; ranks that work are not."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.runs import ROOT

from cifar_dist.runtime import watch
from cifar_dist.runtime.watch import Beat, Listener, innermost

RUN = """
import sys
from cifar_dist.runtime import watch
watch.BEAT_S, watch.SILENCE_S, watch.STANDSTILL_S = 0.2, 3.0, 4.0
from cifar_dist.cli.train import main
from cifar_dist.exits import finish
finish(main(sys.argv[1:]))
"""


def beat(rank: int, count: int, step: int = 7, where: str = "training/step.py, backward", still_s: float = 0.0) -> dict:
    return vars(Beat(rank, count, step, where, still_s, f"node{rank}", 100 + rank))


def listen(monkeypatch, listener: Listener, now: float, *beats: dict) -> list[str]:
    monkeypatch.setattr(time, "monotonic", lambda: now)
    listener.hear(Beat(**beats[0]), *beats[1:])
    return listener.judge(now)


def test_a_rank_that_says_nothing_is_named_once_and_again_when_it_is_back(monkeypatch):
    listener, said = Listener(hears_all=True), {}
    for second in range(0, 120, 5):
        alive = second if not 20 < second <= 80 else 20
        said[second] = listen(monkeypatch, listener, second, beat(0, second), beat(1, second), beat(2, alive, step=6))
    assert {second: lines for second, lines in said.items() if lines} == {
        50: [
            "rank 2 on node2 (process 102) has said nothing for 30 s, and the others wait for it; "
            "it was at step 6, in training/step.py, backward"
        ],
        85: ["rank 2 on node2 (process 102) is back"],
    }


def test_a_standstill_names_who_is_where_after_one_minute_two_and_four(monkeypatch):
    listener, said = Listener(hears_all=True), {}
    for second in range(0, 300, 5):
        waiting = [beat(r, second, still_s=second + r) for r in (0, 2, 3)]
        said[second] = listen(
            monkeypatch, listener, second, *waiting, beat(1, second, where="data/dataset.py, gather", still_s=second)
        )
    text = "rank 1 at step 7, in data/dataset.py, gather; ranks 0, 2-3 at step 7, in training/step.py, backward"
    expected = {second: [f"no rank has moved for {second // 60}:00: {text}"] for second in (60, 120, 240)}
    assert {second: lines for second, lines in said.items() if lines} == expected


@pytest.mark.parametrize("hears_all", [True, False])
def test_ranks_that_are_at_the_same_place_or_move_are_left_in_peace(monkeypatch, hears_all):
    listener = Listener(hears_all)
    for second in range(0, 600, 5):
        same = [beat(r, 2 * second, where="training/evaluation.py, evaluate", still_s=second) for r in (0, 1)]
        assert listen(monkeypatch, listener, second, *same) == []
        moving = [
            beat(0, 2 * second + 1, still_s=second),
            beat(1, 2 * second + 1, where="elsewhere", still_s=second % 50),
        ]
        assert listen(monkeypatch, listener, second, *moving) == []


def test_one_that_does_not_hear_all_says_nothing_of_standstills(monkeypatch):
    listener = Listener(hears_all=False)
    beats = beat(1, 1, still_s=99), beat(0, 1, where="elsewhere", still_s=99)
    assert listen(monkeypatch, listener, 99, *beats) == []


def test_a_board_that_does_not_answer_is_said_once(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    listener = Listener(hears_all=False)
    assert listen(monkeypatch, listener, 100, beat(1, 1), beat(0, 1)) == []
    said = {second: listener.judge(second) for second in range(100, 200, 5)}
    assert {second: lines for second, lines in said.items() if lines} == {
        130: ["rank 0, or its launcher, has not answered at node0:29500 for 30 s, and the others wait for it"]
    }
    assert listen(monkeypatch, listener, 200, beat(1, 2), beat(0, 2)) == []
    assert len(listener.judge(230)) == 1


def test_where_a_thread_is_is_its_innermost_function_of_the_package():
    begun, over = threading.Event(), threading.Event()
    names = {"begun": begun, "over": over}
    path = Path(watch.PACKAGE, "training/step.py")
    exec(compile("def backward():\n    begun.set()\n    over.wait()\n", path, "exec"), names)
    thread = threading.Thread(target=names["backward"])
    thread.start()
    begun.wait()
    assert innermost(thread.ident) == "training/step.py, backward"
    over.set()
    thread.join()
    assert innermost(thread.ident) == "no function of this package"


@pytest.mark.slow
def test_a_hung_rank_of_a_real_run_is_named_whichever_it_is_and_the_run_goes_on(tmp_path, folders, data_dir):
    (tmp_path / "run.py").write_text(RUN)
    words = ["--model", "lenet", "--epochs", "4000", "--batch-size", "8", "--eval-every", "4000", "--threads", "1"]
    words += ["--device", "cpu", "--wandb", "disabled", "--output-dir", tmp_path / "run"]
    words += ["--data", folders, "--data-dir", data_dir]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launched |= {"PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, tmp_path / "run.py", *words],
            env={**os.environ, **launched, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=(tmp_path / f"{rank}.err").open("w"),
            text=True,
        )
        for rank in (0, 1)
    ]

    def says(rank: int, text: str) -> str:
        for _ in range(400):
            for line in (tmp_path / f"{rank}.err").read_text().splitlines():
                if text in line:
                    return line
            time.sleep(0.1)
        raise AssertionError((tmp_path / f"{rank}.err").read_text())

    try:
        assert any(line.startswith("step ") for line in iter(ranks[0].stdout.readline, ""))
        ranks[1].send_signal(signal.SIGSTOP)
        named = rf"\(process {ranks[1].pid}\) has said nothing for \d+ s, and the others wait for it; it was at step \d+, in "
        assert re.search(named, says(0, "rank 1 on "))
        ranks[1].send_signal(signal.SIGCONT)
        says(0, "is back")
        ranks[0].send_signal(signal.SIGSTOP)
        assert f"127.0.0.1:{port} for " in says(1, "rank 0, or its launcher, has not answered at")
        ranks[0].send_signal(signal.SIGCONT)
        for process in ranks:
            process.send_signal(signal.SIGTERM)
        for process in ranks:
            process.stdout.read()
        assert [process.wait(60) for process in ranks] == [75, 75]
    finally:
        for process in ranks:
            process.kill()
    for rank in (0, 1):
        said = (tmp_path / f"{rank}.err").read_text().splitlines()
        assert all(line.startswith("rank ") for line in said if "TCPStore" not in line), said
