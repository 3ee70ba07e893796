"""The optimizer, its parameter groups, and the moving average of the weights."""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cifar_dist.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; weight decay on tensors of two or more dimensions, or on all with `decay_all`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 or config.decay_all]
    exempt = [p for p in parameters if p.ndim < 2 and not config.decay_all]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups, lr=config.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class Ema:
    """An exponential moving average of a model's parameters and floating-point buffers, on the model's device.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that a short run isn't dominated by its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.module = copy.deepcopy(model).requires_grad_(False)

    def update(self, step: int) -> None:
        """Blend in the weights after optimizer step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # Looked up each time: Accelerate moves parameters to other storage when it prepares a model.
        get_ema_multi_avg_fn(decay)(_floats(self.module), _floats(self.model), None)


def _floats(model: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
