"""All models: builders (num_classes, options) -> nn.Module that maps images (B, 3, 32, 32) float to logits (B, num_classes).

A builder's keyword arguments are what `--model-options` can set; the first line of its docstring is shown in lists.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from cifar_dist.errors import UserError, lookup, unknown
from cifar_dist.models.base import Classifier
from cifar_dist.models.ghasemi import ghasemi
from cifar_dist.models.lenet import lenet
from cifar_dist.models.mlp import mlp
from cifar_dist.models.pandey import pandey
from cifar_dist.models.resnet import resnet20, resnet32, resnet44, resnet56, resnet110
from cifar_dist.models.resnet_imagenet import resnet18, resnet34, resnet50
from cifar_dist.models.sengar import sengar
from cifar_dist.models.som import som
from cifar_dist.models.speednet import speednet
from cifar_dist.models.zhang import zhang
from cifar_dist.text import shortened

MODELS: dict[str, Callable[..., Classifier]] = {
    "lenet": lenet,
    "ghasemi": ghasemi,
    "pandey": pandey,
    "som": som,
    "sengar": sengar,
    "zhang": zhang,
    "mlp": mlp,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "speednet": speednet,
}
ALIASES = {"resnet": "resnet20"}
LARGEST_OPTION = 10_000  # a width, a number of layers: building more would take minutes to be refused
MOST_PARAMETERS = 10**9
WORDS = {"yes": True, "true": True, "no": False, "false": False}


def model_name(name: str) -> str:
    """Return the key of MODELS that `name` means; raises `UserError` naming the nearest."""
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise unknown("model", name, [*MODELS, *ALIASES])
    return name


def build_model(name: str, num_classes: int = 10, options: Sequence[str] = ()) -> Classifier:
    """Build a model with fresh weights drawn from torch's global generator; `options` are words KEY=VALUE.

    Raises `UserError` for an option that the model doesn't have, or can't have at that value.
    """
    model: Classifier = lookup(MODELS, name, "model")(num_classes, **parse_options(name, options))
    return model.to(memory_format=memory_format(model))


def memory_format(model: nn.Module) -> torch.memory_format:
    """Return how a model's filters and images lie in memory.

    Convolutions read all channels of a pixel together: 1.0 to 1.5 times as fast on a CPU, never slower (docs/PERFORMANCE.md);
    but those of torch itself, without oneDNN, a channel after the other.
    """
    has_filters = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if has_filters and torch.backends.mkldnn.enabled else torch.contiguous_format


@cache
def forward_macs(name: str, options: tuple[str, ...] = (), num_classes: int = 10, size: int = 32) -> int:
    """Return the multiply-accumulates of an image of `size` x `size` in layers with weights, forward: what `summary` counts.

    Counted on a real image: the counter of torch, and tensors without memory, take seconds to import.
    """
    counts: list[int] = []

    def count(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim > 1:  # each weight is used once at each place of the output
            counts.append(weight.numel() * math.prod(output.shape[2:]))

    model = build_model(name, num_classes, options).eval()
    for module in model.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    return sum(counts)


def check_model(name: str, options: Sequence[str]) -> None:
    """Raise `UserError` where the model can't be built with these options; costs no memory."""
    if not options:
        lookup(MODELS, name, "model")
        return
    try:
        with torch.device("meta"):
            model = build_model(name, options=options)
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--model-options {' '.join(options)}: {name} can't be built like this ({reason})") from None
    if (number := sum(p.numel() for p in model.parameters())) > MOST_PARAMETERS:
        raise UserError(
            f"--model-options {' '.join(options)}: {name} would have {number:.2g} parameters, more than {MOST_PARAMETERS:.0e}"
        )


def check_image_size(name: str, options: Sequence[str], size: int, what: str, way_out: str) -> None:
    """Raise `UserError` where the model can't take images of `size` x `size` pixels, which `what` asks for.

    A published network that ends in linear layers for 32x32 pixels would be another one with layers for other images.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others would start before `prepare_cpu` has said what they inherit
    try:
        forward_macs(name, tuple(options), size=size)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{what} {size}: {name} can't take images of that size ({reason}); {way_out}") from None
    finally:
        torch.set_num_threads(threads)


def default_options(name: str) -> dict[str, Any]:
    """Return the options a model has, with their defaults."""
    parameters = inspect.signature(lookup(MODELS, name, "model")).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def parse_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """("dropout=0.2",) -> {"dropout": 0.2}, read as what the model's default is. Raises `UserError`."""
    defaults, options = default_options(name), {}
    for word in words:
        key, equals, text = word.partition("=")
        if not defaults:
            raise UserError(f"--model-options {word}: {name} has no options; leave it out")
        if not equals:
            raise UserError(f"--model-options takes KEY=VALUE, got {word!r}; {name} has {', '.join(defaults)}")
        if key in options:
            raise UserError(f"--model-options {' '.join(words)} sets {key} twice; once is enough")
        kind = type(lookup(defaults, key, f"option of {name}"))
        try:
            options[key] = WORDS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            what = {bool: "yes or no", int: "a whole number", float: "a number"}[kind]
            raise UserError(f"--model-options {key} must be {what}, got {shortened(repr(text))}") from None
        if kind is int and options[key] > LARGEST_OPTION:
            raise UserError(f"--model-options {key} must be at most {LARGEST_OPTION}, got {shortened(text)}")
    return options
