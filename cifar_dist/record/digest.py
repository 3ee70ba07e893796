"""What a run's state comes down to: a line that two states share if they are the same in every bit."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, in this order; how they lie in memory has no part in it."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def weights_digest(model: Mapping[str, Tensor], average: Mapping[str, Tensor] | None) -> str:
    """Return the digest of a model's state, parameters and buffers, and of their moving average where there is one."""
    averaged = ((f"average.{name}", tensor) for name, tensor in (average or {}).items())
    return digest([*model.items(), *averaged])


def optimizer_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of an optimizer's `state_dict`, parameter by parameter; learning rates have no part in it."""
    state = content["state"]
    named = ((f"{index}.{name}", value) for index in sorted(state) for name, value in sorted(state[index].items()))
    return digest((name, torch.as_tensor(value)) for name, value in named if value is not None)
