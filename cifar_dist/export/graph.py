"""What is exported: a model that takes pixels as they are, so that nobody has to know how it was normalised."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cifar_dist.inputs.normalize import Normalize
from cifar_dist.text import printable
from cifar_dist.training.weights import side_of

INPUT, OUTPUT = "pixels", "logits"  # the names that a graph gives them


def input_is(about: Mapping[str, Any]) -> str:
    """Return what a graph takes, for people."""
    return f"uint8 (batch, 3, {side_of(about)}, {side_of(about)}), red, green and blue as images store them, 0 to 255"


class FromPixels(nn.Module):
    """Pixels (B, 3, S, S) uint8 -> logits (B, K) float32: normalisation, then the model, in evaluation mode.

    uint8 as an image is stored: a float input would be taken in [0, 1] by some and in [0, 255] by others, and no program says so.
    """

    scale: Tensor  # (1, 3, 1, 1)
    shift: Tensor

    def __init__(self, model: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", normalize.scale)
        self.register_buffer("shift", normalize.shift)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels.float() * self.scale + self.shift)


def capture(module: FromPixels, side: int) -> ExportedProgram:
    """Return the module as a graph of torch's own operators, for any number of images of `side` x `side` pixels at once."""
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)  # of one image, the graph would be for one
    return torch.export.export(module, (example,), dynamic_shapes=({0: Dim("batch")},))


def global_max(images: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return what `adaptive_max_pool2d` does to a single place, (B, C, H, W) -> twice (B, C, 1, 1), as a maximum and where it is."""
    if list(size) != [1, 1]:
        raise NotImplementedError(f"adaptive_max_pool2d to {list(size)}")
    largest, places = images.flatten(-2).max(dim=-1)
    return largest[..., None, None], places[..., None, None]


# What the ONNX exporter of torch 2.11 has no word for.
SPELLED_OUT = {torch.ops.aten.adaptive_max_pool2d.default: global_max}


def about_graph(about: Mapping[str, Any]) -> dict[str, str]:
    """Return what a graph says of itself, as text by name; lists are JSON. `about` is a weights file's."""
    lists = {"classes": list(about["classes"]), "mean": list(about["mean"]), "std": list(about["std"])}
    words = {
        "model": " ".join([about["model"], *about["model_options"]]),
        "input": f"{INPUT}: {input_is(about)}; mean and std are applied inside",
        "output": f"{OUTPUT}: float32 (batch, {len(about['classes'])}), in the order of classes; their softmax is probabilities",
    }
    return {name: json.dumps(value) for name, value in lists.items()} | {n: printable(t) for n, t in words.items()}
