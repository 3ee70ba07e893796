"""Sweeps: the points of a file, what is refused, the ranking; then sweeps of a small stand-in for train.py, and real ones."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from zlib import crc32

import pytest
import torch
import yaml
from helpers.runs import ROOT
from helpers.runs import Result as Run

from cifar_dist.__main__ import main
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FAILED, FINISHED, INTERRUPTED, WRONG_INPUT
from cifar_dist.options import resolve_train_config, to_words
from cifar_dist.processes import Children
from cifar_dist.recipes import ATTEMPTS, RECIPES
from cifar_dist.record.repeats import varying
from cifar_dist.sweep.file import OPTIONS, read_sweep
from cifar_dist.sweep.prepare import SHIPPED, SweepOptions, prepare, resolve
from cifar_dist.sweep.ranking import Result, rank
from cifar_dist.sweep.space import Parameter, Sweep, list_runs, unit
from cifar_dist.sweep.study import Runner, Study, exit_status, record, slot_environments

DRAWS = 1024


def parameter(text: str, method: str = "random") -> Parameter:
    """Read one parameter, of an option that takes numbers."""
    return read_sweep(f"{{method: {method}, parameters: {{lr: {{{text}}}}}}}", "x").parameters["lr"]


def draws(text: str, n: int = DRAWS) -> list:
    p = parameter(text)
    return [p.draw(unit(0, i, "lr")) for i in range(n)]


# ---- points


def test_a_grid_is_the_product_in_the_order_of_the_file():
    axes = {"lr": [0.3, 0.1], "batch-size": [64, 32, 16], "nesterov": [True, False]}
    file = {"method": "grid", "parameters": {name: {"values": values} for name, values in axes.items()}}
    runs = list_runs(read_sweep(yaml.safe_dump(file, sort_keys=False), "x"), {})
    expected = [(lr, size, nesterov, False) for lr, size, nesterov in product(*axes.values())]
    assert [tuple(run.values()) for run in runs] == expected
    assert list(runs[0]) == ["lr", "batch_size", "nesterov", "test"]
    assert list_runs(read_sweep(yaml.safe_dump({**file, "run_cap": 5}, sort_keys=False), "x"), {}) == runs[:5]


RANDOM = "{method: random, parameters: {lr: {min: 0.0, max: 1.0}, batch_size: {min: 1, max: 99}, epochs: {value: 1}}}"


def test_a_random_point_depends_on_the_seed_its_number_and_its_options_alone():
    sweep = read_sweep(RANDOM, "x")
    many = list_runs(sweep, {}, count=64)
    assert list_runs(sweep, {}, count=18)[17] == many[17]
    assert list_runs(sweep, {}, count=64) == many
    assert all(a != b for a, b in zip(list_runs(sweep, {}, count=64, seed=1), many, strict=True))
    assert len({run["lr"] for run in many}) == 64
    other_order = Sweep("random", dict(reversed(sweep.parameters.items())))
    assert list_runs(other_order, {}, count=64) == many  # as dicts
    fixed = list_runs(sweep, {"batch_size": 8}, count=64)
    assert [run["lr"] for run in fixed] == [run["lr"] for run in many]
    assert {run["batch_size"] for run in fixed} == {8}


def test_every_option_has_a_stream_of_its_own():
    assert len({crc32(name.encode()) for name in OPTIONS}) == len(OPTIONS)
    ranges = "{method: random, run_cap: 64, parameters: {lr: {min: 0.0, max: 1.0}, momentum: {min: 0.0, max: 1.0}}}"
    runs = list_runs(read_sweep(ranges, "x"), {})
    assert sum((run["lr"] < 0.5) == (run["momentum"] < 0.5) for run in runs) in range(20, 45)


def test_points_are_those_that_earlier_versions_drew():
    """A search that goes on must list the runs that it began with."""
    drawn = [unit(0, 1, "lr"), unit(0, 2, "lr"), unit(7, 1, "batch_size")]
    assert drawn == [0.9551160814013667, 0.6042276952426112, 0.574642736993423]


def test_draws_are_even_over_points_and_over_seeds():
    for numbers in ([unit(0, i, "lr") for i in range(DRAWS)], [unit(s, 3, "lr") for s in range(DRAWS)]):
        assert all(0 <= u < 1 for u in numbers)
        counts = [sum(int(8 * u) == k for u in numbers) for k in range(8)]
        assert min(counts) > DRAWS / 8 * 0.75, counts
        assert abs(fmean(numbers) - 0.5) < 0.03


def test_listed_values_come_as_often_as_their_probabilities_say():
    even = draws("values: [1, 2, 3, 4]")
    assert all(abs(even.count(value) / DRAWS - 0.25) < 0.05 for value in (1, 2, 3, 4))
    uneven = draws("values: [1, 2, 3], probabilities: [0.7, 0.0, 0.3]")
    assert abs(uneven.count(1) / DRAWS - 0.7) < 0.05
    assert uneven.count(2) == 0
    assert set(draws("value: 3")) == {3}


def test_whole_numbers_reach_both_ends_alike():
    numbers = draws("min: 2, max: 5")
    assert all(type(n) is int for n in numbers)
    assert all(abs(numbers.count(n) / DRAWS - 0.25) < 0.05 for n in (2, 3, 4, 5))
    assert set(numbers) == {2, 3, 4, 5}


def test_uniform_is_even_and_log_uniform_is_even_in_the_logarithm():
    for text, low, high, position in [
        ("min: 0.0, max: 2", 0.0, 2.0, lambda x: x / 2),
        ("distribution: uniform, min: 1, max: 3", 1, 3, lambda x: (x - 1) / 2),
        (
            "distribution: log_uniform_values, min: 0.0001, max: 1.0",
            1e-4,
            1.0,
            lambda x: math.log(x / 1e-4) / math.log(1e4),
        ),
    ]:
        numbers = draws(text)
        assert all(low <= x <= high for x in numbers)
        assert all(float(f"{x:.6g}") == x for x in numbers)
        quarters = [int(4 * position(x)) for x in numbers]
        assert all(abs(quarters.count(k) / DRAWS - 0.25) < 0.05 for k in range(4)), text


def test_q_uniform_gives_multiples_of_q_inside_the_range():
    numbers = draws("distribution: q_uniform, min: 10, max: 100, q: 32")
    assert set(numbers) == {32, 64, 96}
    assert all(type(n) is int for n in numbers)
    assert set(draws("distribution: q_uniform, min: 0.0, max: 0.3, q: 0.1")) == {0.0, 0.1, 0.2, 0.3}


def test_q_log_uniform_values_is_even_in_the_logarithm_and_gives_multiples_of_q():
    numbers = draws("distribution: q_log_uniform_values, min: 32, max: 256, q: 8")  # as W&B's own example has it
    assert set(numbers) <= set(range(32, 257, 8)) and {32, 256} <= set(numbers)
    assert abs(sum(n < 90.5 for n in numbers) / DRAWS - 0.5) < 0.05  # the middle is 32 * 8 ** 0.5


def test_values_become_the_words_that_train_reads():
    point = {"lr": 0.1, "nesterov": True, "test": False, "augment": ["crop", "flip"], "milestones": [], "epochs": None}
    expected = "--lr 0.1 --nesterov --no-test --augment crop flip --milestones none --epochs none"
    assert to_words(point) == expected.split()


def test_macros_are_filled_in_and_a_false_is_written_out():
    text = """
method: grid
parameters: {nesterov: {value: false}}
command: [accelerate, launch, --num_processes, 2, "${program}", "${args_no_boolean_flags}"]
"""
    words = read_sweep(text, "x").command_line({"nesterov": False}, "py", "t.py")
    assert words == ["accelerate", "launch", "--num_processes", "2", "t.py", "--no-nesterov"]
    usual = Sweep("grid", {})
    assert usual.command_line({"lr": 1}, "py", "t.py") == ["py", "t.py", "--lr", "1"]
    with_env = Sweep("grid", {}, command=("${env}", "A=1", "${interpreter}", "${program}", "${args}"))
    assert with_env.command_line({}, "py", "t.py") == ["/usr/bin/env", "A=1", "py", "t.py"]


def test_a_variable_of_the_environment_goes_into_the_command_or_is_missed(monkeypatch):
    text = f'method: grid\ncommand: ["${{env}}", "A=${{envvar:MINE}}", "${{program}}", "${{args}}"]\n{LR}'
    sweep = read_sweep(text, "x")
    monkeypatch.setenv("MINE", "some words")
    assert sweep.command_line({}, "py", "t.py") == ["/usr/bin/env", "A=some words", "t.py"]
    monkeypatch.delenv("MINE")
    with pytest.raises(UserError, match=r"the sweep's command has .*MINE.*, but MINE is not set"):
        sweep.command_line({}, "py", "t.py")


def test_folds_without_a_fold_are_all_of_them():
    sweep = read_sweep("{method: grid, parameters: {lr: {values: [1, 2]}, folds: {value: 3}}}", "x")
    runs = list_runs(sweep, {})
    assert [(run["lr"], run["fold"]) for run in runs] == list(product((1, 2), range(3)))
    assert [run["fold"] for run in list_runs(sweep, {"fold": 2})] == [2, 2]
    assert [run["fold"] for run in list_runs(sweep, {"folds": 2})] == [0, 1, 0, 1]
    assert "fold" not in list_runs(sweep, {"folds": None})[0]
    listed = read_sweep("{method: grid, parameters: {folds: {value: 3}, fold: {values: [0, 1, 2]}}}", "x")
    assert [run["fold"] for run in list_runs(listed, {})] == [0, 1, 2]
    assert [run["fold"] for run in list_runs(listed, {"folds": 2})] == [0, 1]


# ---- the ranking


def done(value: float) -> Result:
    return Result("finished", value)


def test_seeds_and_folds_are_averaged_and_the_rest_is_ranked():
    runs = [{"lr": lr, "seed": seed, "folds": 2, "fold": fold} for lr, seed, fold in product((1, 2), (0, 1), (0, 1))]
    results = [done(x) for x in (0.1, 0.2, 0.3, 0.6, 0.4, 0.4, 0.5, 0.5)]
    best, second = rank(runs, results, "maximize")
    assert (best.options, best.indices) == ({"lr": 2, "folds": 2}, (4, 5, 6, 7))
    assert best.mean == pytest.approx(0.45)
    assert best.std == pytest.approx(math.sqrt(4 * 0.05**2 / 3))
    assert second.mean == pytest.approx(0.3)
    assert second.std == pytest.approx(math.sqrt((0.04 + 0.01 + 0 + 0.09) / 3))
    assert [group.options["lr"] for group in rank(runs, results, "minimize")] == [1, 2]
    assert varying(runs) == ["lr", "seed", "fold"]


def test_groups_with_unfinished_runs_come_last_and_one_run_has_no_deviation():
    runs = [{"lr": 1, "seed": 0}, {"lr": 1, "seed": 1}, {"lr": 2, "seed": 0}, {"lr": 3, "seed": 0}]
    first, second, third = rank(runs, [done(0.9), Result("failed", None), done(0.5), done(0.6)], "maximize")
    assert [group.options["lr"] for group in (first, second, third)] == [3, 2, 1]
    assert (first.complete, third.complete, first.std) == (True, False, None)
    assert (third.mean, third.values) == (0.9, (0.9,))
    assert third.counts() == {"finished": 1, "failed": 1}


def test_a_run_that_a_random_search_drew_twice_counts_once():
    (group,) = rank([{"lr": 1, "seed": 0}] * 2 + [{"lr": 1, "seed": 1}], [done(0.2), done(0.2), done(0.8)], "maximize")
    assert (group.indices, group.values) == ((0, 1, 2), (0.2, 0.8))


# ---- what is refused

LR = "parameters: {lr: {values: [0.1, 0.2]}, epochs: {value: 1}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [", "x is not YAML: while parsing"),
        (b"\x89PNG\xff", "x is not YAML: "),
        ("", "x: a sweep file must be a mapping such as method: grid"),
        ("- 1", "a sweep file must be a mapping"),
        (LR, "unknown method 'None'. Choose one of: grid, random"),
        (f"method: gird\n{LR}", "unknown method 'gird'. Did you mean 'grid'?"),
        (f"method: bayes\n{LR}", "method bayes is not supported locally; use random"),
        (f"metod: grid\n{LR}", "unknown key 'metod'. Did you mean 'method'?"),
        (f"method: grid\nearly_terminate: {{type: hyperband}}\n{LR}", "early_terminate is not supported locally"),
        (f"method: grid\nrun_cap: 0\n{LR}", "run_cap must be a whole number greater than 0, got 0"),
        (f"method: grid\nrun_cap: many\n{LR}", "run_cap must be a whole number greater than 0, got 'many'"),
        ("method: grid", "parameters must be a mapping such as"),
        ("{method: grid, parameters: {learning_rate: {value: 1}}}", "unknown parameter 'learning_rate'"),
        ("{method: grid, parameters: {batchsize: {value: 1}}}", "Did you mean 'batch_size'?"),
        ("{method: grid, parameters: {batch-size: {value: 1}, batch_size: {value: 1}}}", "batch_size is there twice"),
        (
            "{method: grid, parameters: {optimizer: {parameters: {lr: {value: 1}}}}}",
            "options of train.py have no parts",
        ),
        ("{method: grid, parameters: {output_dir: {value: x}}}", "each run has a folder of its own"),
        ("{method: grid, parameters: {resume: {value: never}}}", "resumes always; leave it out"),
        (f"method: grid\nmetric: {{name: val/acc, goal: maximize}}\n{LR}", "Did you mean 'val/accuracy'?"),
        (f"method: grid\nmetric: {{name: val/loss}}\n{LR}", "goal of metric val/loss must be maximize or minimize"),
        (f"method: grid\nmetric: {{nam: val/loss}}\n{LR}", "unknown key of metric 'nam'. Did you mean 'name'?"),
        (f"method: grid\nmetric: val/loss\n{LR}", "metric must be a mapping such as"),
        (f'method: grid\ncommand: ["${{python}}", "${{args}}"]\n{LR}', "unknown macro '${python}'"),
        (f'method: grid\ncommand: ["${{args_no_hyphens}}"]\n{LR}', "${args_no_hyphens} is not supported locally"),
        (f'method: grid\ncommand: ["${{program}}"]\n{LR}', "command must be a list of words, ${args} among them"),
        (f"method: grid\ncommand: python train.py\n{LR}", "command must be a list of words"),
    ],
)
def test_a_wrong_file_is_refused_with_the_way_out(text, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_sweep(text, "x")
    assert str(error.value).startswith("x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("grid", "lr: 0.1", "parameter lr: it must be a mapping such as {value: 0.1}"),
        ("grid", "lr: {valeus: [1]}", "parameter lr: unknown key 'valeus'. Did you mean 'values'?"),
        ("grid", "lr: {value: 1, values: [1]}", "constant takes value, got value and values"),
        ("grid", "lr: {distribution: uniform}", "uniform takes min and max, got neither"),
        ("grid", "lr: {distribution: constant, values: [1]}", "constant takes value, got values"),
        ("grid", "lr: {min: 0.1, max: 1.0}", "a grid takes value or values, got min and max; use method random"),
        ("random", "lr: {min: 0.1}", "uniform takes min and max, got min"),
        (
            "random",
            "lr: {distribution: normal, min: 0, max: 1}",
            "normal is not supported locally; use one of: constant",
        ),
        ("random", "lr: {mu: 0, sigma: 1}", "unknown key 'mu'"),
        ("random", "lr: {min: 1.0, max: 0.1}", "min 1.0 must be less than max 0.1"),
        ("random", "lr: {min: 1e-3, max: 1.0}", "min of uniform must be a number; YAML reads 1e-3 as text"),
        ("random", "lr: {distribution: int_uniform, min: 1, max: 2.5}", "max of int_uniform must be a whole number"),
        ("random", "lr: {min: false, max: 1}", "min of uniform must be a number"),
        ("random", "lr: {min: 0.0, max: .inf}", "max of uniform must be a number"),
        ("random", "lr: {min: 0.0, max: 1" + 400 * "0" + "}", "max of uniform must be a number"),
        ("random", "lr: {distribution: log_uniform_values, min: 0, max: 1}", "must be greater than 0, got 0"),
        (
            "random",
            "lr: {min: 0.1, max: 1.0, q: 0.1}",
            "q has no effect with uniform; use distribution: q_uniform or q_log",
        ),
        ("random", "lr: {distribution: q_uniform, min: 1, max: 2, q: 0}", "q must be greater than 0, got 0"),
        ("random", "lr: {distribution: q_uniform, min: 1, max: 2, q: 5}", "no multiple of q 5 is in [1, 2]"),
        ("random", "lr: {values: [1, 2], probabilities: [0.5, 0.6]}", "probabilities must be 2 numbers"),
        ("random", "lr: {values: [1, 2], probabilities: [1.0]}", "probabilities must be 2 numbers"),
        ("grid", "lr: {values: [1, 2], probabilities: [0.5, 0.5]}", "probabilities have no effect with grid values"),
        ("grid", "lr: {values: []}", "values must be a list of at least one, got []"),
        ("grid", "lr: {values: 0.1}", "values must be a list of at least one, got 0.1"),
        ("grid", "lr: {value: [0.1, 0.2]}", "takes one value, got [0.1, 0.2]; use values: for several to try"),
        ("grid", "nesterov: {value: 1}", "parameter nesterov: takes true or false, got 1"),
        ("grid", "mixed_precision: {values: [no, bf16]}", "takes no False; YAML reads yes, no, on and off"),
        (
            "grid",
            "augment: {value: [crop, {a: b}]}",
            "a value is text, a number, true, false, null, or a list of words",
        ),
        ("grid", "lr: {value: 2026-01-01}", "a value is text, a number"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_way_out(method, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read_sweep(f"{{method: {method}, parameters: {{{text}}}}}", "x")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a sweep file of lenet on drawn images, and work in its folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(parameters: str, **keys) -> str:
        usual = {"model": {"value": "lenet"}, "epochs": {"value": 1}, "data": {"value": "synthetic"}}
        content = {"method": "grid", **keys, "parameters": {**usual, **yaml.safe_load(f"{{{parameters}}}")}}
        (tmp_path / "try.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return "try.yaml"

    return write


TEST_METRIC = {"name": "test/accuracy", "goal": "maximize"}


@pytest.mark.parametrize(
    ("parameters", "keys", "options", "message"),
    [
        ("lr: {values: [0.1, -1]}", {}, "", "run 1 (--lr -1): --lr must be greater than 0, got -1.0"),
        ("lr: {values: [0.1, fast]}", {}, "", "run 1 (--lr fast): --lr must be a number, got 'fast'"),
        ("model: {values: [lenet, resnet81]}", {}, "", "run 1 (--model resnet81): unknown model 'resnet81'"),
        ("augment: {value: [crop, flop]}", {}, "", "run 0: unknown augmentation 'flop'. Did you mean 'flip'?"),
        ("model_options: {value: a=1}", {}, "", "run 0: --model-options a=1: lenet has no options"),
        ("optimizer: {value: adam}, momentum: {value: 0.5}", {}, "", "--momentum has no effect with --optimizer adam"),
        ("fold: {value: 1}", {}, "", "one run holds out one fold"),
        ("folds: {value: 1}", {}, "", "run 0: --folds must be 2 or greater, got 1"),
        ("lr: {value: 1}", {}, "--data nowhere", "run 0: unknown data set 'nowhere'"),
        ("lr: {value: 1}", {}, "--val-fraction 0", "nothing is held out to measure val/accuracy on"),
        ("lr: {value: 1}", {"metric": TEST_METRIC}, "--no-test", "--no-test leaves nothing to rank by test/accuracy"),
        ("lr: {value: 1}", {}, "--resume never", "--resume has no effect: a sweep always goes on"),
        ("lr: {value: 1}", {}, "--index 1", "--index 1: the runs of try.yaml are 0 to 0"),
        ("lr: {value: 1}", {}, "--parallel 0", "--parallel must be greater than 0, got 0"),
        ("lr: {value: 1}", {}, "--index 0 --ranking", "--ranking and --index don't go together"),
        ("lr: {value: 1}", {}, "--index 0 --parallel 2", "--index and --parallel don't go together"),
        ("lr: {value: 1}", {}, "--dry-run --ranking", "--ranking and --dry-run don't go together"),
        ("lr: {value: 1}", {}, "--sweep-seed 1", "--sweep-seed has no effect with method grid"),
        ("lr: {value: 1}", {}, "--ranking", "no sweep was started in runs/try"),
        ("lr: {value: 1}", {}, "--output-dir /proc/x", "can't use /proc/x as the folder of the sweep"),
        ("lr: {value: 1}", {}, "--learning-rate 1", "unknown option '--learning-rate'"),
        ("lr: {value: 1}", {"method": "random"}, "", "give run_cap: 20 in the file, or --count 20"),
        ("lr: {value: 1}", {"program": "no.py"}, "", "there is no program no.py in"),
        ("lr: {value: 1}", {"command": ["speed", "${args}"]}, "", "there is no program speed; put its folder on PATH"),
    ],
)
def test_what_is_wrong_with_any_run_is_said_before_one_starts(write, capsys, parameters, keys, options, message):
    assert main(["sweep", write(parameters, **keys), *options.split()]) == WRONG_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "which sweep? Give its file first, or one of: ghasemi2024, sengar2024"),
        ("--dry-run", "which sweep?"),
        ("senger2024", "there is no file senger2024. Did you mean 'sengar2024'?"),
        ("sengar2024 ghasemi2024", "unexpected argument 'ghasemi2024'"),
    ],
)
def test_a_missing_file_is_asked_for_with_the_shipped_ones(capsys, argv, message):
    assert main(["sweep", *argv.split()]) == WRONG_INPUT
    assert message in capsys.readouterr().err


def dry_run(capsys, *argv: str) -> list[list[str]]:
    """The words that each run would be started with."""
    assert main(["sweep", *argv, "--dry-run"]) == FINISHED
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"run {int(line[4:8]):04d}" for line in lines]
    return [line.split()[2:] for line in lines]


def test_options_of_train_override_the_file_for_every_run(write, capsys):
    name = write("lr: {values: [0.1, 0.2]}, seed: {values: [0, 1]}")
    commands = dry_run(capsys, name, "--lr", "0.5", "--batch_size", "64", "--augment", "none")
    base = f"{sys.executable} {ROOT}/train.py --model lenet --epochs 1 --data synthetic --lr 0.5 --seed"
    rest = "--batch-size 64 --augment none --no-test --output-dir runs/try/000"
    assert commands == [f"{base} {i} {rest}{i} --resume auto".split() for i in range(2)]
    assert not Path("runs").exists()


def test_runs_at_a_time_share_the_cores_unless_told_otherwise(write, capsys, monkeypatch):
    monkeypatch.setattr("cifar_dist.sweep.study.default_threads", lambda: 9)
    name = write("lr: {value: 0.1}")
    assert "--threads" not in dry_run(capsys, name)[0]
    assert dry_run(capsys, name, "--parallel", "2")[0][-2:] == ["--threads", "4"]
    assert dry_run(capsys, name, "--parallel", "20")[0][-2:] == ["--threads", "1"]
    words = dry_run(capsys, name, "--parallel", "2", "--threads", "3")[0]
    assert words[words.index("--threads") + 1] == "3"
    assert words.count("--threads") == 1


def test_runs_see_the_test_images_for_a_test_metric_or_when_told_to(write, capsys):
    assert "--no-test" in dry_run(capsys, write("lr: {value: 1}"))[0]
    assert "--no-test" not in dry_run(capsys, write("lr: {value: 1}"), "--test")[0]
    assert "--no-test" not in dry_run(capsys, write("lr: {value: 1}", metric=TEST_METRIC))[0]


def test_each_of_several_runs_at_a_time_gets_a_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert slot_environments(1) == [{}]  # it may use all of them
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slot_environments(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slot_environments(3)] == ["5", "7", "5"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert slot_environments(2) == [{}, {}]


# ---- the shipped files


def shipped(name: str, **fixed) -> list[dict]:
    sweep = read_sweep(SHIPPED[name].read_text(), name)
    return resolve(list_runs(sweep, fixed), sweep.metric)


def test_ghasemis_sweep_is_his_table():
    runs = shipped("ghasemi2024")
    assert len(runs) == len(ATTEMPTS) == 15
    for number, run in enumerate(runs, start=1):
        config = resolve_train_config(run)
        assert config == RECIPES[f"ghasemi2024/{number}"](None)
        assert config.test and not config.val_fraction


def test_sengars_sweep_is_a_grid_with_five_folds():
    runs = shipped("sengar2024")
    assert len(runs) == 6 * 5
    settings = [(run["lr"], run["batch_size"], run["fold"]) for run in runs]
    assert settings == list(product((0.0003, 0.001, 0.003), (64, 128), range(5)))
    assert all(run["folds"] == 5 and run["test"] is False for run in runs)
    assert len(shipped("sengar2024", folds=3)) == 6 * 3


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_what_a_wandb_agent_can_run(name):
    """An agent draws the values and starts train.py with --key=value: no list, no fold left to us."""
    content = yaml.safe_load(SHIPPED[name].read_text())
    assert {"method", "metric", "parameters"} == set(content)
    assert set(content["metric"]) == {"name", "goal"}
    for description in content["parameters"].values():
        (values,) = ([v] if key == "value" else v for key, v in description.items())
        assert all(type(value) in (str, int, float, bool) for value in values)
    assert "folds" not in content["parameters"] or "fold" in content["parameters"]


# ---- the record of a folder


def study(folder: Path, lrs, **more) -> Study:
    return Study(Sweep("grid", {}), [{"lr": lr, **more} for lr in lrs], folder, "train.py")


def test_a_folder_belongs_to_one_list_of_runs_which_may_grow(tmp_path):
    record(study(tmp_path / "a", (1, 2), threads=1))
    record(study(tmp_path / "a", (1, 2, 3), threads=2))  # how the work is done may change
    record(study(tmp_path / "a", (1,)))
    assert [run["lr"] for run in json.loads((tmp_path / "a/sweep.json").read_text())["runs"]] == [1, 2, 3]
    with pytest.raises(UserError, match=r"run 2 in .*/a has --lr 3, not 4; use another --output-dir"):
        record(study(tmp_path / "a", (1, 2, 4)))
    with pytest.raises(UserError, match=r"run 0 in .*/a has --augment -, not crop flip; use another"):
        record(study(tmp_path / "a", (1, 2, 3), augment=["crop", "flip"]))


def test_a_run_that_goes_on_keeps_its_own_number_of_threads(tmp_path):
    ours = replace(study(tmp_path, (1, 2)), parallel=2)
    ours.run_folder(0).mkdir()
    (ours.run_folder(0) / "config.json").write_text("{}")
    assert ["--threads" in ours.command(index) for index in (0, 1)] == [False, True]


def test_tasks_that_start_at_once_agree_on_the_record(tmp_path):
    def start(i: int) -> str:
        try:
            record(study(tmp_path / "a", [i % 2] * (1 + i)))
        except UserError:
            return "refused"
        return "accepted"

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(start, range(16)))
    assert answers.count("accepted") == 8
    runs = json.loads((tmp_path / "a/sweep.json").read_text())["runs"]
    assert len(runs) in (15, 16)


# ---- sweeps of a stand-in for train.py

STAND_IN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

words = sys.argv[1:]
folder = Path(words[words.index("--output-dir") + 1])
lr = float(words[words.index("--lr") + 1])
behaviour = json.loads(os.environ.get("BEHAVIOUR", "{}")).get(folder.name, "finish")
folder.mkdir(parents=True, exist_ok=True)

def end(status, code=0, **more):
    summary = {"status": status, "synthetic": True, "val": None, "test": None, **more}
    (folder / "summary.json").write_text(json.dumps(summary))
    sys.exit(code)

def interrupted(number, frame):
    time.sleep(0.3)  # a checkpoint
    (folder / "signal").write_text(signal.Signals(number).name)
    end("interrupted", int(behaviour.partition(" ")[2] or 75))

print("starting", *words, "GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
with (folder.parent / "starts").open("a") as starts:
    starts.write(folder.name + " ")
if behaviour == "fail":
    print("error: no luck\\n", file=sys.stderr)
    sys.exit(2)
if behaviour == "garble":
    (folder / "summary.json").write_text("{")
    sys.exit(0)
if behaviour == "lie":
    sys.exit(0)
if behaviour.startswith("launch") and os.environ.get("LAUNCHED") is None:  # as accelerate launch: dies of a signal at once
    sys.exit(subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "LAUNCHED": "1"}).wait())
if behaviour.startswith(("wait", "launch")):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, interrupted)
    (folder / "ready").touch()
    time.sleep(30)
    sys.exit(1)
end("finished", val={"accuracy": lr, "loss": 1 / lr, "top2_accuracy": 1.0})
"""


@pytest.fixture
def stand_in(write, tmp_path, monkeypatch, capsys):
    """Sweep the stand-in over `--lr`; returns (status, what was printed). A run behaves as told, else it finishes."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def sweep(*argv: str, behaviour: dict[str, str] | None = None, lrs: str = "[0.1, 0.3, 0.2]", **keys):
        monkeypatch.setenv("BEHAVIOUR", json.dumps(behaviour or {}))
        name = write(f"lr: {{values: {lrs}}}", program="stand_in.py", **keys)
        status = main(["sweep", name, *argv])
        return status, capsys.readouterr().out

    return sweep


def starts() -> list[str]:
    """Which runs were started, in order."""
    return Path("runs/try/starts").read_text().split()


def test_how_far_a_sweep_is_counts_the_parts_of_running_runs_done_since_their_start(write, tmp_path):
    study = prepare(Path(write("lr: {values: [0.1, 0.2, 0.3]}")), SweepOptions(output_dir=str(tmp_path / "sweep")), {})
    told: dict[str, tuple[float, int]] = {}
    runner = Runner(study, Children(), Console(speaks=False))
    for index, before in ((1, 0.25), (2, 0.0)):
        runner.running[index] = (lambda *said, name=str(index): told.update({name: said})), before
    lines = [{"kind": "train", "step": step, "epoch": 1.0, "samples": 8 * step, "loss": 1.0} for step in (30, 50)]
    run = study.run_folder(1)
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"status": "running", "total_steps": 100}')
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runner.look(lambda *said: told.update({"all": said}), total=3, ended=1)
    assert told == {"1": (50, 100), "2": (0, 0), "all": (1.25, 3)}


def test_a_sweep_runs_each_once_and_ranks_them(stand_in):
    status, output = stand_in()
    assert (status, starts()) == (FINISHED, ["0000", "0001", "0002"])
    assert "run 0001 starts: --lr 0.3" in output
    assert re.search(r"run 0001 finished after 0:0\d: --lr 0.3  val/accuracy 30.00 %", output)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert rows == [
        ["1", "0001", "0.3", "1", "30.00 %", "1 finished"],
        ["2", "0002", "0.2", "1", "20.00 %", "1 finished"],
        ["3", "0000", "0.1", "1", "10.00 %", "1 finished"],
    ]
    head = next(line for line in output.splitlines() if "status" in line)
    assert re.findall(r"\w+", head)[:2] == ["rank", "folders"]
    assert "*** SYNTHETIC DATA" in output
    (line,) = [line for line in output.splitlines() if line.startswith("to train and test the best: ")]
    assert line.split(": ")[1] == "python stand_in.py --model lenet --epochs 1 --data synthetic --lr 0.3"
    ranking = json.loads(Path("runs/try/ranking.json").read_text())
    assert [
        (g["rank"], g["runs"], g["options"], g["n"], g["mean"], g["std"], g["status"]) for g in ranking["groups"]
    ] == [
        (1, [1], {"lr": 0.3}, 1, 0.3, None, {"finished": 1}),
        (2, [2], {"lr": 0.2}, 1, 0.2, None, {"finished": 1}),
        (3, [0], {"lr": 0.1}, 1, 0.1, None, {"finished": 1}),
    ]
    assert (ranking["metric"], ranking["synthetic"]) == ({"name": "val/accuracy", "goal": "maximize"}, True)
    log = Path("runs/try/0001.log").read_text()
    assert log.startswith(f"$ {sys.executable} ")
    assert "\nstarting --model lenet" in log


def test_a_command_that_cannot_be_started_fails_its_run_and_does_not_hang(stand_in, tmp_path):
    script = tmp_path / "run.sh"
    script.write_text("no first line that names an interpreter")
    script.chmod(0o755)
    status, output = stand_in("--parallel", "2", command=[str(script), "${program}", "${args}"])
    assert status == FAILED
    assert output.count("Exec format error") == 3


def test_a_run_with_a_damaged_summary_fails_and_the_others_go_on(stand_in):
    status, output = stand_in(behaviour={"0001": "garble"})
    assert (status, starts()) == (FAILED, ["0000", "0001", "0002"])
    assert "run 0001 failed with status 1" in output
    assert "1 damaged" in output


def test_a_second_start_runs_what_is_missing_only(stand_in):
    assert stand_in("--count", "2")[0] == FINISHED
    status, output = stand_in()
    assert (status, starts()) == (FINISHED, ["0000", "0001", "0002"])
    assert "2 of 3 runs are finished already" in output
    assert stand_in()[0] == FINISHED
    assert len(starts()) == 3


def test_a_run_that_fails_stops_no_other(stand_in):
    status, output = stand_in(behaviour={"0001": "fail", "0002": "lie"})
    assert (status, starts()) == (FAILED, ["0000", "0001", "0002"])
    assert re.search(r"run 0001 failed with status 2 after .*: --lr 0.3  error: no luck \(runs/try/0001.log\)", output)
    assert "run 0002 failed with status 1" in output  # it said 0, but left no result
    assert "failed: 0001 0002; the reasons are in runs/try/NUMBER.log" in output
    assert "2 of 3 lines have runs that are not finished, and no rank" in output
    assert "to train and test the best so far: " in output
    groups = json.loads(Path("runs/try/ranking.json").read_text())["groups"]
    assert [(group["rank"], group["runs"]) for group in groups] == [(1, [0]), (None, [1]), (None, [2])]
    assert stand_in()[0] == FINISHED
    assert starts()[3:] == ["0001", "0002"]


def test_seeds_are_one_line_and_the_winner_is_named_without_them(stand_in, capsys):
    stand_in("--augment", "none", lrs="[0.1]")
    _, output = stand_in("--output-dir", "runs/other", "--seed", "3", lrs="[0.1]")
    assert "--lr 0.1 --seed 3" in output.splitlines()[-1]
    name = "try.yaml"
    content = yaml.safe_load(Path(name).read_text())
    content["parameters"] |= {"seed": {"values": [0, 1]}, "folds": {"value": 2}}
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["sweep", name, "--output-dir", "runs/third"]) == FINISHED
    output = capsys.readouterr().out
    assert "│    1 │ 0000, 0001, 0002, 0003 │ 4 │ 10.00 % ± 0.00 % │ 4 finished │" in output
    assert output.splitlines()[-1].endswith("python stand_in.py --model lenet --epochs 1 --data synthetic --lr 0.1")


def test_index_runs_that_one_and_has_its_exit_status(stand_in):
    assert stand_in("--index", "1")[0] == FINISHED
    assert starts() == ["0001"]
    assert stand_in("--index", "1")[0] == FINISHED
    assert starts() == ["0001"]
    status, output = stand_in("--index", "2", behaviour={"0002": "fail"})
    assert (status, starts()) == (WRONG_INPUT, ["0001", "0002"])
    assert "rank" not in output
    assert not Path("runs/try/ranking.json").exists()
    status, output = stand_in("--ranking")
    assert (status, starts()) == (FINISHED, ["0001", "0002"])
    assert "│ 1 not started │" in output


def test_several_at_a_time_overlap_and_no_more_than_that(stand_in, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    behaviour = {"0000": "wait", "0001": "wait", "0002": "wait"}
    status, _ = signalled(
        signal.SIGTERM, "0000", "0001", sweep=lambda: stand_in("--parallel", "2", behaviour=behaviour)
    )
    assert status == INTERRUPTED
    assert sorted(starts()) == ["0000", "0001"]
    gpus = {Path(f"runs/try/000{i}.log").read_text().split("GPU ")[1].split()[0] for i in (0, 1)}
    assert gpus == {"0", "1"}


def signalled(number: signal.Signals, *ready: str, sweep):
    """Run `sweep` and send this process a signal once those runs wait for one."""
    files = [Path(f"runs/try/{name}/ready").absolute() for name in ready]

    def send() -> None:
        for _ in range(200):
            time.sleep(0.05)
            if all(file.exists() for file in files):
                os.kill(os.getpid(), number)
                return

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return sweep()
    finally:
        sender.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("behaviour", ["wait", "wait 0", "launch"])
def test_a_signal_reaches_the_runs_and_is_waited_for(stand_in, number, behaviour):
    """wait: ends with 75; wait 0: with 0, as under a launcher; launch: the launcher dies, the run takes its time."""
    handler = signal.getsignal(number)
    spent = time.process_time()
    status, output = signalled(number, "0001", sweep=lambda: stand_in(behaviour={"0001": behaviour}))
    assert status == INTERRUPTED
    assert sorted(set(starts())) == ["0000", "0001"]
    assert Path("runs/try/0001/signal").read_text() == number.name
    assert json.loads(Path("runs/try/0001/summary.json").read_text())["status"] == "interrupted"
    assert "run 0001 interrupted" in output
    assert "run 0002 starts" not in output
    assert "interrupted: 2 of 3 runs not at their end; the same command goes on with them" in output
    assert time.process_time() - spent < 2
    assert signal.getsignal(number) == handler
    status, _ = stand_in()
    assert (status, starts()[-2:]) == (FINISHED, ["0001", "0002"])


def test_index_says_that_its_run_was_interrupted(stand_in):
    sweep = lambda: stand_in("--index", "0", behaviour={"0000": "wait 0"})  # noqa: E731
    assert signalled(signal.SIGUSR1, "0000", sweep=sweep)[0] == INTERRUPTED


def test_a_program_may_be_started_through_others(stand_in):
    words = ["${env}", "MARK=1", "${interpreter}", "-B", "${program}", "${args}", "--deterministic"]
    status, output = stand_in(command=words, lrs="[0.1]")
    assert status == FINISHED
    assert Path("runs/try/0000.log").read_text().startswith(f"$ /usr/bin/env MARK=1 {sys.executable} -B ")
    assert "env MARK=1 python -B stand_in.py" in output


def test_a_signal_that_comes_while_a_run_is_being_started_reaches_it(tmp_path):
    with Children() as children:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert children.run(["sleep", "30"], tmp_path / "log", {}) == -signal.SIGUSR1


@pytest.mark.parametrize(
    ("status", "summary", "stopping", "meaning"),
    [
        (0, "finished", False, FINISHED),
        (0, "finished", True, FINISHED),
        (0, "interrupted", False, INTERRUPTED),
        (75, "interrupted", False, INTERRUPTED),
        (1, "interrupted", False, FAILED),  # of an earlier start
        (1, "interrupted", True, INTERRUPTED),
        (-15, "not started", True, INTERRUPTED),
        (-9, "running", False, FAILED),
        (2, "not started", False, WRONG_INPUT),
        (1, "failed", False, FAILED),
        (0, "not started", False, FAILED),
    ],
)
def test_what_the_status_of_a_run_means(status, summary, stopping, meaning):
    assert exit_status(status, summary, stopping=stopping) == meaning


# ---- real ones


@pytest.fixture
def small(folders, data_dir) -> list[str]:
    """Options of a small run on class folders."""
    where = ["--data", str(folders), "--data-dir", str(data_dir)]
    return [*where, "--batch-size", "32", "--limit-train", "64"]


def test_a_real_sweep_ranks_what_the_summaries_say_and_is_not_run_twice(write, small, capsys):
    argv = ["sweep", write("lr: {values: [0.0001, 0.05]}"), *small]
    assert main(argv) == FINISHED
    summaries = [json.loads(Path(f"runs/try/{i:04d}/summary.json").read_text()) for i in range(2)]
    assert [summary["status"] for summary in summaries] == ["finished"] * 2
    assert [summary["test"] for summary in summaries] == [None, None]
    values = [summary["val"]["accuracy"] for summary in summaries]
    expected = sorted(zip(values, (0, 1), (0.0001, 0.05), strict=True), key=lambda row: -row[0])
    ranking = json.loads(Path("runs/try/ranking.json").read_text())
    assert [(g["mean"], *g["runs"], g["options"]["lr"]) for g in ranking["groups"]] == expected
    output = capsys.readouterr().out
    assert f"val/accuracy {100 * values[0]:.2f} %" in output
    logs = [Path(f"runs/try/{i:04d}.log").read_bytes() for i in range(2)]
    assert main(argv) == FINISHED
    assert [Path(f"runs/try/{i:04d}.log").read_bytes() for i in range(2)] == logs
    assert "starts" not in capsys.readouterr().out
    best = ranking["best"].split()
    assert best[:2] == ["python", f"{ROOT}/train.py"]
    assert best[2:] == f"--model lenet --epochs 1 --data {small[1]} --lr {expected[0][2]}".split() + small[2:]


def start(folder: Path, *argv: str) -> subprocess.Popen:
    """Start a sweep in a process of its own."""
    words = [sys.executable, "-m", "cifar_dist", "sweep", *argv]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder)


def wait_for(pattern: str, folder: Path, sweep: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_sweep_that_is_stopped_half_way_ends_with_the_same_bytes(write, small, tmp_path):
    argv = [write("lr: {value: 0.05}, folds: {value: 2}"), *small, "--epochs", "60", "--output-dir"]
    assert start(tmp_path, *argv, "whole", "--parallel", "2").wait(300) == FINISHED
    sweep = start(tmp_path, *argv, "stopped", "--parallel", "2")
    wait_for("stopped/0001/checkpoints/step_*/manifest.json", tmp_path, sweep)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(60) == INTERRUPTED
    assert Run(0, tmp_path / "stopped/0001").json("summary.json")["status"] == "interrupted"
    assert start(tmp_path, *argv, "stopped").wait(300) == FINISHED  # one at a time has twice the threads, were they new
    for i in range(2):
        whole, stopped = (Run(0, tmp_path / folder / f"{i:04d}") for folder in ("whole", "stopped"))
        assert stopped.weights() == whole.weights()
        assert len(stopped.json("config.json")["starts"]) == 2 or i != 1
    rankings = [Run(0, tmp_path / folder).json("ranking.json")["groups"] for folder in ("whole", "stopped")]
    assert rankings[0] == rankings[1]
    assert [group["n"] for group in rankings[0]] == [2]


@pytest.mark.slow
def test_a_signal_reaches_the_processes_behind_a_launcher(write, small, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "launch/multi_cpu.yaml"),
    ]
    name = write("lr: {value: 0.05}", command=[*launcher, "${program}", "${args}"])
    sweep = start(tmp_path, name, *small, "--epochs", "5000")
    wait_for("runs/try/0000/checkpoints/step_*/manifest.json", tmp_path, sweep)
    sweep.send_signal(signal.SIGUSR1)  # which a launcher itself does not pass on
    assert sweep.wait(120) == INTERRUPTED
    assert Run(0, tmp_path / "runs/try/0000").json("summary.json")["status"] == "interrupted"


@pytest.mark.parametrize(
    "text",
    [
        "{method: random, run_cap: 100000000, parameters: {lr: {min: 0.1, max: 1.0}}}",
        f"{{method: grid, parameters: {{seed: {{values: {list(range(3000))}}}, split_seed: {{values: {list(range(3000))}}}}}}}",
    ],
)
def test_a_sweep_that_nobody_can_train_is_refused_at_once(text):
    with pytest.raises(
        UserError, match=r"00,000 points to try are more than 100,000; give fewer values, or --count 100"
    ):
        list_runs(read_sweep(text, "x"), {})
    assert len(list_runs(read_sweep(text, "x"), {}, count=3)) == 3
