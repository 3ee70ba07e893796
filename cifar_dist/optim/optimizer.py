"""The optimizer, its parameter groups, and the moving average of the weights."""

import inspect
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from cifar_dist.config import TrainConfig
from cifar_dist.optim import muon

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def unwrapped(kind: type[Kind]) -> type[Kind]:
    """Return the same optimizer without what torch puts around its methods: hooks, and what keeps its compiler out of them.

    For that it imports the compiler, a sixth of a start. And around small steps they take as long as the step itself.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])
    methods["step"].hooked = True  # as torch marks what it has wrapped
    return cast(type[Kind], type(kind.__name__, (kind,), methods))


SGD, Adam = unwrapped(torch.optim.SGD), unwrapped(torch.optim.Adam)
AdamW, Muon = unwrapped(torch.optim.AdamW), unwrapped(muon.Muon)


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
        # A first step that overflows, as fp16's does, leaves the fused kernel a momentum of whatever was in memory.
        fused = config.mixed_precision != "fp16"
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    return {"adam": Adam, "adamw": AdamW}[config.optimizer](groups, lr=config.lr, fused=True)


def muon_groups(parameters: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Return filters, vectors and matrices, each with its peak lr; weight decay is a share of a weight at the peak, filters have none."""
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p.ndim == 4], "orthogonal": True}]
    for dimensions, lr in ((1, config.bias_lr), (2, config.head_lr)):
        chosen = [p for p in parameters if p.ndim == dimensions]
        groups.append({"params": chosen, "lr_ratio": lr / config.lr, "weight_decay": config.weight_decay / lr})
    return [group for group in groups if group["params"]]


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay what a checkpoint brought out in memory as its parameters are, which the fused kernels take for granted."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the schedule's lr; a group may have a fixed multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
