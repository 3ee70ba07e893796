"""From a configuration to what trains. A run, the doctor's dry run and the benchmarks all build it here."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from cifar_dist.config import TrainConfig
from cifar_dist.console import Console
from cifar_dist.data import Dataset, Splits, choose_data, load_dataset, make_splits
from cifar_dist.errors import UserError
from cifar_dist.inputs.batches import Batches
from cifar_dist.inputs.normalize import Normalize, normalize_as
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.models import memory_format
from cifar_dist.runtime.accelerator import accelerate, choose_precision
from cifar_dist.runtime.collectives import check_equal, on_all, on_main
from cifar_dist.runtime.reduction import MeanAtOnce, MeanOverRanks, Reduction, SumOverShards
from cifar_dist.text import listed
from cifar_dist.training.state import TrainState, build_state
from cifar_dist.training.weights import load_weights, weights_path


@dataclass
class Trainer:
    """What trains on one rank: what is fixed, and the state that steps change. It knows of no folder and says nothing."""

    config: TrainConfig
    accelerator: Accelerator
    dataset: Dataset
    splits: Splits
    plan: BatchPlan
    normalize: Normalize
    state: TrainState
    reduction: Reduction = field(init=False)
    batches: Batches = field(init=False)
    usual_sizes: set[int] = field(init=False)  # of this rank's micro-batches: one, or two that differ by an image
    captured: Callable[[int, bool], Tensor | None] | None = None  # what does steps in place of `step.eager_step`

    def __post_init__(self) -> None:
        self.reduction = self.new_reduction()
        self.usual_sizes = {len(places) for places in self.plan.micro_batches(0, self.rank)}
        layout = memory_format(self.state.model)
        self.batches = Batches(self.config, self.splits.train, self.plan, self.normalize, self.rank, layout)

    def new_reduction(self) -> Reduction:
        state = self.state
        if self.plan.shards:
            return SumOverShards(state.wrapped, state.model, self.plan, state.statistics, self.rank)
        if self.config.capture == "on" and self.plan.world_size > 1:
            return MeanAtOnce(state.wrapped, self.plan, state.statistics, self.rank)
        return MeanOverRanks(state.wrapped, self.accelerator, self.plan, state.statistics)

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        return self.accelerator.device


def build(config: TrainConfig, console: Console, given: Container[str] = ()) -> Trainer:
    """Return what trains by this configuration, before its first step, with fresh weights. Collective; raises `UserError`.

    What `auto` means here is decided: the trainer's configuration says it. `given` are the options of the command line,
    which are refused where they have no effect.
    """
    config = choose_precision(config)
    accelerator = accelerate(config)
    console.say(f"preparing data: {config.data}", "dim")
    if config.data == "auto":
        with console.bar(f"preparing {config.data}", "images") as progress:
            name, note = on_main(lambda: choose_data(Path(config.data_dir), progress))
        config = replace(config, data=name)
        if note:
            console.warn(note)
    with console.bar(f"preparing {config.data}", "images") as progress:
        dataset = on_all(lambda: load_dataset(config.data, Path(config.data_dir), config.image_size, progress))
    check_equal(dataset.fingerprint, "the data")
    splits = make_splits(dataset, config, accelerator.device)
    plan = BatchPlan.from_config(config, len(splits.train), accelerator.num_processes)
    if "early_size" in given and config.early_size and plan.epochs < 2:
        raise UserError(
            f"--early-size {config.early_size} is for the first half of the epochs, and a run of {plan.epochs} has none; leave it out"
        )
    state = build_state(config, len(dataset.classes), accelerator)
    normalize = normalize_as(config.normalize, dataset.mean, dataset.std, accelerator.device)
    return Trainer(config, accelerator, dataset, splits, plan, normalize, state)


def initialise(trainer: Trainer) -> str:
    """Give a fresh model what isn't left to chance: --init-from's weights, or what it takes from images. Collective.

    Returns a line on which weights were taken; raises `UserError` where less than half of the parameters fit.
    """
    state, source = trainer.state, trainer.config.init_from
    if not source:
        fit_to_images(trainer)
        return ""
    path = on_all(lambda: weights_path(source))
    given, about = on_main(lambda: load_weights(path))
    own, theirs = state.model.state_dict(), given.state_dict()
    fits = {name: theirs[name].cpu() for name in own if name in theirs and theirs[name].shape == own[name].shape}
    sizes = {name: p.numel() for name, p in state.model.named_parameters()}
    if sum(size for name, size in sizes.items() if name in fits) < sum(sizes.values()) / 2:
        raise UserError(
            f"--init-from {source} is {about['model']}, of which less than half fits {trainer.config.model}; add --model {about['model']}"
        )
    for model in (state.model, state.eval_model):
        model.load_state_dict(fits, strict=False)
    left = [f"{name} {tuple(own[name].shape)}" for name in own if name not in fits]
    new = f"; new: {listed(left)}" if left else ""
    return f"weights      {len(fits)} of {len(own)} tensors from {path}, {about['model']} on {about['dataset']}{new}"


def fit_to_images(trainer: Trainer) -> None:
    """Set what a fresh model takes from the training images. Collective."""
    state, train = trainer.state, trainer.splits.train
    if not (count := min(state.model.images_to_fit, len(train))):
        return
    images, _ = train.gather(torch.arange(count, device=trainer.device))

    def fit() -> dict[str, torch.Tensor]:
        state.model.fit(trainer.normalize(images))
        return {name: tensor.cpu() for name, tensor in state.model.state_dict().items()}

    fitted = on_main(fit)  # machines may round differently
    for model in (state.model, state.eval_model):
        model.load_state_dict(fitted)
