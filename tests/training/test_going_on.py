"""Training a finished run further, beginning with other weights, and ending early: by validation, or in time."""

import math
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import stop_after, untimed
from safetensors.torch import load

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.optim.schedule import Schedule
from cifar_dist.record.reader import read_run
from cifar_dist.replay.job import stretches
from cifar_dist.report.provenance import commands, quoted
from cifar_dist.text import seconds_of
from cifar_dist.training import engine, preemption, resume
from cifar_dist.training.preemption import Ballot, StopSignals


def test_a_finished_run_is_trained_further_in_a_copy_with_its_schedule_anew(train, capsys):
    short = train(name="short")
    before = short.weights(), short.metrics()
    resumed = train("--resume", str(short.folder), "--epochs", "5", name="longer")
    assert "trained further: schedule cosine begins anew at step 21" in capsys.readouterr().out
    assert resumed.status == 0 and resumed.json("config.json")["config"]["schedule_start"] == 21
    lines = resumed.metrics("train")
    assert lines[-1]["step"] == 35 and len(resumed.metrics("test")) == 1
    assert untimed(lines[: len(short.metrics("train"))]) == untimed(short.metrics("train"))
    config = replace(TrainConfig.from_dict(resumed.json("config.json")["config"]), schedule_start=0)
    alone = Schedule.from_config(config, 14, 7)  # as if the added epochs were a run of their own
    assert [line["lr"] for line in lines if line["step"] > 21] == [
        alone.lr_at(line["step"] - 22) for line in lines if line["step"] > 21
    ]
    assert (short.weights(), short.metrics()) == before
    assert train("--resume", str(short.folder), "--epochs", "5", name="longer").status == 0  # again: it is finished
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("schedule", ["cosine", "linear", "one_cycle", "multistep", "step"])
def test_steps_that_are_added_are_those_of_a_schedule_over_them_alone(schedule):
    config = TrainConfig(epochs=2, schedule=schedule, warmup=0.1, lr=0.4, step_epochs=1)
    further, alone = (Schedule.from_config(replace(config, schedule_start=n), n + 20, 10) for n in (30, 0))
    assert [further.lr_at(30 + step) for step in range(20)] == [alone.lr_at(step) for step in range(20)]


def test_one_schedule_over_all_steps_is_a_choice(train):
    short = train(name="short")
    options = (
        "--resume",
        str(short.folder),
        "--epochs",
        "6",
        "--schedule",
        "constant",
        "--lr",
        "0.01",
        "--warmup",
        "0",
    )
    longer = train(*options, "--schedule-start", "0", name="longer")
    assert longer.status == 0
    assert {line["lr"] for line in longer.metrics("train") if line["step"] > 21} == {0.01}


def test_a_longer_run_that_is_stopped_goes_on_to_the_same_weights(train, monkeypatch):
    short = train(name="short")
    options = ("--resume", str(short.folder), "--epochs", "5")
    whole = train(*options, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 26)
        assert train(*options, name="longer").status != 0
    assert train(*options, name="longer").weights() == whole.weights()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "5"], "--output-dir NEW --epochs 5 trains a copy further"),
        (["--epochs", "5", "--output-dir", "NEW", "--augment", "none"], "has --augment ['crop', 'flip'], not ()"),
        (["--epochs", "5", "--output-dir", "NEW", "--schedule-start", "4"], "--schedule-start 4 is neither 0 nor 21"),
        (["--epochs", "2", "--output-dir", "NEW"], "has done 21 steps, which is more than all 14"),
        (["--epochs", "5", "--output-dir", "NEW", "--lr", "0.2"], None),
    ],
)
def test_what_a_longer_run_may_change(train, tmp_path, capsys, options, said):
    short = train(name="short")
    options = [str(tmp_path / "new") if word == "NEW" else word for word in options]
    result = train("--resume", str(short.folder), *options, name="short")
    assert result.status == (2 if said else 0)
    assert not said or said in capsys.readouterr().err
    assert (tmp_path / "new").exists() == (said is None)


def test_a_schedule_begins_later_only_in_a_run_that_goes_on(train, capsys):
    assert train("--schedule-start", "5").status == 2
    assert "is for a run that is trained further" in capsys.readouterr().err


def test_weights_of_another_run_are_where_training_begins(train, monkeypatch, capsys):
    first = train(name="first")
    given = load(first.weights())
    seen = {}
    monkeypatch.setattr(
        engine, "train_step", lambda trainer, *_: seen.update(trainer.state.model.state_dict()) or pytest.fail("seen")
    )
    with pytest.raises(pytest.fail.Exception):
        train("--init-from", str(first.folder), "--ema-decay", "0.9", "--seed", "3", name="second")
    assert seen and all(torch.equal(tensor, given[name]) for name, tensor in seen.items())
    assert f"{len(given)} of {len(given)} tensors from" in capsys.readouterr().out


def test_a_head_for_other_classes_is_new(train, capsys):
    first = train("--data", "synthetic", "--limit-train", "100", "--limit-eval", "40", "--epochs", "1", name="first")
    second = train("--init-from", str(first.folder / "model.safetensors"), "--epochs", "1", name="second")
    assert second.status == 0
    out = capsys.readouterr().out
    assert "8 of 10 tensors from" in out and "(4, 84)" in out and "(4,)" in out


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "does not exist"),
        ("mlp", "of which less than half fits lenet"),
        ("picture", "is not a weights file"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_leave_no_folder(train, tmp_path, capsys, source, said):
    (tmp_path / "picture").write_bytes(b"\x89PNG" * 100)
    train("--model", "mlp", "--epochs", "1", "--no-test", name="mlp")
    assert train("--init-from", str(tmp_path / source), name="second").status == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "second").exists()


def test_patience_ends_a_run_and_tests_its_best_weights(train, monkeypatch, capsys):
    options = ("--epochs", "12", "--lr", "1e-9", "--schedule", "constant", "--warmup", "0", "--patience", "3")
    whole = train(*options, name="whole")  # nothing changes, so that the first validation stays the best
    summary = whole.json("summary.json")
    assert (summary["status"], summary["step"], summary["best_step"]) == ("finished", 28, 7)
    assert "no better validation in 3: training ends at step 28 of 84" in capsys.readouterr().out
    assert whole.metrics("test")[0]["step"] == 7
    with monkeypatch.context() as patch:
        stop_after(patch, 23)
        assert train(*options).status != 0
    assert untimed(train(*options).metrics()) == untimed(whole.metrics())


STILL = ("--epochs", "12", "--lr", "1e-9", "--schedule", "constant", "--warmup", "0")  # so that no validation is better


@pytest.mark.parametrize("before", [(), ("--patience", "9")])
def test_a_run_that_goes_on_may_have_another_patience(train, monkeypatch, before):
    whole = train(*STILL, "--patience", "3", name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 23)
        assert train(*STILL, *before).status != 0
    resumed = train(*STILL, "--patience", "3")
    assert untimed(resumed.metrics()) == untimed(whole.metrics())
    assert resumed.json("config.json")["config"]["patience"] == 3


@pytest.mark.parametrize("seed", range(64))
def test_a_patience_with_which_the_best_validation_would_have_been_missed_is_refused(seed, monkeypatch):
    draw = random.Random(seed)
    shares, patience = [draw.randrange(6) / 10 for _ in range(draw.randrange(1, 9))], draw.randrange(1, 5)
    best, since, seen = -1.0, 0, 0  # of a run that has it from the beginning
    while seen < len(shares) and since < patience:
        best, since, seen = max(best, shares[seen]), 0 if shares[seen] > best else since + 1, seen + 1
    lines = [{"kind": "val", "step": step, "accuracy": share} for step, share in enumerate(shares, start=1)]
    monkeypatch.setattr(resume.RunFolder, "read_metrics_until", lambda *_: lines)
    config = TrainConfig(epochs=12, patience=patience)
    start = resume.StartingPoint(Path("run"), config, recorded={}, saved=SimpleNamespace(step=len(shares)))
    refused = False
    try:
        assert resume.other_patience(start, config, {"patience": patience}) == ("patience",)
    except UserError as error:
        refused = True
        more = int(re.search(r"give (\d+) or more", str(error))[1])
        assert resume.other_patience(start, replace(config, patience=more), {"patience": more}) == ("patience",)
    assert refused == (max(shares) > best)


def test_a_longer_copys_patience_counts_from_where_it_began(monkeypatch):
    """Its last validation before is the copied run's; the one after that is the first that it may wait for in vain."""
    lines = [
        {"kind": "val", "step": n, "accuracy": share} for n, share in enumerate([0.5, 0.4, 0.4, 0.4, 0.6], start=1)
    ]
    monkeypatch.setattr(resume.RunFolder, "read_metrics_until", lambda *_: lines)
    for begun, least in ((0, 4), (1, 4), (2, 3), (3, 2), (4, 1)):
        for patience in range(1, 6):
            config = TrainConfig(epochs=12, patience=patience)
            recorded = {"further_from": begun}
            start = resume.StartingPoint(Path("run"), config, recorded=recorded, saved=SimpleNamespace(step=5))
            if patience >= least:
                assert resume.other_patience(start, config, {"patience": patience}) == ("patience",)
            else:
                with pytest.raises(UserError, match=f"give {least} or more"):
                    resume.other_patience(start, config, {"patience": patience})


def test_patience_needs_validation(train, capsys):
    assert train("--patience", "2", "--val-fraction", "0").status == 2
    assert "--patience 2 looks at validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("1d", 86400), ("1:30:00", 5400), ("2-00:00:10", 172810)]
    + [(text, None) for text in ("", "0", "0h", "-5m", "2 h", "1:90:00", "nan", "1e9", "soon")],
)
def test_times_are_read_as_people_and_slurm_write_them(text, seconds):
    assert seconds_of(text) == seconds


def test_time_is_up_early_enough_for_another_checkpoint(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(preemption, "seconds_since_start", lambda: 20.0)
    ballot = Ballot(StopSignals(), math.inf, 0, "2m")  # ends at 1100

    def stops_at(seconds: float) -> bool:
        now[0] = seconds
        return ballot.vote(1, torch.zeros((), dtype=torch.float64)).stop is not None

    assert not stops_at(1060)
    now[0] = 1070.0  # what was saved took ten seconds
    ballot.checkpoint_saved()
    assert not stops_at(1074.9)
    assert stops_at(1075.1)


def test_a_run_out_of_time_is_interrupted_and_goes_on(train, monkeypatch, capsys):
    whole = train(name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "seconds_since_start", lambda: 10.0)
        patch.setattr(preemption, "VOTE_EVERY_S", 0.0)
        stopped = train("--max-time", "1s")
    assert stopped.status == 75 and stopped.json("summary.json")["signal"] == "--max-time 1s"
    assert "interrupted by --max-time 1s after step 1, which is saved" in capsys.readouterr().out
    assert train().weights() == whole.weights()


def test_a_run_out_of_patience_that_is_trained_further_has_its_patience_back(train):
    still = ("--epochs", "12", "--lr", "1e-9", "--schedule", "constant", "--warmup", "0", "--patience", "2")
    short = train(*still, name="short")
    assert short.json("summary.json")["step"] == 21
    longer = train("--resume", str(short.folder), "--epochs", "20", name="longer")
    assert longer.json("summary.json")["step"] == 35  # two more validations that are no better
    assert longer.json("config.json")["further_from"] == 21


def test_what_the_copied_run_did_is_neither_gone_back_to_nor_verified_here(train, tmp_path, capsys):
    short = train("--keep-checkpoints", "9", name="short")
    longer = train("--resume", str(short.folder), "--epochs", "5", "--schedule-start", "0", name="longer")
    assert stretches(longer.json("config.json"), [0, 7, 14, 21, 28], [7, 14, 21, 28, 35]) == [(21, 28), (28, 35)]
    old = longer.folder / "checkpoints" / "step_00000014"
    assert train("--resume", str(old), "--epochs", "5", name="third").status == 2
    assert "step 14 was done by the run that was copied and trained further from step 21 on" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_a_run_of_steps_is_trained_further_by_epochs(train):
    short = train("--steps", "9", name="short")
    assert train("--resume", str(short.folder), "--epochs", "2", name="longer").json("summary.json")["step"] == 14


def test_the_command_of_a_longer_copy_is_its_own(train):
    short = train(name="short")
    longer = train("--resume", str(short.folder), "--epochs", "4", name="longer")
    record = read_run(longer.folder)
    assert commands(record)[-1].endswith(quoted(record.starts[1]["command"])) and len(record.starts) == 2
