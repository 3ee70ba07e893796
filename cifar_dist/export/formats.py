"""The formats: how each is written, and how it is read back without anything of this package."""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cifar_dist.errors import UserError, lookup
from cifar_dist.export.graph import INPUT, OUTPUT, SPELLED_OUT, FromPixels, about_graph, capture
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.models import build_model
from cifar_dist.training.weights import pack_weights, side_of

Compute = Callable[[Tensor], Tensor]  # pixels (B, 3, S, S) uint8 -> logits (B, K) float32


@dataclass(frozen=True)
class Source:
    """A trained model and what its weights file says of it."""

    model: nn.Module  # on the CPU, in evaluation mode
    about: Mapping[str, Any]

    def from_pixels(self, model: nn.Module) -> FromPixels:
        """Return `model`, perhaps with other weights, behind this one's normalisation."""
        normalize = Normalize(self.about["mean"], self.about["std"], torch.device("cpu"))
        return FromPixels(model, normalize).to(memory_format=torch.contiguous_format).eval()

    def load(self, tensors: Mapping[str, Tensor]) -> Compute:
        """Return what a fresh model computes with these weights."""
        model = build_model(self.about["model"], len(self.about["classes"]), self.about["model_options"])
        model.load_state_dict(tensors)
        return self.from_pixels(model)

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().contiguous() for name, tensor in self.model.state_dict().items()}


class Format(NamedTuple):
    """A way to write a model down."""

    file: str
    what: str  # for people
    packages: tuple[str, ...]  # that it needs besides requirements.txt
    dump: Callable[[Source], bytes]
    read: Callable[[Source, Path], Compute]


def dump_onnx(source: Source) -> bytes:
    """Return an ONNX model whose metadata hold classes, mean and std."""
    import onnx

    with _quiet():
        graph = _captured(source).run_decompositions(SPELLED_OUT)
        program = torch.onnx.export(graph, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    assert program is not None
    proto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:  # torch numbers it
                size.dim_param = "batch"
    onnx.helper.set_model_props(proto, about_graph(source.about))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def read_onnx(_: Source, path: Path) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])


def dump_pt2(source: Source) -> bytes:
    """Return a program of torch.export, with the same facts in a file inside."""
    import json

    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(_captured(source), buffer, extra_files={"about.json": json.dumps(about_graph(source.about))})
    return buffer.getvalue()


def read_pt2(_: Source, path: Path) -> Compute:
    with _quiet():
        return torch.export.load(path).module()


def dump_pth(source: Source) -> bytes:
    buffer = io.BytesIO()
    torch.save(source.state(), buffer)
    return buffer.getvalue()


def read_pth(source: Source, path: Path) -> Compute:
    return source.load(torch.load(path, weights_only=True))


def dump_safetensors(source: Source) -> bytes:
    written = {name: value for name, value in source.about.items() if name not in ("sha256", "weights_digest")}
    return pack_weights(source.model, written)


def read_safetensors(source: Source, path: Path) -> Compute:
    return source.load(safetensors.torch.load_file(path))


FORMATS = {
    "onnx": Format(
        "model.onnx",
        "ONNX, for onnxruntime and most other runtimes",
        ("onnx", "onnxscript", "onnxruntime"),
        dump_onnx,
        read_onnx,
    ),
    "pt2": Format("model.pt2", "a program of torch.export, for torch alone", (), dump_pt2, read_pt2),
    "pth": Format("model.pth", "a state_dict as torch.save writes one", (), dump_pth, read_pth),
    "safetensors": Format(
        "model.safetensors",
        "weights that eval.py reads, with what rebuilds the model",
        (),
        dump_safetensors,
        read_safetensors,
    ),
}


def missing(name: str) -> list[str]:
    """Return the packages that a format needs and that aren't installed."""
    return [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]


def check_formats(names: tuple[str, ...]) -> None:
    """Raise `UserError` for a format that there isn't, is named twice, or lacks a package."""
    for name in names:
        lookup(FORMATS, name, "format")
        if packages := missing(name):
            raise UserError(
                f"--format {name} needs {' and '.join(packages)}; pip install {' '.join(packages)}, or leave {name} out"
            )
    if len(set(names)) < len(names):
        raise UserError(f"--format {' '.join(names)} names one twice; once is enough")


def _captured(source: Source) -> ExportedProgram:
    return capture(source.from_pixels(source.model), side_of(source.about))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks on its own exporter from users, who can do nothing about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
