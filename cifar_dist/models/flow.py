"""What a model does with an image: its layers and operations in the order they run, and which feeds which. Seen, not declared."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from cifar_dist.config import SIDE
from cifar_dist.models.dropout import Dropout

INPUT = -1  # stands for the image among the steps that a step takes from
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Operations that leave the numbers as they are; `get` reads an attribute, such as T.
SILENT = ("float", "to", "type", "contiguous", "clone", "detach", "half", "double", "bfloat16", "type_as", "get")
SCALING = ("mul", "rmul", "div", "truediv", "add", "radd", "sub")  # silent too where the other operand is a number
WORDS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "flatten": "Flatten",
    "cat": "concatenate",
    "sub": "subtract",
    "matmul": "matrix product",
    "getitem": "slice",
    "pad": "zero padding",
    "masked_fill": "mask",
    "max_pool2d": "MaxPool2d",
    "avg_pool2d": "AvgPool2d",
    "adaptive_avg_pool2d": "global average pooling",
}


@dataclass(frozen=True)
class Step:
    """A layer, or an operation outside of layers, in a pass of one image."""

    name: str  # of the layer in the model; empty of an operation
    kind: str  # Conv2d, relu, add, ...
    text: str  # for people, with the settings that matter
    shape: tuple[int, ...]  # of its output, without the batch
    parameters: int  # that it is the first to use
    inputs: tuple[int, ...]  # the steps it takes from
    block: str  # the outermost module around it that is more than a list of others; empty where there is none
    block_kind: str


def trace(model: nn.Module, side: int = SIDE) -> list[Step]:
    """Run the model in evaluation mode on a black image of `side` x `side` pixels, and return its steps in the order they ran.

    What doesn't depend on the image is left out. The model is as it was afterwards.
    """
    tracer, training, hooks = _Tracer(model, side), model.training, []
    for module in list(model.modules())[1:]:
        hooks.append(module.register_forward_pre_hook(tracer.enter))
        hooks.append(module.register_forward_hook(tracer.leave))
    try:
        with torch.no_grad(), tracer:
            model.eval()(tracer.image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return tracer.steps


class _Tracer(TorchFunctionMode):
    """Notes each call of a layer, and of a function outside of layers, whose input follows from the image."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.image = torch.zeros(1, 3, side, side, device=next(model.parameters()).device)
        self.steps: list[Step] = []
        self.made = {id(self.image): INPUT}  # tensor -> the step it came from last
        self.alive: list[Any] = [self.image]  # all tensors met, so that no identity is given twice
        self.around: list[nn.Module] = []  # the modules that are running
        self.names = {module: name for name, module in model.named_modules()}
        self.unused = {id(p): p.numel() for p in model.parameters()}
        self.learned = {id(p): [id(p)] for p in model.parameters()}  # tensor -> the parameters it follows from

    def enter(self, module: nn.Module, _inputs: Any) -> None:
        self.around.append(module)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.around.pop()
        if _is_layer(module):
            self._note(
                self.names[module], type(module).__name__, describe(module), inputs, output, list(module.parameters())
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not isinstance(output, Tensor) or (self.around and _is_layer(self.around[-1])):
            return output
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.alive += [output, *given]
        learned = [p for tensor in given if id(tensor) not in self.made for p in self.learned.get(id(tensor), [])]
        sources = [self.made[id(tensor)] for tensor in given if id(tensor) in self.made]
        kind = getattr(func, "__name__", "operation").strip("_")
        if not sources:
            self.learned[id(output)] = learned
        elif kind in SILENT or (kind in SCALING and len(given) == 1):
            self.made[id(output)] = sources[0]
        else:
            text = _operation(kind, args, given, output, id(given[0]) in self.made)
            self._note("", kind, text, given, output, learned)
        return output

    def _note(self, name: str, kind: str, text: str, inputs: Any, output: Tensor, parameters: list[Any]) -> None:
        sources = [self.made[id(leaf)] for leaf in tree_leaves(inputs) if id(leaf) in self.made]
        own = sum(self.unused.pop(p if isinstance(p, int) else id(p), 0) for p in parameters)
        block = next((module for module in self.around if not isinstance(module, CONTAINERS)), None)
        where = (self.names[block], type(block).__name__) if block else ("", "")
        self.steps.append(Step(name, kind, text, tuple(output.shape[1:]), own, tuple(dict.fromkeys(sources)), *where))
        self.made[id(output)] = len(self.steps) - 1
        self.alive.append(output)


def _is_layer(module: nn.Module) -> bool:
    return not any(module.children())


def _operation(kind: str, args: Any, given: list[Tensor], output: Tensor, of_the_image: bool) -> str:
    """Return what people call a function of the tensors `given`; a table that the image is looked up in isn't `of_the_image`."""
    if kind == "getitem" and not of_the_image:
        return "look up"
    if kind == "getitem":
        strides = [part.step for part in tree_leaves(args[1]) if isinstance(part, slice) and part.step not in (None, 1)]
        return f"slice /{strides[0]}" if strides else "slice"
    if kind == "mean" and (given[0].ndim, output.ndim) == (4, 2):
        return "global average pooling"
    if kind == "max_pool2d" and output.shape[2:] == (1, 1):
        return "global max-pooling"
    return WORDS.get(kind, kind)


def describe(module: nn.Module) -> str:
    """Return the type and the settings that matter: `Conv2d 3->32 3x3 /2` has stride 2."""
    settings = ""
    match module:
        case nn.Conv2d(kernel_size=(height, width), stride=(stride, _)):
            settings = f"{module.in_channels}->{module.out_channels} {height}x{width}" + f" /{stride}" * (stride > 1)
        case nn.Linear():
            settings = f"{module.in_features}->{module.out_features}"
        case nn.MaxPool2d(kernel_size=size) | nn.AvgPool2d(kernel_size=size):
            settings = str(size)
        case Dropout():
            settings = f"{module.p:g}"
    return f"{type(module).__name__} {settings}".rstrip()
