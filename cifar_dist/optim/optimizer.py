"""The optimizer, its parameter groups, and the moving average of the weights."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from cifar_dist.config import TrainConfig
from cifar_dist.optim import muon

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def without_compiler(kind: type[Kind]) -> type[Kind]:
    """Return the same optimizer without what keeps torch's compiler out of its methods; its hooks stay.

    To be kept out, the compiler is imported, which takes a fifth of a start (docs/PERFORMANCE.md). Nothing here is compiled.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])  # torch puts its hooks around it in the first constructor
    return cast(type[Kind], type(kind.__name__, (kind,), methods))


SGD, Adam = without_compiler(torch.optim.SGD), without_compiler(torch.optim.Adam)
AdamW, Muon = without_compiler(torch.optim.AdamW), without_compiler(muon.Muon)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; weight decay on tensors of two or more dimensions, or on all with `decay_all`. Or `muon_groups`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "muon":
        return Muon(muon_groups(parameters, config), config.lr, config.momentum)
    decayed = [p for p in parameters if p.ndim >= 2 or config.decay_all]
    exempt = [p for p in parameters if p.ndim < 2 and not config.decay_all]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    if not config.weight_decay:  # one group is fewer operations
        groups = [{"params": parameters, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        if config.mixed_precision == "fp16" and config.momentum:
            # A first step that overflows would leave the fused kernel a momentum of whatever was in memory.
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in parameters})
        return optimizer
    return {"adam": Adam, "adamw": AdamW}[config.optimizer](groups, lr=config.lr, fused=True)


def muon_groups(parameters: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Return filters, vectors and matrices as groups, each with its peak lr.

    Filters don't decay. Of the others each step takes `config.weight_decay` of the weight at the peak lr, whatever that is.
    """
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p.ndim == 4], "orthogonal": True}]
    for dimensions, lr_per_image in ((1, config.bias_lr_per_image), (2, config.head_lr_per_image)):
        chosen, lr = [p for p in parameters if p.ndim == dimensions], lr_per_image * config.batch_size
        groups.append({"params": chosen, "lr_ratio": lr / config.lr, "weight_decay": config.weight_decay / lr})
    return [group for group in groups if group["params"]]


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay what a checkpoint brought out in memory as its parameters are, which the fused kernels take for granted."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the schedule's lr; a group may have a fixed multiple of it. On a GPU in float32, as captured steps hold it."""
    for group in optimizer.param_groups:
        own = lr * group.get("lr_ratio", 1.0)
        group["lr"] = float(np.float32(own)) if group["params"][0].is_cuda else own


@contextmanager
def lr_from(optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let steps inside read each group's lr from a tensor (), so that they may be captured."""
    before = [dict(group) for group in optimizer.param_groups]
    for group, tensor in zip(optimizer.param_groups, tensors, strict=True):
        group["lr"] = tensor
        if "capturable" in group and tensor.is_cuda:  # Adam's
            group["capturable"] = True
    try:
        yield
    finally:
        for group, old in zip(optimizer.param_groups, before, strict=True):
            group.update(old)
