"""A trained model in use: pixels to probabilities, with the arithmetic of `eval.py`."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.files import read_json
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.runtime.accelerator import choose_precision
from cifar_dist.runtime.launch import check_launch, uses_gpu
from cifar_dist.training.weights import load_weights, weights_path

EVALUATIONS = ("eval-val.json", "eval-test.json")  # of eval.py; which lies beside the weights first counts
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """What `load_model` returns: a model on its device, with all that lies between pixels and probabilities."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        config: TrainConfig,
        *,
        dataset: str = "",
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        temperature: float | None = None,
        calibration: str = "not calibrated",
    ) -> None:
        self.name, self.dataset = name, dataset  # of the model, and of what it was trained on
        self.device = torch.device("cuda" if uses_gpu(config) else "cpu")
        self.model = model.to(self.device).eval()
        self.classes = tuple(classes)
        self.normalize = Normalize(mean, std, self.device)
        self.mixed_precision = config.mixed_precision
        self.side = config.side  # of its images, in pixels
        self.temperature = temperature  # None where it isn't known
        self.calibration = calibration  # where that comes from, for people

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits (B, K) float32 on the CPU, and so when they are there, of pixels (B, 3, side, side) uint8 on any device."""
        with torch.inference_mode(), self._autocast():
            return self.model(self.normalize(pixels.to(self.device))).float().cpu()

    def probabilities(self, pixels: Tensor) -> np.ndarray:
        """Return probabilities (B, K) float64 of pixels (B, 3, side, side) uint8; raises `UserError` where they are none."""
        logits = self.logits(pixels).double() / (self.temperature or 1.0)
        shares: np.ndarray = logits.softmax(dim=1).numpy()
        if not np.isfinite(shares).all():
            raise UserError("the weights give probabilities that are nan; take those of another step or run")
        return shares

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.mixed_precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[self.mixed_precision])


def load_model(
    path: str | PathLike[str],
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = None,
    temperature: float | None = None,
) -> Predictor:
    """Return the model of a run folder, of one of its checkpoints or of a weights file, ready for `predict`.

    `mixed_precision` is that of its training unless it is given. So is the `temperature` that `eval.py` found and wrote beside
    the weights: logits are divided by it, so that probabilities are calibrated. Raises `UserError`.
    """
    file = weights_path(path)
    model, about = load_weights(file)
    precision, image_size = mixed_precision or about["mixed_precision"], about.get("image_size")
    config = TrainConfig(epochs=1, device=device, mixed_precision=precision, image_size=image_size)
    check_launch(config, None)
    config = choose_precision(config)
    if temperature is None:
        temperature, calibration = find_temperature(file, about)
    elif is_temperature(temperature):
        calibration = f"calibrated by the given temperature {temperature:g}"
    else:
        raise UserError(f"temperature must be a number greater than 0, got {temperature!r}")
    named = {name: about[name] for name in ("dataset", "classes", "mean", "std")}
    return Predictor(about["model"], model, config, **named, temperature=temperature, calibration=calibration)


def find_temperature(weights: Path, about: Mapping[str, Any]) -> tuple[float | None, str]:
    """Return the temperature that an evaluation beside the weights found for them, if any, and a line about it."""
    problem = f"no {' or '.join(EVALUATIONS)} with a temperature beside {weights}"
    for path in (weights.with_name(name) for name in EVALUATIONS):
        try:
            record = read_json(path)
        except (OSError, ValueError):
            continue
        fitted = record.get("temperature") if isinstance(record, dict) else None
        if fitted is None:
            continue
        value = fitted.get("value") if isinstance(fitted, dict) else None
        if record.get("about") != about or record.get("fingerprint") != about.get("fingerprint"):
            problem = (
                f"{path} is about other weights, or other images than they were trained on; evaluate these with eval.py"
            )
        elif record.get("tta"):
            problem = f"the temperature of {path} is that of --tta"
        elif is_temperature(value):
            return float(value), f"calibrated by temperature {value:.4g} of {path}"
        else:
            problem = f"the temperature of {path} is not a number greater than 0"
    return None, f"not calibrated: {problem}"


def is_temperature(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator] # a number by now
