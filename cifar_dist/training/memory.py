"""`--micro-batch-size auto`: the most images at once that fit into memory, the same number on every rank."""

import math
from dataclasses import replace

import psutil
import torch
from torch import Tensor

from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.inputs.plan import BatchPlan
from cifar_dist.runtime.cgroup import cgroup_limit, memory_in_use, own_cgroup
from cifar_dist.runtime.collectives import max_across_ranks
from cifar_dist.runtime.compiling import eagerly
from cifar_dist.runtime.launch import env_int
from cifar_dist.training.build import Trainer
from cifar_dist.training.step import backward, forward

PROBE = 16  # images whose activations are measured
FREE_SHARE = (
    0.5  # of what is free, for activations: the backward pass, kernels and what is kept until later need room too
)


def fit_micro_batch(trainer: Trainer, console: Console) -> Trainer:
    """Return the trainer with --micro-batch-size auto decided, as its configuration then says. Collective."""
    config, plan = trainer.config, trainer.plan
    if config.micro_batch_size != "auto":
        return trainer
    share = max(len(places) for rank in range(plan.world_size) for places in plan.micro_batches(0, rank))
    found = most_images(trainer, share)
    found = -int(max_across_ranks(torch.tensor(-found, device=trainer.device)).item())
    if found < 1:
        raise UserError(
            f"not even one image of {config.model} fits into the memory of {trainer.device}; use a smaller model"
        )
    config = replace(config, micro_batch_size=None if found >= share else found)
    console.say(f"micro-batch  {min(found, share)} of {share} images at once: --micro-batch-size auto", "dim")
    return replace(trainer, config=config, plan=BatchPlan.from_config(config, plan.num_images, plan.world_size))


def most_images(trainer: Trainer, share: int) -> int:
    """Return how many of `share` images this rank can hold at once: as many as fit by calculation, and on a GPU on trial."""
    epoch, places = trainer.plan.batch(trainer.batches.whole_steps()[0])
    probe = min(PROBE, share)
    an_image = kept_bytes(trainer, epoch, places[:probe]) / probe
    most = min(share, int(FREE_SHARE * free_bytes(trainer.device) / an_image))
    while trainer.device.type == "cuda" and most and not fits(trainer, epoch, places[:most]):
        most //= 2
    return most


def fits(trainer: Trainer, epoch: int, places: range) -> bool:
    """Whether a pass over the images at these places fits into the GPU's memory."""
    try:
        kept_bytes(trainer, epoch, places)
    except torch.OutOfMemoryError:
        return False
    finally:
        trainer.state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def free_bytes(device: torch.device) -> float:
    """Return the memory that this process may still take, of its share of the machine's, or of its GPU's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    group = own_cgroup()
    left = (cgroup_limit(group, "memory.max") or math.inf) - memory_in_use(group)
    return max(0.0, min(psutil.virtual_memory().available, left)) / env_int("LOCAL_WORLD_SIZE", 1)


def kept_bytes(trainer: Trainer, epoch: int, places: range) -> int:
    """Do a pass over images and return what its forward pass keeps for its backward pass. Leaves no gradient."""
    kept: dict[int, int] = {}
    state = trainer.state
    tensors = (*state.model.parameters(), *state.model.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with trainer.accelerator.no_sync(state.wrapped), state.statistics.frozen(), eagerly(state.model):
        batch = trainer.batches.load(epoch, torch.arange(places.start, places.stop, device=trainer.device))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = forward(trainer, batch, state.wrapped)
            loss = state.model.loss_sum(outputs, batch.labels, trainer.config.label_smoothing, 0.0)
        backward(trainer, loss, 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    return sum(kept.values())
