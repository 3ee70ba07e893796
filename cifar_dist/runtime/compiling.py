"""`--compile`: micro-batches of the usual size through torch.compile, all else as it is, since every other size would be compiled too."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from cifar_dist.errors import UserError


def compile_model(model: nn.Module, device: torch.device, data_dir: str) -> None:
    """Have `model` compiled, in place, when it is called for the first time; what comes out is kept under `data_dir`.

    Raises `UserError` without a C++ compiler, which a CPU needs.
    """
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError("--compile needs a C++ compiler on a CPU: install g++, name one in CXX, or leave --compile out")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(data_dir, "compiled").resolve()))
    model.compile(dynamic=False)


def eagerly(model: nn.Module) -> AbstractContextManager[object]:
    """Let a compiled model be called uncompiled inside."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


def is_compiled(model: nn.Module) -> bool:
    return model._compiled_call_impl is not None


def never_compiled(model: nn.Module) -> None:
    """Let a compiled model be called uncompiled from now on."""
    model._compiled_call_impl = None
