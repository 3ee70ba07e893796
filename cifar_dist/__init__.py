"""Train CIFAR-10 classifiers on one CPU, one GPU, many GPUs or a cluster, with the same numbers on all of them."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_dist.in_process import train
    from cifar_dist.inference.predictions import predict
    from cifar_dist.inference.predictor import load_model

__all__ = ["__version__", "load_model", "predict", "train"]
__version__ = "0.1.0"

# Before torch loads OpenMP: how often a thread looks for more work before it sleeps. By default it looks for milliseconds,
# in which a thread that waits for another keeps that one off a core that something else uses too (docs/PERFORMANCE.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_MODULES = {  # imported when they are asked for: they need torch, and every command passes through here
    "load_model": "cifar_dist.inference.predictor",
    "predict": "cifar_dist.inference.predictions",
    "train": "cifar_dist.in_process",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
