"""Weights files: safetensors with what is needed to rebuild the model and prepare its inputs. Nothing in them executes."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cifar_dist.config import SIDE, TrainConfig
from cifar_dist.data import SPLIT_OPTIONS, Dataset
from cifar_dist.errors import UserError
from cifar_dist.files import is_sealed, parse_json, read_file, sealed
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.models import build_model
from cifar_dist.models.base import Classifier
from cifar_dist.record.digest import digest
from cifar_dist.record.folder import WEIGHTS_FILE
from cifar_dist.record.reader import runs_in
from cifar_dist.text import count, shortened

ONE_AND_ALL = (
    "model",
    "model_options",
    "classes",
    "mean",
    "std",
    "mixed_precision",
    "fingerprint",
    "split",
)  # of an average
KEY = "cifar_dist"  # one metadata entry: safetensors writes several in no fixed order


def describe_weights(config: TrainConfig, dataset: Dataset, normalize: Normalize, step: int) -> dict[str, Any]:
    """Return what a weights file says of itself: how to rebuild the model, prepare its inputs and find its data."""
    return {
        "model": config.model,
        "model_options": config.model_options,
        "image_size": config.image_size,
        "classes": dataset.classes,
        "mean": normalize.mean,
        "std": normalize.std,
        "mixed_precision": config.mixed_precision,
        "data": config.data,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": {name: getattr(config, name) for name in SPLIT_OPTIONS},
        "recipe": config.recipe,
        "seed": config.seed,
        "step": step,
        "ema": config.ema_decay is not None,
    }


def pack_weights(model: nn.Module, about: Mapping[str, Any]) -> bytes:
    """Return a weights file. The same weights and `about` always give the same bytes; it says what they come down to."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = sealed({**about, "weights_digest": digest(sorted(tensors.items()))})
    return safetensors.torch.save(tensors, metadata={KEY: json.dumps(content, sort_keys=True)})


def unpack_weights(data: bytes) -> dict[str, Tensor]:
    return safetensors.torch.load(data)


def load_weights(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """Rebuild the model of a weights file, on the CPU, in evaluation mode; return it with what the file says of itself.

    Raises `UserError` where the file isn't one of ours, or no longer what was written.
    """
    try:
        data = read_file(path)
        tensors = unpack_weights(data)
        # The format: the length of the header in 8 bytes, the header, the tensors.
        metadata = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a weights file ({error}); give a run folder or its model.safetensors") from None
    if KEY not in metadata:
        raise UserError(f"{path} doesn't say which model it holds; it was not written by train.py")
    about = read_about(metadata[KEY], tensors)
    if about is None:
        raise UserError(
            f"{path} is damaged: it doesn't hold the bytes that were written; take another copy, or a checkpoint's model.safetensors"
        )
    model = build_model(about["model"], len(about["classes"]), about["model_options"])
    model.load_state_dict(tensors)
    return model.eval(), about


def read_about(text: str, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return what a weights file says of itself, None where that or its weights aren't what was written."""
    try:
        about = parse_json(text)
        if "sha256" in about or "weights_digest" in about:  # files of earlier versions have neither
            return about if is_sealed(about) and about["weights_digest"] == digest(sorted(tensors.items())) else None
        return about
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def side_of(about: Mapping[str, Any]) -> int:
    """Return the side of the images, in pixels, that weights belong to; files of earlier versions don't say it."""
    return about.get("image_size") or SIDE


def weights_path(checkpoint: str | PathLike[str]) -> Path:
    """Return the weights file that a command is given; raises `UserError` where there is none."""
    path = Path(checkpoint)
    if path.is_dir():
        path = path / WEIGHTS_FILE
        if not path.is_file() and (runs := runs_in(path.parent)):
            raise UserError(
                f"{checkpoint} is a folder of {count(len(runs), 'run')}; give one of them, such as {runs[0]}"
            )
        if not path.is_file():
            raise UserError(
                f"{checkpoint} holds no {WEIGHTS_FILE}: its run has not validated yet; use one of its checkpoints/step_*"
            )
    if not path.is_file():
        raise UserError(
            f"{checkpoint} does not exist; give a run folder, one of its checkpoints/step_*, or a weights file"
        )
    return path


def average_weights(several: Mapping[str, tuple[nn.Module, dict[str, Any]]]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model whose weights are the mean of these, by name, and what the first says of itself; changes the first.

    Batch norm's running statistics are averaged like everything else. Raises `UserError` where models differ in anything that
    makes their weights, or their images, mean something else.
    """
    (first, (model, about)), *others = several.items()
    for name, (_, other) in others:
        for what in ONE_AND_ALL:
            if about[what] != other[what]:
                values = f" ({shortened(str(about[what]))} and {shortened(str(other[what]))})"
                raise UserError(f"--average: {first} and {name} differ in their {what}{values}; leave --average out")
    states = [other.state_dict() for other, _ in several.values()]
    mean = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            mean[name] = torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        elif name.endswith("num_batches_tracked") or all(torch.equal(tensor, state[name]) for state in states):
            mean[name] = tensor
        else:
            raise UserError(
                f"--average: {about['model']} keeps counts ({name}), which have no mean; leave --average out"
            )
    model.load_state_dict(mean)
    return model, about
