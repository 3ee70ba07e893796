"""explain: what it says follows from what was measured, and the measurement does real steps, on one process and two."""

import json
from dataclasses import replace

import pytest

from cifar_dist.__main__ import main
from cifar_dist.cli.explain import record_lines, shares_of_record, step_lines, suggestion_line
from cifar_dist.config import TrainConfig
from cifar_dist.explain import suggestions
from cifar_dist.explain.suggestions import candidates
from cifar_dist.record.reader import RunRecord

CONFIG = TrainConfig(epochs=1, device="cpu")
NOTHING = "nothing that was tried is faster each time"


def test_a_record_says_how_much_of_its_time_was_steps(tmp_path):
    common = {"kind": "train", "epoch": 1.0, "loss": 1.0, "lr": 0.1}
    lines = [
        {**common, "step": 10, "samples": 1000, "images_per_second": 100.0, "seconds": 11.0},  # 10 s in steps
        {**common, "step": 15, "samples": 1500, "images_per_second": 50.0, "seconds": 25.0},  # and 10 more
        {"kind": "test", "step": 15, "epoch": 1.0, "samples": 1500, "loss": 1.0, "seconds": 40.0},
    ]
    record = shares_of_record(RunRecord(tmp_path, "finished", lines=lines))
    assert record == {"seconds": 40.0, "in_steps": 20.0, "lines": 2}
    assert "took 0:40: 50.0 % in steps, 50.0 % in validations" in record_lines(record)[0]
    assert "no training line" in record_lines(shares_of_record(RunRecord(tmp_path, "running")))[0]


def test_the_parts_of_a_step_are_shares_of_their_sum_and_operations_of_the_ceiling():
    found = {"step_s": 0.1, "batch_size": 50, "captured": False, "parts": {"optimizer": 0.02, "passes": 0.06}}
    found |= {"operations": 82.3, "inside": 0.75, "macs": 4e6, "ceiling": 8e9}
    found |= {"pauses": {"validation": 0.0, "checkpoint": 0.02}, "eval_every": 1, "steps_between": 20}
    lines = step_lines(found)
    assert "a step of 50 images takes 100 ms, eager: 500 images/s" in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == ["75.0", "25.0"]
    assert "75 % of its time is inside them, 25 % is Python" in lines[3]
    assert "4 of at most 16 GFLOP/s, 25.0 %" in lines[4]  # 500 images/s of 4 million multiply-accumulates each
    assert lines[5:] == ["beside steps: a checkpoint 20 ms"]


def test_validations_that_take_much_of_the_time_are_said_and_what_half_as_many_take():
    found = {
        "step_s": 0.1,
        "batch_size": 50,
        "captured": False,
        "parts": {"passes": 0.1},
        "operations": 9,
        "inside": 1.0,
    }
    found |= {"macs": 1, "ceiling": 1e9, "eval_every": 2, "steps_between": 20}
    assert "validations" not in step_lines({**found, "pauses": {"validation": 0.1}})[-1]  # 0.1 of 2.1 s
    assert "validations" not in step_lines({**found, "steps_between": None, "pauses": {"validation": 9.0}})[-1]
    line = step_lines({**found, "pauses": {"validation": 0.5}})[-1]  # 0.5 of 2.5 s, or of 4.5
    assert "one every 20 steps validations take 20 % of the time; with --eval-every 4 11 %" in line


def test_only_what_was_faster_each_time_is_suggested():
    threads = {"option": "--threads 2", "note": "", "times_as_fast": [1.5, 1.2], "problem": ""}
    once = {"option": "--mixed-precision bf16", "note": "less precise", "times_as_fast": [3.0, 1.0], "problem": ""}
    assert suggestion_line([once, threads]).startswith("try --threads 2: 1.50 and 1.20 times as fast")
    assert suggestion_line([once]) == NOTHING + " (--mixed-precision bf16: 3.00 and 1.00 times as fast)"
    failed = {"option": "--threads 4", "note": "", "times_as_fast": [9.0], "problem": "no"}
    assert suggestion_line([failed, once]) == NOTHING + " (--mixed-precision bf16: 3.00 and 1.00 times as fast)"
    assert suggestion_line([]) == NOTHING


def test_what_is_tried_is_what_the_run_does_not_do_already(monkeypatch):
    monkeypatch.setattr(suggestions.os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(suggestions, "computes_in_bf16", lambda: True)

    def names(config: TrainConfig, threads: int, world_size: int) -> list[str]:
        return [suggestion.option for suggestion in candidates(config, threads, world_size)]

    assert names(CONFIG, 2, 1) == ["--threads 4", "--threads 1", "--mixed-precision bf16"]
    assert names(replace(CONFIG, mixed_precision="bf16"), 8, 1) == ["--threads 4"]
    assert "--threads 4" not in names(CONFIG, 2, 4) and "--gradient-compression bf16" in names(CONFIG, 2, 4)
    assert names(replace(CONFIG, micro_batch_size=8), 1, 1)[-1] == "--micro-batch-size none"
    shards = names(replace(CONFIG, exact_shards=8), 1, 2)
    assert "--exact-shards none" in shards and not any("threads" in name for name in shards)


@pytest.mark.parametrize(
    ("words", "said"), [([], "which run?"), (["nowhere"], "nowhere is not a run folder"), (["--seconds", "0"], "0")]
)
def test_what_is_no_run_is_one_line(words, said, capsys):
    assert main(["explain", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_explained(train, capsys, monkeypatch):
    run = train("--epochs", "2")
    monkeypatch.setattr(
        "cifar_dist.cli.explain.candidates",
        lambda *_: [suggestions.Suggestion("--model mlp", replace(CONFIG, model="nonsense"))],
    )
    monkeypatch.setattr("cifar_dist.cli.explain.ROUNDS", 1)
    capsys.readouterr()
    assert main(["explain", str(run.folder), "--seconds", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "forward and backward passes" in out and "--model mlp can't be tried: unknown model 'nonsense'" in out
    assert "nothing that was tried is faster" in out
    step = json.loads((run.folder / "explain.json").read_text())["step"]
    assert step["threads"] == 1 and step["micro_batch"] == step["batch_size"] == 32
    assert (
        0.05 < step["inside"] <= 1 and step["operations"] > 40
    )  # of lenet: 10 parameters, 5 layers, forward and backward
    assert "exchange" not in step["parts"]


@pytest.mark.slow
def test_the_exchange_of_two_processes_is_a_part(folders, data_dir):
    from cifar_dist.cli.explain import measure

    config = replace(CONFIG, model="lenet", data=str(folders), data_dir=str(data_dir), threads=1, batch_size=32)
    found = measure(config, 2, 0.2, closely=True)
    assert found["parts"]["exchange"] > 0 and found["micro_batch"] == 16
