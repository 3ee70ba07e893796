"""Captured steps: the same bits as eager ones on a CPU, where nothing is captured, and through a recording, as a graph is one."""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers.runs import stop_after, torchrun, untimed, words
from torch import Tensor
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.runtime import accelerator, launch
from cifar_dist.training import build, captured
from cifar_dist.training.captured import farthest, why_not

CASES = {
    "lenet": "--model lenet --lr 0.02",
    "an average": "--model lenet --ema-decay 0.9 --warmup 0.2",
    "clipped": "--model lenet --max-grad-norm 0.5 --nesterov",
    "adam": "--model lenet --optimizer adam --lr 0.001",
    "adamw, accumulated": "--model lenet --optimizer adamw --lr 0.001 --micro-batch-size 11",
    "batch norm, accumulated": "--model zhang --micro-batch-size 13 --batch-size 52",
    "shards": "--model zhang --exact-shards 3",
    "mixed, with dropout": "--model mlp --model-options dropout=0.3 --augment crop cutmix",
    "a map": "--model som --augment flip --label-smoothing 0 --lr 0.001",
    "muon, two sizes": "--recipe speed94 --model speednet --model-options width=24",
    "bf16": "--model lenet --mixed-precision bf16",
    "fp16": "--model lenet --mixed-precision fp16 --lr 0.02 --max-grad-norm 1 --limit-train 120",
    "fp16, muon": "--model lenet --mixed-precision fp16 --optimizer muon --lr 0.02 --limit-train 120",
}
ONLY_SMALL = ["--log-every", "2", "--val-fraction", "0.1"]


def small(case: str) -> list[str]:
    options = [*CASES[case].split(), *ONLY_SMALL]
    return [*options, "--early-size", "24", "--batch-size", "64"] if "two sizes" in case else options


@pytest.fixture(autouse=True)
def _fp16_on_a_cpu(monkeypatch):
    """Let --mixed-precision fp16 compute in it here too, with a loss scale that soon overflows, and again each time it grows."""

    def in_fp16(config: TrainConfig) -> Accelerator:
        if config.mixed_precision != "fp16":
            return accelerator.accelerate(config)
        found = accelerator.accelerate(replace(config, mixed_precision="no"))
        found.state._mixed_precision, found.native_amp = "fp16", True
        found.scaler = GradScaler("cpu", init_scale=2.0**20, growth_interval=1)
        return found

    monkeypatch.setattr(build, "accelerate", in_fp16)
    monkeypatch.setattr(launch, "check_precision", lambda _: None)


class Recording(TorchDispatchMode):
    """Every operation with the tensors that it read and wrote; `replay` does them again, in the same memory, without Python's part."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            raise RuntimeError("a captured step must not wait for the device")
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            new = func(*args, **kwargs)
            for before, now in zip(tree_flatten(result)[0], tree_flatten(new)[0], strict=True):
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class Recorded:
    """In place of `captured.Captured`: does nothing when it is made, and from then on what was recorded, as a CUDA graph."""

    def __init__(self, function: Callable[[], Tensor | None], device: torch.device, pool: Any) -> None:
        self.graph = self.recording = Recording()
        tensors = captured.changing(function.__self__.trainer)  # type: ignore[attr-defined] # a method of `Replay`
        before = [tensor.clone() for tensor in tensors]
        with self.recording:
            self.result = function()
        captured.put(before, tensors)

    def __call__(self) -> Tensor | None:
        with torch.no_grad():
            self.recording.replay()
        return self.result


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.status == theirs.status == 0
    assert untimed(ours.metrics()) == untimed(theirs.metrics())
    assert ours.weights() == theirs.weights()


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_captured_steps_is_the_eager_run_bit_for_bit(train, monkeypatch, case):
    eager = train(*small(case), "--capture", "off", name="eager")
    taken: list[bool] = []
    whole = captured.Replay.__call__
    monkeypatch.setattr(captured.Replay, "__call__", lambda *a: (taken.append(True), whole(*a))[1])
    assert_same(train(*small(case), "--capture", "on", name="captured"), eager)
    steps = max(line["step"] for line in eager.metrics("train"))
    assert len(taken) > steps / 2  # the rest are short batches and the first


@pytest.mark.parametrize("case", CASES)
def test_what_is_captured_reads_and_writes_only_what_stays(train, monkeypatch, capsys, case):
    """A recording is done again without any of our code: whatever that had decided from the step would be an old step's."""
    eager = train(*small(case), "--capture", "off", name="eager")
    monkeypatch.setattr(captured, "Captured", Recorded)
    assert_same(train(*small(case), "--capture", "on", name="captured"), eager)
    assert "can't be captured" not in capsys.readouterr().out


def test_the_gradient_norm_in_fp16_is_that_without_its_loss_scale(train):
    options = ["--steps", "3", "--log-every", "1", "--lr", "0.001", "--val-fraction", "0", "--no-test"]
    exact, scaled = (
        [line["gradient_norm"] for line in train(*options, "--mixed-precision", kind, name=kind).metrics("train")]
        for kind in ("no", "fp16")
    )
    known = [(norm, other) for norm, other in zip(scaled, exact, strict=True) if norm is not None]
    assert known and all(norm == pytest.approx(other, rel=0.05) for norm, other in known)


def test_replays_whose_gradient_overflows_change_the_loss_scale_and_no_weights(train, monkeypatch):
    whole, seen = captured.Replay.__call__, []

    def look(self: captured.Replay) -> tuple[float, float]:
        state = self.trainer.state
        return state.scaler.get_scale(), sum(p.double().sum().item() for p in state.model.parameters())

    def replay(self: captured.Replay, *args: Any) -> Tensor | None:
        before = look(self)
        gradient_norm = whole(self, *args)
        seen.append((before, look(self)))
        return gradient_norm

    monkeypatch.setattr(captured.Replay, "__call__", replay)
    assert train(*small("fp16"), "--capture", "on").status == 0
    assert all((weights == new_weights) == (new < scale) for (scale, weights), (new, new_weights) in seen)
    assert {new / scale for (scale, _), (new, _) in seen} == {2.0, 0.5}


def test_a_resumed_run_of_captured_steps_is_the_whole_one(train, monkeypatch):
    whole = train("--capture", "on", name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        assert train("--capture", "on").status != 0
    resumed = train("--capture", "on")
    assert resumed.metrics("train")[-1]["step"] == 21
    assert untimed(resumed.metrics())[-1] == untimed(whole.metrics())[-1]
    assert resumed.weights() == whole.weights()


@pytest.mark.parametrize("case", ["lenet", "fp16"])
@pytest.mark.parametrize("wrong", ["a gradient", "a count", "the norm", "an error"])
def test_a_replay_that_is_not_the_eager_step_is_noticed_and_the_run_eager(train, monkeypatch, capsys, wrong, case):
    eager = train(*small(case), "--capture", "off", name="eager")
    passes, update = captured.Replay._passes, captured.Replay._update

    def wrong_passes(self: captured.Replay) -> None:
        passes(self)
        if wrong == "an error":
            raise RuntimeError("operation not permitted when stream is capturing")
        if wrong == "a gradient":
            next(self.trainer.state.model.parameters()).grad[0] *= 1 + 1e-6
        self.trainer.state.sums.on_device[1] += wrong == "a count"

    def wrong_update(self: captured.Replay) -> Tensor | None:
        gradient_norm = update(self)
        return gradient_norm if gradient_norm is None or wrong != "the norm" else gradient_norm * (1 + 1e-6)

    monkeypatch.setattr(captured.Replay, "_passes", wrong_passes)
    monkeypatch.setattr(captured.Replay, "_update", wrong_update)
    assert_same(train(*small(case), "--capture", "on"), eager)
    said = capsys.readouterr().out
    assert said.count("steps can't be captured") == 1
    assert ("not permitted when stream" in said) == (wrong == "an error")


def test_a_run_that_diverges_ends_as_the_eager_one_and_is_not_told_off_for_it(train, capsys):
    ends = []
    for choice in ("off", "on"):
        result = train("--lr", "1e20", "--log-every", "3", "--capture", choice, name=choice)
        ends.append((result.status, capsys.readouterr().err, untimed(result.metrics())))
    assert ends[0] == ends[1]
    assert ends[0][0] != 0 and "nan or infinite" in ends[0][1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_is_never_collected_in_and_leaves_stream_and_collector_as_they_were(monkeypatch, fails):
    """torch's names are replaced: there is no GPU here. A graph that is freed in a capture breaks it; an error leaves its stream."""
    streams = ["ours"]

    @contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        streams.append("the capture's")
        yield
        streams.pop()  # not after an error, as torch 2.11

    def function() -> Tensor:
        assert not gc.isenabled() and streams[-1] == "the capture's"
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.ones(())

    for name, value in (("graph", graph), ("CUDAGraph", object), ("current_stream", lambda: streams[-1])):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    with pytest.raises(RuntimeError, match="not permitted") if fails else nullcontext():
        captured.Captured(function, torch.device("cuda"), pool=None)
    assert gc.isenabled() and streams[-1] == "ours"


@pytest.mark.parametrize(("taken", "enough"), [(2_100_000_000, True), (2_101_000_000, False)])
def test_a_graph_needs_as_much_memory_as_an_eager_step_beside_it(monkeypatch, taken, enough):
    """Torch's names are replaced: 3 GB are free, 1.2 GB kept of what was freed, and before the steps tensors had 0.5 GB."""
    held = {"max_memory_allocated": 0.5e9, "memory_allocated": 0.5e9, "memory_reserved": 1.8e9}
    for name in held:
        monkeypatch.setattr(torch.cuda, name, lambda _, name=name: held[name])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3e9, 80e9))
    check = captured.watch_memory(torch.device("cuda"))
    held |= {"max_memory_allocated": 0.5e9 + taken, "memory_allocated": 0.6e9}
    if enough:
        check()
    else:
        with pytest.raises(
            UserError, match=r"takes 2\.1 GB of 4\.2 GB that are free, and its graph would take as much"
        ):
            check()


def test_steps_whose_graph_has_no_room_are_eager(train, monkeypatch, capsys):
    def too_little() -> None:
        raise UserError("no room")

    eager = train("--capture", "off", name="eager")
    monkeypatch.setattr(captured, "watch_memory", lambda _: too_little)
    assert_same(train("--capture", "on"), eager)
    assert capsys.readouterr().out.count("steps can't be captured, so that they are eager, and slower: no room") == 1


def test_how_far_off_is_counted_in_what_two_eager_steps_differ_by():
    before, eager, again = ([torch.tensor(values)] for values in ([0.0, 0.0], [1.0, 0.0], [1.0, 0.01]))
    assert farthest(eager, eager, eager, before, slack=0.0) == 0
    assert farthest([torch.tensor([1.0, 0.04])], eager, again, before, slack=0.0) == pytest.approx(1)
    assert farthest([torch.tensor([1.0, 0.05])], eager, eager, before, slack=0.1) == pytest.approx(
        0.05 / (0.1 + 2**-23)
    )
    assert farthest([torch.tensor([1.0, 1e-7])], eager, eager, before, slack=0.0) == math.inf
    assert farthest([torch.tensor([1.0, math.nan])], eager, eager, before, slack=0.1) == math.inf
    still = [torch.tensor([1.0])]  # what the step changed is less than a float32 can hold
    assert farthest([still[0] + 2**-23], still, still, still, slack=1e-3) == pytest.approx(1)
    assert farthest([still[0] + 2**-23], still, still, still, slack=0.0) == math.inf


@pytest.mark.parametrize(
    ("options", "several", "problem"),
    [
        ({"mixed_precision": "fp16", "optimizer": "muon"}, True, ""),
        ({"batch_norm": "sync"}, True, "--batch-norm sync"),
        ({"gradient_compression": "bf16"}, True, "--gradient-compression"),
        ({"exact_shards": 4}, True, "--exact-shards"),
        ({"exact_shards": 4, "max_grad_norm": 1.0, "ema_decay": 0.9}, False, ""),
        ({"mixed_precision": "bf16", "compile": True}, True, ""),
    ],
)
def test_what_can_not_be_captured_has_its_reason(options, several, problem):
    assert problem in why_not(TrainConfig(epochs=1, **options), several) or not problem
    assert bool(why_not(TrainConfig(epochs=1, **options), several)) == bool(problem)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lenet", "batch norm, accumulated", "clipped"])
def test_captured_steps_of_two_processes_are_those_of_ddp_bit_for_bit(folders, data_dir, tmp_path, case):
    weights = []
    for choice in ("off", "on"):
        where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / choice)]
        how = ["--epochs", "2", "--threads", "1", "--capture", choice, *words({"--batch-size": 32}, small(case))]
        torchrun(2, ["train.py", *where, *how])
        weights.append((tmp_path / choice / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
