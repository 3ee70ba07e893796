"""benchmarks/gpu.py, on a CPU: what is started, stopped and kept, and the rows."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import ROOT

from benchmarks import gpu, gpu_correctness, gpu_jobs, gpu_results, gpu_speed94, gpu_steps
from benchmarks.gpu_jobs import Job, Lines, Record, add_line
from cifar_dist.console import Console
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED
from cifar_dist.recipes import PUBLISHED
from cifar_dist.training import captured
from cifar_dist.training.views import Views


def given_for(out: Path, **options: Any) -> argparse.Namespace:
    given = gpu.read_options(["--cpu", "--out", str(out)])
    return argparse.Namespace(**vars(given) | options)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def seven() -> dict[str, int]:
    return {"value": 7}


# Jobs


def test_when_time_is_over_all_is_stopped_and_what_was_done_is_on_disk(tmp_path, capfd):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    codes = {"quick": "", "slow": "import time; time.sleep(600)", "stubborn": stubborn, "last": ""}
    jobs = [Job(name, python(code), seven) for name, code in codes.items()]
    record = Record("results", given_for(tmp_path, commit="abc"))
    start = time.monotonic()
    ended = gpu_jobs.run_jobs(jobs, record, tmp_path / "logs", start + 6, parallel=2, grace_s=3)
    assert time.monotonic() - start < 10
    assert ended.statuses == dict(zip(codes, [FINISHED, *[INTERRUPTED] * 3], strict=True)) and not ended.signalled
    done = json.loads((tmp_path / "results.json").read_text())
    assert list(done) == ["quick"] and done["quick"]["result"] == {"value": 7} and done["quick"]["parallel"] == 2
    assert done["quick"]["commit"] == "abc" and done["quick"]["hardware"]["torch"] == torch.__version__
    assert "quick done" in capfd.readouterr().out


def test_what_fails_says_why_at_once_and_is_not_kept(tmp_path, capfd):
    record = Record("results", given_for(tmp_path))
    jobs = [
        Job("broken", python("import sys; sys.exit('the reason')"), seven),
        Job("nothing", python(""), lambda: None),
    ]
    ended = gpu_jobs.run_jobs(jobs, record, tmp_path, time.monotonic() + 60)
    assert ended.statuses == {"broken": FAILED, "nothing": FAILED} and not record.done
    assert "the reason" in capfd.readouterr().out


def test_a_signal_from_outside_is_told_from_the_end_of_the_time(tmp_path):
    record = Record("results", given_for(tmp_path))
    jobs = [Job("own", python(f"import os; os.kill({os.getpid()}, {int(signal.SIGTERM)})")), Job("next", python(""))]
    ended = gpu_jobs.run_jobs(jobs, record, tmp_path, time.monotonic() + 60)
    assert ended.signalled and ended.statuses["next"] == INTERRUPTED


def test_records_of_another_machine_count_and_our_own_are_newer(tmp_path):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "steps.json").write_text(json.dumps({"a": {"result": 1}, "b": {"result": 2}}))
    given = given_for(tmp_path, records=earlier)
    Record("steps", given_for(tmp_path)).add("b", {"value": 3})
    record = Record("steps", given)
    assert record.done["a"] == {"result": 1} and record.done["b"]["result"] == {"value": 3}
    record.add("c", {})
    assert list(json.loads((tmp_path / "steps.json").read_text())) == ["a", "b", "c"]


def test_what_a_trial_without_a_gpu_measured_does_not_count_where_there_is_one(tmp_path, monkeypatch):
    Record("steps", given_for(tmp_path)).add("a", {})
    assert "a" in Record("steps", given_for(tmp_path)).done
    monkeypatch.setattr(gpu_jobs, "hardware", lambda: {"gpu": "a GPU"})
    assert not Record("steps", given_for(tmp_path)).done


def test_a_line_is_read_once_and_when_it_is_whole(tmp_path):
    lines = Lines(tmp_path / "new/lines.jsonl")
    assert lines.new() == []
    add_line(lines.path, a=1)
    with lines.path.open("a") as file:
        file.write('{"a"')
    assert lines.new() == [{"a": 1}] and lines.new() == []
    with lines.path.open("a") as file:
        file.write(": 2}\n")
    assert lines.new() == [{"a": 2}]


# The command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            "results",
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        ("steps --cpu --parallel 2", "--parallel 2 is for one of correctness, results"),
        ("steps --cpu -- --epochs 2", "is for results or speed94 alone"),
        ("--cpu -- --epochs 2", "is for results or speed94 alone"),
        ("--cpu --only lenet", "is for one part"),
        ("--cpu --script nowhere.py", "nowhere.py is not a file"),
        ("--cpu --records nowhere", "nowhere is not a folder"),
    ],
)
def test_what_can_not_be_measured_is_refused(words, message, capsys):
    assert gpu.main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_without_a_name_all_parts_get_their_share_of_the_time_in_order(tmp_path, monkeypatch, capsys):
    start, ends = time.monotonic(), {}
    monkeypatch.setattr(gpu, "decode", lambda _: None)
    for name, part in gpu.PARTS.items():

        def run(*given: Any, name: str = name) -> gpu_jobs.Ended:
            ends[name] = (given[2] - start) / 60
            return gpu_jobs.Ended({"one": FAILED if name == "steps" else INTERRUPTED})

        monkeypatch.setitem(gpu.PARTS, name, part._replace(run=run, rows=lambda _: []))
    assert gpu.do_all(given_for(tmp_path, minutes=7.0), start) == FAILED
    assert ends == pytest.approx({"correctness": 1.5, "steps": 2.5, "speed94": 4, "results": 7}, abs=0.1)
    assert "failed: one" in capsys.readouterr().out


def test_without_its_data_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "decode", lambda _: subprocess.Popen(python("import sys; sys.exit(2)")))
    monkeypatch.setitem(gpu.PARTS, "correctness", gpu.Part(lambda *_: gpu_jobs.Ended({}), lambda _: [], 3))
    assert gpu.do_all(given_for(tmp_path), time.monotonic()) == FAILED
    assert "steps needs data: cifar10 is not decoded" in capsys.readouterr().out


# Correctness


def test_a_test_stands_at_its_own_commit_only_and_a_skip_only_on_a_gpu():
    def record(outcome: str, gpu: str | None = "a GPU") -> dict[str, Any]:
        return {"result": {"outcome": outcome}, "commit": "abc", "hardware": {"gpu": gpu}}

    assert gpu_correctness.stands(record("passed"), "abc") and gpu_correctness.stands(record("skipped"), "abc")
    assert not any(gpu_correctness.stands(record("passed"), commit) for commit in ("def", "abc+", None))
    assert not gpu_correctness.stands(record("failed"), "abc")
    assert not gpu_correctness.stands(record("skipped", None), "abc")


FAILING = """
import os
def test_good(): pass
def test_bad(): assert 1 + 1 == 3
def test_end(): os._exit(9)
def test_never(): pass
"""


def test_a_failure_is_printed_with_its_traceback_and_a_test_that_ends_its_process_is_named(
    tmp_path, monkeypatch, capfd
):
    file = tmp_path / "test_these.py"
    file.write_text(FAILING)
    names = [f"{file.name}::test_{name}" for name in ("good", "bad", "end", "never")]
    monkeypatch.setattr(gpu_correctness, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_correctness, "listed", lambda _: dict.fromkeys(names, False))
    record = Record("correctness", given_for(tmp_path, commit="abc"))
    ended = gpu_correctness.correctness(
        record_given := given_for(tmp_path, commit="abc"), record, time.monotonic() + 60
    )
    short = {name.rpartition("_")[2]: status for name, status in ended.statuses.items()}
    assert short == {"good": FINISHED, "bad": FAILED, "end": FAILED, "never": INTERRUPTED}
    output = capfd.readouterr().out
    assert "assert (1 + 1) == 3" in output and "test_end: its process ended" in output
    assert [one["result"]["outcome"] for one in record.done.values()] == ["passed", "failed"]
    assert "1 | 1 | 0" in gpu_correctness.correctness_rows(record.done)[2]
    assert any("test_bad" in row for row in gpu_correctness.correctness_rows(record.done))
    again = gpu_correctness.correctness(
        argparse.Namespace(**vars(record_given) | {"dry_run": True}), record, time.monotonic() + 60
    )
    assert again.statuses == {} and "3 of 4 tests are to be run" in capfd.readouterr().out


@pytest.mark.slow
def test_every_test_for_a_gpu_is_listed_and_no_other(tmp_path):
    tests = gpu_correctness.listed(given_for(tmp_path, cpu=False))
    functions = {name.partition("[")[0].rpartition("/")[2] for name in tests}
    assert {
        "test_gpu.py::test_memory_stays_flat",
        "test_engine.py::test_on_a_gpu_stopping_and_going_on_changes_no_bit",
        "test_launch.py::test_a_config_starts_what_its_name_says",
    } <= functions
    assert not {"test_memory_stays_flat[cpu-6]", "test_what_fails_says_why_at_once_and_is_not_kept"} & {
        n.rpartition("::")[2] for n in tests
    }
    assert {name for name, slow in tests.items() if slow} >= {name for name in tests if "launch" in name}


# Steps


def test_the_bare_step_trains_and_its_speed_is_positive():
    from benchmarks.loops import configure

    config = configure("lenet", batch_size=4, device="cpu")
    for as_graph in (False, True):
        assert gpu_steps.images_per_s(gpu_steps.bare_step(config, as_graph), config, 0.05) > 0


@pytest.fixture
def measured(folders, data_dir, tmp_path, monkeypatch) -> Callable[..., list[dict[str, Any]]]:
    """Measure, in this process, and return the lines that say so."""
    for owner, name in ((Views, "_write_page"), (Views, "_draw"), (Console, "warn")):  # put back afterwards
        monkeypatch.setattr(owner, name, getattr(owner, name))
    what = {"data": str(folders), "data_dir": str(data_dir), "device": "cpu", "seconds": 0.01, "out": str(tmp_path)}

    def run(*todo: list[str]) -> list[dict[str, Any]]:
        gpu_steps.measure_all(tmp_path / "lines", what, {}, [*todo])
        return [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]

    return run


def test_speeds_of_train_py_are_measured_in_this_process_one_by_one(measured):
    first, wrong, last = measured(["lenet@32 no", "eager"], ["nothing@32 no", "captured"], ["lenet@32 no", "captured"])
    assert first["name"] == "lenet@32 no, eager" and last["name"] == "lenet@32 no, captured"
    assert all(0 < one["result"]["images_per_s"] <= one["result"]["without_pauses"] for one in (first, last))
    assert wrong["name"] == "nothing@32 no, captured" and "UserError" in wrong["error"]


def test_a_speed_of_steps_that_are_not_captured_after_all_is_none(measured, monkeypatch):
    monkeypatch.setattr(captured, "farthest", lambda *_: 7.0)
    failed, eager = measured(["lenet@32 no", "captured"], ["lenet@32 no", "eager"])
    assert "can't be captured" in failed["error"] and "result" not in failed
    assert eager["result"]["images_per_s"] > 0


def test_what_is_cheap_comes_before_what_is_compiled(tmp_path, capsys):
    gpu_steps.steps(given_for(tmp_path, dry_run=True), Record("steps", given_for(tmp_path)), 0)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 40 and all("compiled" in line for line in lines[32:])
    assert not any("compiled" in line for line in lines[:32])


def test_ratios_of_steps_are_of_the_same_case():
    speeds = {"bare": 100.0, "bare graph": 400.0, "eager": 80.0, "captured": 300.0}
    records = {f"lenet@4 no, {kind}": record_of({"images_per_s": speed}) for kind, speed in speeds.items()}
    rows = gpu_steps.steps_rows(records)
    assert rows[2] == "| lenet@4, float32 | 100 | 400 | 80 | 300 |  | 3.75 |  | 0.75 |"
    assert len(rows) == 2 + 8 + 1


# speed94


def test_the_published_script_is_named_as_it_was_run(tmp_path):
    log = tmp_path / "published-0.log"
    log.write_text("$ x\n")
    assert gpu_speed94.read_side(log, "default") is None  # it was stopped
    log.write_text('published {"seconds": 4.0, "tta_accuracy": 0.9}\n')
    runs = {"published-0": gpu_speed94.read_side(log, "default"), "ours-0": {"seconds": 2.0, "tta_accuracy": 0.8}}
    rows = gpu_speed94.speed94_rows({name: record_of(run or {}) for name, run in runs.items()})
    assert rows[2:4] == [
        "| ours | 80.00 % | 2.00 (2.00 to 2.00) | 1 |",
        "| published, without max-autotune, which took more than 60 s | 90.00 % | 4.00 (4.00 to 4.00) | 1 |",
    ]


@pytest.mark.parametrize(("seconds", "mode"), [(0, "max-autotune"), (60, "default")])
def test_compiling_that_takes_too_long_is_given_up(monkeypatch, seconds, mode):
    monkeypatch.setattr(gpu_speed94, "AUTOTUNE_S", 5.0)
    assert gpu_speed94.prepare(python(f"import time; time.sleep({seconds})"))["mode"] == mode


def test_without_the_script_ours_runs_alone_and_says_so(tmp_path, capsys):
    given = given_for(tmp_path, dry_run=True, seeds=2)
    gpu_speed94.speed94(given, Record("speed94", given), 0)
    lines = capsys.readouterr().out.splitlines()
    assert "no --script" in lines[1]
    assert lines[2:] == ["ours-0", "ours compiled-0", "ours-1", "ours compiled-1"]


# Results


def test_all_results_are_listed_cheapest_first_and_texts_in_float32(tmp_path, capsys):
    assert gpu.main(["results", "--dry-run", "--out", str(tmp_path), "--seeds", "2", "--", "--epochs", "3"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()[1:]]
    options = [dict(zip(words[2::2], words[3::2], strict=True)) for words in commands]
    assert [o["--seed"] for o in options] == ["0"] * (len(options) // 2) + ["1"] * (len(options) // 2)
    first = [(o["--recipe"], o["--model"], o["--mixed-precision"]) for o in options[: len(options) // 2]]
    assert first[-1] == ("he2016", "resnet110", "no") and ("li2024", "lenet", "no") in first
    assert all((precision == "bf16") == (recipe == "default") for recipe, _, precision in first)
    assert {(recipe, model) for recipe, model, _ in first} >= {key for key in PUBLISHED if key[0] != "speed94"}
    assert all(o["--epochs"] == "3" and o["--capture"] == "on" for o in options)
    assert not list(tmp_path.iterdir())


def test_as_many_runs_at_a_time_as_were_fastest_together(tmp_path, monkeypatch):
    record = Record("results", given_for(tmp_path))
    assert gpu_results.packed(record) == 0
    record.add("packing", {"1": 100.0, "2": 180.0, "4": 310.0, "8": 305.5})
    assert gpu_results.packed(Record("results", given_for(tmp_path))) == 4
    monkeypatch.setattr(gpu_results, "hardware", lambda: {"gpu": "another"})
    assert gpu_results.packed(Record("results", given_for(tmp_path))) == 0
    assert gpu_results.results_rows(record.done)[0].endswith("1: 100, 2: 180, 4: 310, 8: 306.")


def record_of(result: dict[str, Any], commit: str = "0123456789", date: str = "2030-01-02") -> dict[str, Any]:
    hardware = {"nvidia_smi": "A GPU, 1.2", "torch": "3.4", "cuda": "5.6"}
    return {"result": result, "commit": commit, "date": date, "parallel": 2, "hardware": hardware}


def test_rows_have_the_columns_of_the_table_in_the_docs():
    dataset = {"name": "CIFAR-10", "train": 50_000, "val": 0, "test": 10_000}

    def run(seed: int, accuracy: float, seconds: float) -> dict[str, Any]:
        kept = {"recipe": "li2024", "model": "lenet", "seed": seed, "precision": "no", "words": []}
        return {**kept, "seconds": seconds, "dataset": dataset, "test": {"accuracy": accuracy, "top2_accuracy": 0.75}}

    records = {"a": record_of(run(0, 0.5, 60.4)), "b": record_of(run(1, 0.52, 1234.5), date="2030-01-03")}
    titles, _, row, note = gpu_results.results_rows(records)
    assert titles in (ROOT / "docs/RESULTS.md").read_text()
    assert row == (
        "| `li2024` | lenet | 61 % | 51.00 ± 1.41 % | 75.00 ± 0.00 % | 2 | CIFAR-10, 50,000 / 0 / 10,000 "
        "| 60 to 1,234 s, 2 at a time | 0123456 | 2030-01-02, 2030-01-03 |"
    )
    assert note == "A GPU, 1.2, torch 3.4, CUDA 5.6; 0123456; 2030-01-02, 2030-01-03"


@pytest.mark.slow
def test_processes_are_timed_together(folders, data_dir):
    what = {"data": str(folders), "data_dir": str(data_dir), "device": "cpu", "levels": [1, 2]}
    totals = gpu_results.pack(what)
    assert list(totals) == [1, 2] and all(total > 0 for total in totals.values())


@pytest.mark.slow
def test_a_training_that_a_call_stopped_is_gone_on_with_by_the_next(folders, data_dir, tmp_path):
    words = ["results", "--cpu", "--data", str(folders), "--data-dir", str(data_dir), "--out", str(tmp_path)]
    words += ["--parallel", "1", "--only", "li2024-lenet-0", "--", "--epochs", "60", "--eval-every", "5"]
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *words]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True)

    run, first = tmp_path / "results/li2024-lenet-0", start()
    wait_for(run / "metrics.jsonl")
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=120)[0]
    assert first.returncode == 75 and "left for the next call: 1 of 1" in output
    second = start()
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 0 and "| `li2024`, --epochs 60 --eval-every 5 | lenet | 61 % |" in output
    starts = json.loads((run / "config.json").read_text())["starts"]
    assert len(starts) == 2 and 0 < starts[1]["from_step"] < 3600
    third = start()
    assert "0 of 1 runs are to be trained" in third.communicate(timeout=120)[0] and third.returncode == 0


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"there is no {path}"
        time.sleep(0.05)
