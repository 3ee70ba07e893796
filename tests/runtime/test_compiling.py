"""`--compile` changes how fast a step is, and what it computes by rounding alone."""

import os
import shutil

import pytest
import torch
from helpers.runs import Result, stop_after, torchrun, untimed
from safetensors.torch import load
from torch._dynamo.utils import counters

from cifar_dist.console import Console
from cifar_dist.training import engine, state
from cifar_dist.training.build import Trainer
from cifar_dist.training.warmup import distance

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler on this machine"
)
# 60 images: the last of an epoch's two batches is short.
SMALL = ["--limit-train", "60", "--limit-eval", "20", "--epochs", "2", "--lr", "0.001", "--log-every", "1"]
SMALL += ["--device", "cpu"]


@pytest.fixture
def fresh(train, monkeypatch):
    """Run train.py's command as if in a new process: what was compiled is kept on disk alone, where the command puts it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is as it was afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")

    def run(*options: str, name: str = "run") -> Result:
        torch._dynamo.reset()
        counters.clear()
        return train(*SMALL, *options, name=name)

    return run


def losses(result: Result) -> list[float]:
    return [line["loss"] for line in result.metrics("train")]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("model", ["lenet", "zhang"])  # without and with batch norm
def test_a_compiled_run_computes_what_the_eager_one_does(fresh, data_dir, model):
    eager, compiled = fresh("--model", model, name="eager"), fresh("--model", model, "--compile", name="compiled")
    assert compiled.status == 0
    assert (
        counters["stats"]["unique_graphs"] == 1
    )  # the usual micro-batch; the short one and evaluation run as they are
    assert (data_dir / "compiled").is_dir()
    # Fused sums have another order; batch norm divides by what may be small.
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)
    ours, theirs = load(compiled.weights()), load(eager.weights())
    for name, value in theirs.items():
        if "num_batches" in name:
            assert torch.equal(ours[name], value)  # the pass that compiles doesn't count
        else:
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_in_bf16_computes_what_the_eager_one_does(fresh):
    """speednet's pooling gave nan here: a compiler may compute a maximum anew, without the rounding it was compared with."""
    options = ["--model", "speednet", "--model-options", "width=24", "--mixed-precision", "bf16", "--augment", "shift"]
    eager, compiled = fresh(*options, name="eager"), fresh(*options, "--compile", name="compiled")
    assert compiled.status == 0
    assert losses(compiled) == pytest.approx(losses(eager), rel=0.02)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("options", "graphs"), [([], 1), (["--early-size", "20"], 2)])
def test_the_pass_that_compiles_leaves_no_trace_and_nothing_to_compile(fresh, monkeypatch, options, graphs):
    seen, compile_first = [], engine.compile_first

    def watched(trainer: Trainer, console: Console) -> None:
        state = trainer.state
        before = {name: value.clone() for name, value in state.model.state_dict().items()}
        compile_first(trainer, console)
        after = state.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert all(p.grad is None for p in state.model.parameters())
        assert not state.optimizer.state and not state.sums.vector.any()
        seen.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(engine, "compile_first", watched)
    assert fresh("--model", "zhang", "--epochs", "2", "--compile", *options).status == 0
    assert seen == [graphs] and counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("model", ["lenet", "zhang"])
def test_stopping_a_compiled_run_and_going_on_changes_no_bit(fresh, monkeypatch, model):
    options = ["--model", model, "--compile", "--ema-decay", "0.9"]
    whole = fresh(*options, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert fresh(*options, name="stopped").status == 75
    resumed = fresh(*options, name="stopped")
    assert resumed.weights() == whole.weights()
    assert untimed(resumed.metrics()) == untimed(whole.metrics())


@pytest.mark.slow
@needs_compiler
def test_processes_with_uneven_shares_and_with_none_compile_too(folders, data_dir, tmp_path):
    """Batches of 33 are 16 and 17 images; the last of an epoch, of one, leaves the first process without."""
    results = {}
    for name, options in (("eager", []), ("compiled", ["--compile"])):
        where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / name)]
        sizes = [*SMALL[2:], "--limit-train", "67", "--batch-size", "33", "--model", "lenet", "--threads", "1"]
        torchrun(2, ["train.py", *where, *sizes, *options])
        results[name] = Result(0, tmp_path / name)
    assert results["compiled"].json("config.json")["config"]["compile"] is True
    assert len(losses(results["eager"])) == 6
    assert losses(results["compiled"]) == pytest.approx(losses(results["eager"]), rel=1e-5)
    ours, theirs = (load(results[name].weights()) for name in ("compiled", "eager"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


def test_a_missing_compiler_is_one_line_and_status_2(train, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    for compiler in (None, "no-such-compiler"):
        if compiler:
            monkeypatch.setenv("CXX", compiler)
        else:
            monkeypatch.delenv("CXX", raising=False)
        result = train("--compile", "--device", "cpu")
        assert result.status == 2 and not result.folder.exists()
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line == (
            "error: --compile needs a C++ compiler on a CPU: install g++, name one in CXX, or leave --compile out"
        )


def test_a_run_keeps_whether_it_is_compiled(train, capsys):
    train("--steps", "1")
    assert train("--steps", "1", "--compile").status == 2
    assert "--compile" in capsys.readouterr().err


def wrongly(factor: float):
    """What compiles a model to something else."""

    def compile_model(model: torch.nn.Module, *_: object) -> None:
        model.compile(backend=lambda graph, _: lambda *x: tuple(out * factor for out in graph(*x)), dynamic=False)

    return compile_model


@pytest.mark.parametrize("factor", [1.5, float("nan")])
@pytest.mark.parametrize("options", [[], ["--exact-shards", "4"], ["--micro-batch-size", "8", "--model", "zhang"]])
def test_a_compiler_that_computes_something_else_is_not_used(fresh, monkeypatch, capsys, factor, options):
    eager = fresh(*options, name="eager")
    monkeypatch.setattr(state, "compile_model", wrongly(factor))
    capsys.readouterr()
    compiled = fresh(*options, "--compile", name="compiled")
    assert "where 0.05 is allowed: this run is not compiled" in " ".join(capsys.readouterr().out.split())
    assert untimed(compiled.metrics()) == untimed(eager.metrics())
    ours, theirs = load(compiled.weights()), load(eager.weights())
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_compiler_that_computes_the_same_is_used(fresh, monkeypatch, capsys):
    monkeypatch.setattr(state, "compile_model", wrongly(1.0))
    assert fresh("--compile").status == 0
    assert "compiled in" in capsys.readouterr().out and counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("model", ["lenet", "zhang"])  # without and with batch norm, whose momentum varies
def test_accumulation_compiles_once(fresh, monkeypatch, model):
    monkeypatch.setattr(state, "compile_model", wrongly(1.0))
    assert fresh("--model", model, "--micro-batch-size", "4", "--compile").status == 0
    assert counters["stats"]["unique_graphs"] == 1


def test_distances_of_gradients():
    one, other = (
        [torch.tensor(2.0), torch.ones(4), torch.full((4,), 1e-6)],
        [torch.tensor(2.0), torch.ones(4), torch.zeros(4)],
    )
    assert distance(one, one) == 0
    assert distance(other, one) == pytest.approx(
        2e-6 / 0.02, rel=0.1
    )  # a tensor of next to nothing counts as a hundredth
    assert distance([torch.tensor(2.0), 1.1 * torch.ones(4), one[2]], one) == pytest.approx(0.1)
    assert distance([torch.tensor(float("nan")), *one[1:]], one) == float("inf")
    assert distance(one, [torch.tensor(float("inf")), *one[1:]]) == 0
