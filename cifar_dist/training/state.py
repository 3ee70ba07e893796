"""Everything a training step changes, and its exact way into a checkpoint's files and back, on any number of ranks."""

import io
from dataclasses import asdict, dataclass, field
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import build_model
from cifar_dist.models.base import Classifier
from cifar_dist.models.dropout import DropoutMasks
from cifar_dist.optim.average import Ema
from cifar_dist.optim.optimizer import build_optimizer, match_layout
from cifar_dist.record.checkpoint import BrokenCheckpointError
from cifar_dist.record.digest import optimizer_digest, weights_digest
from cifar_dist.record.folder import TRAINING_FILE
from cifar_dist.record.lines import Digests, Result
from cifar_dist.runtime.batchnorm import RunningStatistics, synchronise
from cifar_dist.runtime.collectives import gather_rows, rank, world_size
from cifar_dist.runtime.compiling import compile_model
from cifar_dist.text import reason
from cifar_dist.training.metrics import TrainSums


@dataclass
class Progress:
    """How far a run is. Equal on every rank."""

    step: int = 0  # optimizer steps done
    logged_step: int = 0  # where the last training line was written
    seconds: float = 0.0  # of training, evaluation and checkpoints, over all starts
    best_step: int | None = None
    best_correct: int = -1  # validation images recognised at best_step
    best_val: Result | None = None
    validations_since_best: int = 0
    # None in checkpoints of earlier versions:
    best_sha256: str | None = None  # of the weights file of best_step
    num_lines: int | None = None  # of metrics.jsonl before this checkpoint
    lines_sha256: str | None = None


@dataclass
class TrainState:
    """What steps change."""

    model: Classifier
    wrapped: nn.Module  # what a step calls: the model in DDP where there are several ranks, its precision around it
    optimizer: Any  # with fp16 Accelerate's wrapper, which knows the gradient scaler
    scaler: Any  # torch.amp.GradScaler with fp16, else None
    ema: Ema[Classifier] | None
    sums: TrainSums
    masks: DropoutMasks
    statistics: RunningStatistics
    ema_statistics: RunningStatistics | None
    progress: Progress = field(default_factory=Progress)

    @property
    def eval_model(self) -> Classifier:
        """The weights that are evaluated and kept."""
        return self.ema.module if self.ema else self.model

    @property
    def eval_statistics(self) -> RunningStatistics:
        return self.ema_statistics or self.statistics


def build_state(config: TrainConfig, num_classes: int, accelerator: Accelerator) -> TrainState:
    """Return the state before the first step; initial weights depend on the seed alone."""
    torch.manual_seed(config.seed)
    # On the CPU: the same numbers whatever the device.
    model = build_model(config.model, num_classes, config.model_options)
    if config.batch_norm == "sync":
        synchronise(model, fused=accelerator.device.type == "cuda" and config.mixed_precision == "no")
    if config.batch_norm == "sync" and not RunningStatistics(model).layers:
        raise UserError(
            f"--batch-norm {config.batch_norm} has no effect: {config.model} has no batch norm; leave it out"
        )
    model.to(accelerator.device)
    ema = Ema(model, config.ema_decay) if config.ema_decay is not None else None
    if config.compile:
        compile_model(model, accelerator.device, config.data_dir)
    optimizer = accelerator.prepare_optimizer(build_optimizer(model, config))
    # DDP would add up gradients otherwise than shards do, and on a stream of its own, which a captured step can't join.
    without_ddp = config.exact_shards is not None or config.capture == "on"
    wrapped = accelerator.prepare_model(model, evaluation_mode=without_ddp)
    return TrainState(
        model=model,
        wrapped=wrapped,
        # Without a scaler the wrapper adds nothing but a search for a package it might need, at every step.
        optimizer=optimizer if accelerator.scaler else optimizer.optimizer,
        scaler=accelerator.scaler,
        ema=ema,
        sums=TrainSums(accelerator.device),
        masks=DropoutMasks(model, config.seed),
        statistics=RunningStatistics(model),
        ema_statistics=RunningStatistics(ema.module) if ema else None,
    )


def snapshot(state: TrainState) -> dict[str, Any]:
    """Return the whole state. Collective: running statistics and sums, which differ between ranks, are gathered.

    They are kept per rank, not reduced, so that a run that goes on with as many ranks goes on with the same bits.
    """
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler else None,
        "ema": state.ema.module.state_dict() if state.ema else None,
        "progress": asdict(state.progress),
        "per_rank": {name: gather_rows(vector) for name, vector in _per_rank(state).items()},
    }


def to_bytes(content: dict[str, Any]) -> bytes:
    """Return a snapshot's bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """Return what `to_bytes` wrote; never runs code that other bytes hold."""
    content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return content


def digests_of(data: bytes) -> Digests:
    """Return the digests of a snapshot's weights and optimizer; raises `BrokenCheckpointError` for bytes that aren't one."""
    try:
        content = from_bytes(data)
        Progress(**content["progress"])
        if not isinstance(content["per_rank"]["sums"], Tensor):
            raise TypeError("no sums")
        return {
            "weights_digest": weights_digest(content["model"], content["ema"]),
            "optimizer_digest": optimizer_digest(content["optimizer"]),
        }
    except Exception as error:  # torch's own errors, and whatever else a file can lead to
        raise BrokenCheckpointError(f"{TRAINING_FILE} is not what a run writes: {reason(error)}") from None


def restore(state: TrainState, data: bytes) -> None:
    """Put a snapshot's bytes into a freshly built state, on as many ranks as there were or on others.

    Raises `UserError` for the snapshot of something else.
    """
    try:
        _put(state, from_bytes(data))
    except (UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the checkpoint is not one of this run: {reason(error)}; restore it, or use --resume never to start over"
        ) from None


def _put(state: TrainState, content: dict[str, Any]) -> None:
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    match_layout(state.optimizer)
    if state.scaler:
        state.scaler.load_state_dict(content["scaler"])
    if state.ema:
        state.ema.module.load_state_dict(content["ema"])
    state.progress = Progress(**content["progress"])
    rows = content["per_rank"]
    if "statistics" in rows:
        state.statistics.load(_own_mean(rows["statistics"]))
    if state.ema_statistics and "ema_statistics" in rows:
        state.ema_statistics.load(_own_mean(rows["ema_statistics"]))
    state.sums.set(_own_sum(rows["sums"]))


def _per_rank(state: TrainState) -> dict[str, Tensor]:
    vectors = {"sums": state.sums.vector}
    if state.statistics.layers:
        vectors["statistics"] = state.statistics.vector()
    if state.ema_statistics and state.ema_statistics.layers:
        vectors["ema_statistics"] = state.ema_statistics.vector()
    return vectors


def _own_mean(rows: Tensor) -> Tensor:
    """Return this rank's row, or on another world size the mean of all: what evaluation would use."""
    return rows[rank()] if len(rows) == world_size() else rows.double().mean(dim=0)


def _own_sum(rows: Tensor) -> Tensor:
    """Return this rank's row, or on another world size all on rank 0 and zeros elsewhere: the total stays."""
    if len(rows) == world_size():
        return rows[rank()]
    return rows.sum(dim=0) if rank() == 0 else torch.zeros_like(rows[0])
