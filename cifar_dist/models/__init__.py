"""All models: (num_classes) -> nn.Module that maps images (B, 3, 32, 32) float to logits (B, num_classes)."""

from collections.abc import Callable

from torch import nn

from cifar_dist.errors import lookup, unknown
from cifar_dist.models.lenet import lenet
from cifar_dist.models.resnet import resnet20, resnet32, resnet44, resnet56, resnet110

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "lenet": lenet,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
}
ALIASES = {"resnet": "resnet20"}


def model_name(name: str) -> str:
    """Return the key of MODELS that `name` means; raises `UserError` naming the nearest."""
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise unknown("model", name, [*MODELS, *ALIASES])
    return name


def build_model(name: str, num_classes: int = 10) -> nn.Module:
    """Build a model with fresh weights drawn from torch's global generator."""
    return lookup(MODELS, name, "model")(num_classes)
