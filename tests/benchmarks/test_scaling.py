"""The scaling benchmark: its formulas against numbers by hand and against searching, and a real run on two processes."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import ROOT

from benchmarks import scaling
from benchmarks.scaling import VARIANTS, Record, Task, Worker, tasks
from benchmarks.scaling_model import (
    INTERCONNECTS,
    Compute,
    Link,
    efficiency,
    fit_compute,
    fit_link,
    rounds,
    smallest_batch,
    step_s,
)
from cifar_dist.config import TrainConfig
from cifar_dist.data import load_dataset
from cifar_dist.models import build_model
from cifar_dist.runtime import accelerator

LINK = Link(latency_s=10e-6, bandwidth=1e9)
COMPUTE = Compute(overhead_s=1e-3, image_s=10e-6)


def test_an_all_reduce_takes_what_it_does_by_hand():
    # Four processes: 6 rounds, or 4 of halving and doubling, of 10 us; 2 * 3/4 of a megabyte at a gigabyte per second.
    assert LINK.all_reduce_s(1e6, 4) == pytest.approx(60e-6 + 1500e-6)
    assert LINK.all_reduce_s(1e6, 4, "halving") == pytest.approx(40e-6 + 1500e-6)
    assert LINK.all_reduce_s(1e6, 2) == pytest.approx(20e-6 + 1000e-6)
    assert LINK.all_reduce_s(1e6, 1) == 0
    assert (rounds(1024, "ring"), rounds(1024, "halving")) == (2046, 20)


def test_a_step_hides_as_much_of_the_all_reduce_as_it_computes_backwards():
    # 1 ms + 100 images of 10 us: 2 ms, of which 4/3 ms are backward pass.
    assert step_s(COMPUTE, 1e-3, 100) == pytest.approx(2e-3)
    assert step_s(COMPUTE, 3e-3, 100) == pytest.approx(2e-3 + 3e-3 - 4e-3 / 3)
    assert step_s(COMPUTE, 3e-3, 100, hidden=0.0) == pytest.approx(5e-3)
    assert efficiency(COMPUTE, 1e-3, 100) == pytest.approx(1 / 2)
    assert efficiency(COMPUTE, 3e-3, 100, hidden=0.0) == pytest.approx(1 / 5)


def test_no_smaller_batch_reaches_the_goal():
    for overhead_s, all_reduce_s, hidden, goal in itertools.product(
        (0.0, 1e-3, 0.02), (0.0, 5e-4, 7.3e-3, 0.05), (0.0, 0.4, 2 / 3), (0.5, 0.9, 0.97)
    ):
        compute = Compute(overhead_s, 1e-4)
        found = smallest_batch(compute, all_reduce_s, goal, hidden)
        assert efficiency(compute, all_reduce_s, found, hidden) >= goal * (1 - 1e-12)
        smaller = {1, 2, found // 3, found // 2, found - 2, found - 1} & set(range(1, found))
        assert all(efficiency(compute, all_reduce_s, b, hidden) < goal for b in smaller)
    assert smallest_batch(COMPUTE, 0.0, 0.9) == 900  # 9 ms of images for 1 ms of overhead


def measured_network(link: Link, noise: float = 0.0) -> list[tuple[int, int, float]]:
    factors = np.random.default_rng(0).lognormal(sigma=noise, size=100)
    points = [(p, 4 * 8**i) for p in (2, 3, 4) for i in range(9)]
    return [(p, n, link.all_reduce_s(n, p) * factor) for (p, n), factor in zip(points, factors, strict=False)]


def test_a_fit_finds_the_numbers_that_times_were_made_from():
    for link in (LINK, INTERCONNECTS["nvlink"].link, Link(2e-3, 5e7)):
        found = fit_link(measured_network(link))
        assert (found.latency_s, found.bandwidth) == pytest.approx((link.latency_s, link.bandwidth), rel=1e-4)
    found = fit_compute([(b, COMPUTE.step_s(b)) for b in (8, 32, 128)])
    assert (found.overhead_s, found.image_s) == pytest.approx((1e-3, 10e-6), rel=1e-4)


def test_noise_and_one_time_ten_times_too_long_hardly_move_a_fit():
    points = measured_network(LINK, noise=0.1)
    points[3] = (*points[3][:2], 10 * points[3][2])
    found = fit_link(points)
    assert (found.latency_s, found.bandwidth) == pytest.approx((LINK.latency_s, LINK.bandwidth), rel=0.1)


def test_times_that_do_not_grow_are_refused():
    with pytest.raises(ValueError, match="more images take no more time"):
        fit_compute([(1, 0.01), (2, 0.01), (4, 0.01)])


def test_nominal_bandwidths_are_bytes_per_second():
    bits = {name: known.link.bandwidth * 8 for name, known in INTERCONNECTS.items()}
    assert bits == {"nvlink": 3.6e12, "infiniband": 400e9, "ethernet100": 100e9, "ethernet10": 10e9}


def test_all_that_is_compared_is_measured():
    found = {p: tasks(p, 128, [8, 64], 1000) for p in (1, 2, 3)}
    assert {Task(1, 128), Task(1, 8), Task(1, 64), Task(1, 128, 2), Task(1, 128, 4)} == set(found[1])
    for p in (2, 3):
        steps = {replace(task, reduction="none") for task in found[p] if task.reduction == "ddp" and task.batch}
        assert {task for task in steps if task.micro_batches == 1} <= set(found[p])  # each with its computing alone
        assert {Task(p, 128, 1, variant) for variant in ("ddp", *VARIANTS)} <= set(found[p])
        assert Task(p, num_bytes=1000) in found[p]
        assert len(found[p]) == len(set(found[p]))


def test_a_step_has_the_batch_and_micro_batches_of_its_task_and_moves_no_weight(folders, data_dir):
    load_dataset(str(folders), data_dir)
    options = {"data": str(folders), "data_dir": str(data_dir), "threads": 1, "device": "cpu", "drop_last": True}
    config = TrainConfig(**options, model="lenet", epochs=1)
    accelerator.join(config)
    worker = Worker(config)
    bare, seen = worker.state("none").model, []
    bare.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    before = [p.clone() for p in bare.parameters()]
    for task, expected in ((Task(1, 24), [24]), (Task(1, 24, 2), [12, 12]), (Task(1, 100, 4), [25] * 4)):
        seen.clear()
        assert worker.seconds(task, 3) > 0
        assert worker.seconds(task, 2) > 0
        assert seen == expected * 5
    assert all(torch.equal(p, q) for p, q in zip(bare.parameters(), before, strict=True))


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., str]:
    """Run a command of the benchmark in this process, and return what it prints."""

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["scaling", *words])
        assert scaling.run(scaling.parse()) == 0
        return capsys.readouterr().out

    return run


def rows_of(output: str, title: str) -> list[list[str]]:
    """Return the words of each row of the table with this title."""
    lines = output[output.index(title) :].split("\n\n")[0].splitlines()
    return [line.split() for line in lines[2:]]


@pytest.mark.slow
def test_two_processes_are_measured_fitted_and_checked(folders, data_dir, tmp_path, command):
    load_dataset(str(folders), data_dir)
    path, where = tmp_path / "lenet.json", ["--data", str(folders), "--data-dir", str(data_dir)]
    small = ["--rounds", "2", "--seconds", "0.02", "--batch-size", "24", "--shares", "4", "48"]
    words = ["-m", "benchmarks.scaling", "measure", str(path), "--model", "lenet", *small, *where]
    result = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    output = command("show", str(path))
    assert output in result.stdout
    record = Record.read(path)
    gradient_bytes = 4 * sum(p.numel() for p in build_model("lenet", num_classes=4).parameters())
    assert record.gradient_bytes == gradient_bytes
    assert all(sum(buckets) == gradient_bytes for buckets in record.bucket_bytes.values())
    assert len(record.bucket_bytes["quarters"]) > len(record.bucket_bytes["one bucket"]) == 1
    assert set(record.times) == {task for p in (1, 2) for task in tasks(p, 24, [4, 48], gradient_bytes)}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in record.times.values())

    (strong,) = rows_of(output, "Strong scaling")
    alone, shared = record.times[Task(1, 24)], record.times[Task(2, 24, 1, "ddp")]
    ratios = sorted(x / (2 * y) for x, y in zip(alone, shared, strict=True))
    assert strong[3:] == [f"{sum(ratios) / 2:.3f}", f"({ratios[0]:.3f}", "to", f"{ratios[1]:.3f})"]

    compute, link = record.compute(2), record.link([2])
    checked = {(row[0], row[1]): row for row in rows_of(command("check", str(path)), "Predicted / measured")}
    assert set(checked) == {(p, share) for p in "12" for share in ("4", "48")} | {("1", "24"), ("2", "12")}
    predicted = step_s(compute, link.all_reduce_s(gradient_bytes, 2), 48, hidden=0.0)
    measured = record.times[Task(2, 96, 1, "ddp")]
    assert float(checked["2", "48"][3]) == pytest.approx(np.median([predicted / s for s in measured]), abs=1e-3)
    assert f"{link.bandwidth / 1e9:.3f}" in rows_of(command("fit", str(path)), "All-reduce as a ring")[0]

    rows = rows_of(command("predict", "--measured", str(path), "--interconnect", "infiniband"), "PREDICTED")
    assert [row[0] for row in rows[:11]] == [str(2**i) for i in range(11)]


def test_predictions_say_where_their_numbers_come_from_and_follow_the_formulas(command):
    words = "--model lenet --overhead-s 0.001 --seconds-per-image 0.00001 --batch-size 100 --hidden 0"
    output = command("predict", *words.split(), "--interconnect", "ethernet10")
    assert "as given" in output and "nominal: 10 Gb/s (IEEE 802.3ae)" in output and "none of it measured" in output
    rows = rows_of(output, "PREDICTED")
    # 62,006 parameters on 2 GPUs: 2 * 20 us + 248,024 B / 1.25 GB/s; a step of 50 images takes 1.5 ms more.
    sending_s = 40e-6 + 248_024 / 1.25e9
    images_per_s = 100 / (1.5e-3 + sending_s)
    assert rows[1][:4] == ["2", f"{1e3 * sending_s:.3f}", f"{images_per_s:,.0f}", f"{5e-4 / (1.5e-3 + sending_s):.1%}"]
    assert rows[7][2:4] == ["-", "-"]  # 128 GPUs for 100 images


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path):
    times = {Task(2, 128, 2, "ddp"): [0.25, 0.5], Task(2, num_bytes=4): [1e-5, 2e-5]}
    record = Record("lenet", 248_024, 128, [8], {"ddp": [248_024]}, 2, "2.14", "2026-01-01", times)
    record.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == record
    assert json.loads((tmp_path / "record.json").read_text())["times"][0]["seconds"] == [0.25, 0.5]
