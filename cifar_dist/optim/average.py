"""The moving average of the weights."""

import copy
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """An exponential moving average of a model's parameters and floating-point buffers, on the model's device.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that a short run isn't dominated by its initial weights.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model, self.decay = model, decay
        self.module = copy.deepcopy(model).requires_grad_(False)

    def update(self, step: int) -> None:
        """Blend in the weights after optimizer step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # Looked up each time: Accelerate moves parameters to other storage when it prepares a model.
        get_ema_multi_avg_fn(decay)(_floats(self.module), _floats(self.model), None)


def _floats(model: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
