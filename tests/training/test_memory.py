"""--micro-batch-size auto: what fits is measured, agreed on, recorded, and changes no step."""

import json

import pytest
import torch
from helpers.runs import stop_after, torchrun, untimed

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.training import memory
from cifar_dist.training.build import build

IMAGE = 51_000  # bytes, about, that a pass of lenet keeps of an image


def test_what_fits_into_memory_is_taken_and_the_step_stays(train, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2 * 11.5 * IMAGE)
    auto = train("--micro-batch-size", "auto", name="auto")
    chosen = auto.json("config.json")["config"]["micro_batch_size"]
    assert isinstance(chosen, int) and 5 <= chosen <= 20
    assert f"{chosen} of 32 images at once" in capsys.readouterr().out
    given = train("--micro-batch-size", str(chosen), name="given")
    assert untimed(auto.metrics()) == untimed(given.metrics()) and auto.weights() == given.weights()


def test_twice_the_memory_holds_twice_the_images(train, monkeypatch):
    chosen = []
    for free in (300_000, 600_000):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        run = train("--micro-batch-size", "auto", "--steps", "1", "--batch-size", "200", "--no-test", name=str(free))
        chosen.append(run.json("config.json")["config"]["micro_batch_size"])
    assert chosen[1] == pytest.approx(2 * chosen[0], abs=1)


@pytest.mark.parametrize("model", ["lenet", "zhang"])
def test_what_a_pass_keeps_is_in_proportion_to_its_images_and_nothing_of_the_model(folders, data_dir, model):
    config = TrainConfig(epochs=1, model=model, data=str(folders), data_dir=str(data_dir), batch_size=32, device="cpu")
    trainer = build(config, Console(speaks=False))
    before = {name: tensor.clone() for name, tensor in trainer.state.model.state_dict().items()}
    kept = [memory.kept_bytes(trainer, 0, range(count)) for count in (4, 8, 16)]
    assert kept == pytest.approx([kept[0], 2 * kept[0], 4 * kept[0]], abs=100)  # but for a number or two
    assert all(p.grad is None for p in trainer.state.model.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in trainer.state.model.state_dict().items())


def test_where_all_fits_nothing_is_accumulated(train):
    run = train("--micro-batch-size", "auto", "--steps", "1", "--no-test")
    assert run.json("config.json")["config"]["micro_batch_size"] is None


def test_where_nothing_fits_there_is_a_line(train, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    assert train("--micro-batch-size", "auto").status == 2
    assert "not even one image of lenet fits into the memory of cpu" in capsys.readouterr().err


def test_a_pass_that_runs_out_of_a_gpus_memory_does_not_fit(monkeypatch):
    class Nothing:
        def __getattr__(self, name: str) -> "Nothing":
            return self

        def __call__(self, **_: object) -> None:
            pass

    def runs_out(*_: object) -> int:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(memory, "kept_bytes", runs_out)
    assert not memory.fits(Nothing(), 0, range(4))
    monkeypatch.setattr(memory, "kept_bytes", lambda *_: 1)
    assert memory.fits(Nothing(), 0, range(4))


SCRIPT = """
import os, sys
from cifar_dist.cli import train
from cifar_dist.exits import finish
from cifar_dist.training import memory
memory.free_bytes = lambda _: (400_000, 250_000)[int(os.environ["RANK"])]
finish(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_rank_with_the_least_memory_decides(folders, data_dir, tmp_path):
    (tmp_path / "worker.py").write_text(SCRIPT)
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]
    how = ["--model", "lenet", "--steps", "2", "--threads", "1", "--batch-size", "64", "--micro-batch-size", "auto"]
    torchrun(2, [str(tmp_path / "worker.py"), *where, *how, "--no-test"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["micro_batch_size"] in (2, 3)


def test_what_auto_took_is_kept_when_the_run_goes_on(train, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2 * 11.5 * IMAGE)
    whole = train("--micro-batch-size", "auto", name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        train("--micro-batch-size", "auto")
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1e12)
    assert train("--micro-batch-size", "auto").weights() == whole.weights()
