"""Steps without Python: what a step does to the device is captured once, over tensors that stay where they are, and replayed.

Small models spend most of a step launching kernels; a CUDA graph launches them all at once. On a CPU the same code runs over the
same tensors without a graph, so that all but the capture itself is tested everywhere.
"""

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.inputs.batches import Batch
from cifar_dist.inputs.labels import Labels
from cifar_dist.optim.optimizer import lr_from
from cifar_dist.runtime.collectives import in_a_group, max_across_ranks, on_all
from cifar_dist.text import reason, size
from cifar_dist.training.build import Trainer
from cifar_dist.training.step import eager_step, passes, update

T = TypeVar("T")
SLACK = {"cpu": 0.0, "cuda": 1e-3}  # of what a step changes; some kernels of a GPU add up in any order


def capture_steps(trainer: Trainer, console: Console) -> None:
    """Let the trainer's steps be captured where the configuration asks for it. Raises `UserError` where that can't be."""
    choice, several = trainer.config.capture, trainer.plan.world_size > 1
    problem = why_not(trainer.config, several)
    if choice == "on" and problem:
        raise UserError(f"--capture on can't be with {problem}; leave one out")
    # In a process group only on request: graphs beside NCCL, which a group of one has too, have never been tried.
    if choice == "on" or (choice == "auto" and not problem and not in_a_group() and trainer.device.type == "cuda"):
        trainer.captured = CapturedSteps(trainer, console)


def why_not(config: TrainConfig, several: bool) -> str:
    """Return the options with which steps can't be captured; empty where they can."""
    if several and config.batch_norm == "sync":
        return "--batch-norm sync on several processes, which wait for each other in the middle of a pass"
    if several and config.exact_shards:
        return "--exact-shards on several processes, which exchange sums between the shards"
    if several and config.gradient_compression != "no":
        return "--gradient-compression, which DDP's hooks do"
    return ""


class Kind(NamedTuple):
    """Steps that one capture serves: whole batches, of images of one size."""

    size: int | None
    measure: bool  # whether the gradient's norm is wanted


class CapturedSteps:
    """Does the steps of whole batches by replaying one; others, the first, and all if a replay is not the eager step, eagerly."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self.trainer, self.console = trainer, console
        self.replays: dict[Kind, Replay] = {}
        self.given_up = False
        # One memory for all kinds: no replay reads what another left there.
        self.pool = torch.cuda.graph_pool_handle() if trainer.device.type == "cuda" else None
        if scaler := trainer.state.scaler:
            scaler.scale(torch.zeros((), device=trainer.device))  # makes its tensors

    def __call__(self, step: int, measure_gradient: bool) -> Tensor | None:
        """Do what `eager_step` does. Collective."""
        trainer = self.trainer
        epoch, places = trainer.plan.batch(step)
        whole = len(places) == trainer.plan.batch_size
        if self.given_up or not whole or step == 0:  # the first step makes the optimizer's state
            return eager_step(trainer, step, trainer.batches.of_step(step), measure_gradient)
        batches = list(trainer.batches.of_step(step))
        kind = Kind(trainer.batches.size(epoch), measure_gradient and not trainer.config.max_grad_norm)
        if kind not in self.replays and not self.capture(kind, step, batches):
            return eager_step(trainer, step, batches, measure_gradient)
        return self.replays[kind](step, batches)

    def capture(self, kind: Kind, step: int, batches: Sequence[Batch]) -> bool:
        """Capture a step; returns whether a replay does what the eager step does. The state stays as it was. Collective."""
        trainer, trial, check_memory = self.trainer, Trial(self.trainer), watch_memory(self.trainer.device)
        eager, again = (trial.outcome(lambda: eager_step(trainer, step, batches, kind.measure)) for _ in range(2))
        if most(trial.shows_nothing(eager), trainer.device):
            return False
        try:
            on_all(check_memory)
            replay = on_all(lambda: attempt(lambda: Replay(trainer, step, batches, kind, self.pool)))
            replayed = on_all(lambda: attempt(lambda: trial.outcome(lambda: replay(step, batches))))
            off = farthest(replayed, eager, again, trial.before, SLACK[trainer.device.type])
            if (off := most(off, trainer.device)) > 1:
                raise UserError(f"a replay is {off:.2g} times as far off as rounding explains")
        except UserError as error:
            self.give_up(str(error))
            return False
        self.replays[kind] = replay
        return True

    def give_up(self, problem: str) -> None:
        """Do all steps eagerly from now on, and say why. Of a step that was not finished nothing is left."""
        self.given_up = True
        self.replays.clear()
        self.trainer.state.optimizer.zero_grad(set_to_none=True)
        if scaler := self.trainer.state.scaler:
            scaler.update(scaler.get_scale())
        self.console.warn(f"this run's steps can't be captured, so that they are eager, and slower: {problem}")


class Trial:
    """Steps done from the same state, which afterwards is as it was."""

    def __init__(self, trainer: Trainer) -> None:
        self.state, self.tensors = trainer.state, changing(trainer)
        self.state.sums.settle()
        no_norm = torch.zeros((), device=trainer.device)
        self.before = [*(tensor.clone() for tensor in self.tensors), no_norm]

    def outcome(self, step: Callable[[], Tensor | None]) -> list[Tensor]:
        """Return what a step leaves in the state, and last the gradient's norm (), or 0 if it is none of its kind."""
        try:
            gradient_norm = step()
            self.state.sums.settle()
            last = self.before[-1] if gradient_norm is None else gradient_norm
            return [tensor.clone() for tensor in (*self.tensors, last)]
        finally:
            put(self.before[:-1], self.tensors)

    def shows_nothing(self, outcome: Sequence[Tensor]) -> bool:
        """Whether nothing follows from it for others: fp16's gradient overflowed, so that no weight moved, or the run diverges."""
        weights = self.state.model.parameters()
        still = self.state.scaler and all(p.equal(new) for p, new in zip(weights, outcome, strict=False))
        return bool(still) or not all(tensor.isfinite().all() for tensor in outcome)


def most(number: float, device: torch.device) -> float:
    """Return the largest of all ranks' numbers. Collective."""
    return max_across_ranks(torch.tensor(number, dtype=torch.float64, device=device)).item()


def attempt(action: Callable[[], T]) -> T:
    """Return what `action` does; torch's errors, as for what can't be captured, are `UserError`s."""
    try:
        return action()
    except RuntimeError as error:  # of a capture it says only that there was another one
        raise UserError(reason(error.__context__ or error)) from None


def watch_memory(device: torch.device) -> Callable[[], None]:
    """Watch what is done from now on, steps say. Returns what raises `UserError` where a GPU has no room for as much once more.

    A graph keeps its memory to itself, and short batches go on being eager.
    """
    if device.type != "cuda":
        return lambda: None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)

    def check() -> None:
        taken = torch.cuda.max_memory_allocated(device) - before
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept
        if 2 * taken > free:
            raise UserError(
                f"a step takes {size(taken)} of {size(free)} that are free, and its graph would take as much"
            )

    return check


class Replay:
    """One step, over tensors of its own for all that differs between steps of a kind."""

    def __init__(self, trainer: Trainer, step: int, batches: Sequence[Batch], kind: Kind, pool: Any) -> None:
        """Captures without doing the step, with `pool` for memory. `batches` are of the same sizes as those to come."""
        self.trainer, self.kind, state = trainer, kind, trainer.state
        self.reduction = trainer.new_reduction()
        self.batches = [clone(batch) for batch in batches]
        on_gpu, device = trainer.device.type == "cuda", trainer.device
        precision = torch.float32 if on_gpu else torch.float64  # a GPU's fused optimizers take float32 alone
        self.lrs = [torch.zeros((), dtype=precision, device=device) for _ in state.optimizer.param_groups]
        self.progress = torch.zeros((), dtype=torch.float64, device=device)
        self.step = step  # any of its kind
        self.gradients: list[tuple[Tensor, Tensor]] = []
        if trainer.plan.world_size == 1:
            self.parts = [Captured(self._whole, device, pool)]
            return
        first = Captured(self._passes, device, pool)  # ranks meet after it
        if first.graph:
            self.gradients = [(p, p.grad) for p in state.model.parameters() if p.grad is not None]
        self.parts = [first, Captured(self._update, device, pool)]

    def __call__(self, step: int, batches: Sequence[Batch]) -> Tensor | None:
        """Do the step; returns the gradient's norm () before clipping, if it is of the kind, until the next replay."""
        trainer = self.trainer
        put(
            [t for batch in batches for t in tensors_of(batch)],
            [t for batch in self.batches for t in tensors_of(batch)],
        )
        for tensor, group in zip(self.lrs, trainer.state.optimizer.param_groups, strict=True):
            tensor.fill_(group["lr"])
        self.progress.fill_(step / trainer.plan.total_steps)
        for part in self.parts[:-1]:
            part()
            for p, gradient in self.gradients:
                p.grad = gradient
            self.reduction.finish(step)
        return self.parts[-1]()

    def _whole(self) -> Tensor | None:
        self._passes()
        self.reduction.finish(self.step)
        return self._update()

    def _passes(self) -> None:
        sums, model = self.trainer.state.sums, self.trainer.state.model
        for batch, outputs, loss_sum in passes(self.trainer, self.step, self.batches, self.reduction, self.progress):
            sums.add_in_place(loss_sum, model.training_logits(outputs), batch.labels)

    def _update(self) -> Tensor | None:
        with lr_from(self.trainer.state.optimizer, self.lrs):
            return update(self.trainer, self.kind.measure)


class Captured:
    """What a function does to tensors on a GPU, as a graph; on a CPU the function itself."""

    def __init__(self, function: Callable[[], Tensor | None], device: torch.device, pool: Any) -> None:
        self.function, self.graph = function, None
        if device.type == "cuda":
            self.graph = torch.cuda.CUDAGraph()
            self.result = self._capture(self.graph, pool)

    def _capture(self, graph: torch.cuda.CUDAGraph, pool: Any) -> Tensor | None:
        stream = torch.cuda.current_stream()
        gc.collect()  # to free the graph of an earlier run in this process would end this capture
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                return self.function()
        finally:
            gc.enable()
            torch.cuda.set_stream(stream)  # after an error torch leaves its own

    def __call__(self) -> Tensor | None:
        if not self.graph:
            return self.function()
        self.graph.replay()
        return self.result


def changing(trainer: Trainer) -> list[Tensor]:
    """Return the tensors that steps change, but the moving average: its one operation would be one for each tensor if captured."""
    state = trainer.state
    values = [value for own in state.optimizer.state.values() for value in own.values()]
    values += vars(state.scaler).values() if state.scaler else []
    held = [value for value in values if isinstance(value, Tensor)]
    return [*(p.detach() for p in state.model.parameters()), *state.model.buffers(), *held, *state.sums.on_device]


@torch.no_grad()
def put(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy values into tensors of the same shapes."""
    torch._foreach_copy_(list(tensors), list(values))


def farthest(
    found: Sequence[Tensor], eager: Sequence[Tensor], again: Sequence[Tensor], before: Sequence[Tensor], slack: float
) -> float:
    """Return how far the tensor that is farthest off is from `eager`, all finite, where 1 is allowed.

    That is four times as far as two eager steps are from one another and, if there is any `slack`, that share of what the step
    changed in it, and the rounding of a float32.
    """
    shares, rounding = [], torch.finfo(torch.float32).eps if slack else 0.0
    for ours, theirs, other, old in zip(found, eager, again, before, strict=True):
        off, noise, change = ((a.double() - theirs.double()).norm() for a in (ours, other, old))
        allowed = 4 * noise + slack * change + rounding * theirs.double().norm()
        shares.append(torch.where(off == 0, 0.0, off / allowed))
    return torch.stack(shares).nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def tensors_of(batch: Batch) -> list[Tensor]:
    return [batch.images, batch.positions, *(tensor for tensor in batch.labels if tensor is not None)]


def clone(batch: Batch) -> Batch:
    labels = (None if tensor is None else tensor.clone() for tensor in batch.labels)
    return Batch(batch.images.clone(), Labels(*labels), batch.positions.clone())  # type: ignore[arg-type] # the first is a tensor
