"""`python -m cifar_dist latency`."""

import json
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_dist.__main__ import main
from cifar_dist.cli import latency as command
from cifar_dist.console import Console
from cifar_dist.inference import latency
from cifar_dist.inference.latency import Cell, measure, timed

FIELDS = {"batch_size", "compiled", "warmup_calls", "warmup_s", "first_call_ms", "calls", "images_per_s", "mean_ms"}
FIELDS |= {"p50_ms", "p90_ms", "p99_ms"}


@pytest.mark.parametrize("calls", [2, 10, 37, 1000])
def test_percentiles_are_numpys(calls):
    times = np.random.default_rng(calls).lognormal(-7, 1, calls)
    cell = Cell(8, False, (0.5,), tuple(times))
    for percent in (50, 90, 99):
        assert cell.percentile_ms(percent) == pytest.approx(1e3 * np.percentile(times, percent), rel=1e-12)
    assert cell.images_per_s == pytest.approx(8 * calls / times.sum())
    assert cell.to_dict()["mean_ms"] == pytest.approx(1e3 * times.mean())


class Clock:
    """A clock that goes on only while something is done; reading it costs nothing."""

    def __init__(self, durations) -> None:
        self.now, self.durations = 100.0, iter(durations)

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += next(self.durations)


def test_calls_go_on_until_the_time_is_over_and_the_least_are_done():
    clock = Clock([0.25] * 100)
    assert timed(clock.work, clock, 1.0, 2) == (0.25,) * 4
    clock = Clock([2.0, 3.0, 4.0, 5.0])
    assert timed(clock.work, clock, 1.0, 3) == (2.0, 3.0, 4.0)
    clock = Clock(count(1))
    assert timed(clock.work, clock, 7.0, 0) == (1.0, 2.0, 3.0, 4.0)


def test_a_cell_holds_what_each_call_took_and_the_warm_up_apart(monkeypatch):
    monkeypatch.setattr(latency, "LEAST_CALLS", 2)
    clock = Clock([5.0, 0.5, 0.5, *[0.25] * 100])

    seen: list[torch.Tensor] = []

    def probabilities(pixels: torch.Tensor) -> None:
        seen.append(pixels)
        clock.work()

    cell = measure(SimpleNamespace(probabilities=probabilities, side=32), 4, 1.0, clock=clock)
    assert cell == Cell(4, False, (5.0, 0.5, 0.5), (0.25,) * 4)
    assert cell.images_per_s == 16.0
    assert {(tuple(pixels.shape), pixels.dtype) for pixels in seen} == {((4, 3, 32, 32), torch.uint8)}


@pytest.fixture
def run(capsys):
    def run(*words: object) -> tuple[int, str, str]:
        status = main(["latency", *map(str, words), "--threads", "1"])
        return status, *capsys.readouterr()

    return run


def test_a_run_gets_a_table_json_and_a_picture_beside_its_weights(train, run):
    folder = train("--steps", "1").folder
    status, out, err = run(folder, "--batch-sizes", 8, 1, "--seconds", 0.02)
    assert (status, err) == (0, "")
    record = json.loads((folder / "latency.json").read_text())
    assert (record["model"], record["weights"]) == ("lenet", str(folder / "model.safetensors"))
    assert record["environment"]["threads_per_process"] == 1 and record["cpu"]
    assert record["environment"]["host"] in out and record["cpu"] in out
    cells = record["cells"]
    assert [cell["batch_size"] for cell in cells] == [1, 8] and record["compiled_differs_by"] is None
    for cell in cells:
        assert cell.keys() == FIELDS
        assert cell["warmup_calls"] >= 3 and cell["calls"] >= 10
        assert 0 < cell["p50_ms"] <= cell["p90_ms"] <= cell["p99_ms"]
        assert cell["images_per_s"] == pytest.approx(1e3 * cell["batch_size"] / cell["mean_ms"])
        assert any(
            line.split()[:2] == ["eager", str(cell["batch_size"])] and f"{cell['p99_ms']:,.3f}" in line
            for line in out.splitlines()
        )
    assert Image.open(folder / "latency.png").size[0] > 500


def test_a_models_name_measures_fresh_weights_and_writes_only_where_told(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("lenet", "--batch-sizes", 1, "--seconds", 0.01)[0] == 0
    assert list(tmp_path.iterdir()) == []
    status, out, _ = run("lenet", "--batch-sizes", 1, "--seconds", 0.01, "--output", "x.json")
    assert status == 0 and "fresh weights" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.png"]


@pytest.mark.parametrize(("load", "busy"), [(0.2, False), (3.0, True)])
def test_a_busy_machine_is_named(run, monkeypatch, load, busy):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    _, out, _ = run("lenet", "--batch-sizes", 1, "--seconds", 0.01)
    assert ("this machine is busy (load average 3.0 on 4 cores)" in out) == busy


def test_where_memory_ends_the_smaller_sizes_count(run, tmp_path, monkeypatch):
    def measure(_model, size, _seconds, compiled):
        if size > 2:
            raise MemoryError
        return Cell(size, compiled, (0.1,), (0.1,) * 10)

    monkeypatch.setattr(command, "measure", measure)
    status, out, _ = run("lenet", "--batch-sizes", 1, 2, 4, 8, "--output", tmp_path / "x.json")
    assert status == 0 and "out of memory at 4 images a call; larger batches are left out" in out
    assert [cell["batch_size"] for cell in json.loads((tmp_path / "x.json").read_text())["cells"]] == [1, 2]
    status, _, err = run("lenet", "--batch-sizes", 4)
    assert status == 2 and "there is no memory for 4 images a call" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which model?"),
        (["lenett"], "lenett is neither a run, nor a weights file, nor one of the models lenet"),
        (["./lenet"], "./lenet does not exist"),
        (["lenet", "--batch-sizes", "none"], "--batch-sizes must be numbers of 1 or greater"),
        (["lenet", "--batch-sizes", "0"], "--batch-sizes must be numbers of 1 or greater"),
        (["lenet", "--seconds", "0"], "--seconds must be greater than 0"),
        (["lenet", "--output", "a.png"], "--output a.png is for the JSON"),
    ],
)
def test_wrong_usage_is_one_line(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*words)
    assert status == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.slow
def test_every_size_is_compiled_however_many_there_are(run, tmp_path, monkeypatch):
    """Beyond eight, torch would run the rest as they are; and says so in a log that nobody reads."""
    sizes = list(range(1, 11))
    compiled: list[int] = []
    real = command.measure

    def measure(model, size, seconds, way):
        if way:
            frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            cell = real(model, size, seconds, way)
            compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - frames)
            return cell
        return real(model, size, seconds, way)

    monkeypatch.setattr(command, "measure", measure)
    output = tmp_path / "x.json"
    words = ["mlp", "--compile", "--seconds", 0.01, "--data-dir", tmp_path, "--output", output, "--batch-sizes", *sizes]
    status, out, _ = run(*words)
    assert status == 0 and "compiled, probabilities differ by" in out
    assert compiled == [1] * len(sizes)
    record = json.loads(output.read_text())
    assert [cell["compiled"] for cell in record["cells"]] == [False] * 10 + [True] * 10
    assert 0 <= record["compiled_differs_by"] < 1e-5


def test_how_far_compiled_answers_are_off_is_the_most_of_all_sizes(monkeypatch):
    off = {1: 0.125, 2: 0.25, 4: 0.0}
    model = SimpleNamespace(model=None, device=None, side=8, compiled=False)
    model.probabilities = lambda pixels: np.full((len(pixels), 2), 0.5) - model.compiled * off[len(pixels)]
    monkeypatch.setattr(command, "compile_model", lambda *_: setattr(model, "compiled", True))
    monkeypatch.setattr(command, "measure", lambda _, size, seconds, way: Cell(size, way, (seconds,), (seconds,)))
    options = command.LatencyOptions(batch_sizes=tuple(off), compile=True)
    found = list(command.measure_all(model, options, "data", Console(speaks=False)))
    assert [(cell.batch_size, cell.compiled) for cell, _ in found] == [(s, way) for way in (False, True) for s in off]
    assert [difference for _, difference in found] == [None, None, None, 0.125, 0.25, 0.25]
