"""`python -m cifar_dist summary MODEL`: a model's layers, measured by running it on blank images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from cifar_dist.cli import command_parser
from cifar_dist.config import POSITIVE, check_bounds, option
from cifar_dist.console import Console
from cifar_dist.errors import UserError
from cifar_dist.exits import FINISHED
from cifar_dist.files import write_atomically
from cifar_dist.models import build_model
from cifar_dist.models.flow import describe, trace
from cifar_dist.options import add_flags, check_output, resolve_train_config
from cifar_dist.report.architecture import architecture
from cifar_dist.report.drawing import draw


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """The options of `summary`."""

    model: str = option("", "the same (default: the recipe's first)")
    model_options: tuple[str, ...] = option((), "KEY=VALUE settings of the model, such as dropout=0.2 (default: none)")
    recipe: str = option("", "take the model and its settings from this recipe, such as ghasemi2024/1 (default: none)")
    num_classes: int = option(10, "logits per image", must_be=POSITIVE)
    batch_size: int = option(1, "images", must_be=POSITIVE)
    draw: str = option(
        "", "draw its layers and the ways around them too, into this file, such as net.svg (default: no)"
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.draw and Path(self.draw).suffix.lower() != ".svg":
            raise UserError(f"--draw {self.draw} doesn't end in .svg, which is what is drawn; give a name that does")
        check_output(self.draw, "--draw")
        if not self.model and not self.recipe:
            raise UserError("which model? Give a name, such as summary lenet, or --recipe NAME")


class Layer(NamedTuple):
    """A row of the table: a module that has parameters or arithmetic of its own, or no modules inside."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # of its output; None if it was not called
    parameters: int
    macs: int  # multiply-accumulates


def main(argv: Sequence[str]) -> int:
    """Print the table; raises `UserError`."""
    parser = command_parser("summary", usage="%(prog)s MODEL [options]")
    parser.add_word("model", "MODEL", "which network")
    add_flags(parser, SummaryOptions)
    options = SummaryOptions(**parser.parse(argv))
    chosen = {"model": options.model, "model_options": options.model_options, "recipe": options.recipe}
    config = resolve_train_config({name: value for name, value in chosen.items() if value})
    with torch.device("meta"):  # shapes without memory
        model = build_model(config.model, options.num_classes, config.model_options)
        layers = summarize(model, options.batch_size)
    title = " ".join([config.model, *config.model_options])
    show(title, layers)
    if options.draw:
        with torch.device("meta"):
            net = architecture(trace(model))
        write_atomically(Path(options.draw), draw(net, title).encode(errors="replace"))
        Console(speaks=True).say(f"drawn in {options.draw}")
    return FINISHED


def summarize(model: nn.Module, batch_size: int) -> list[Layer]:
    """Run the model in evaluation mode on `batch_size` black images, and return what each layer has and did."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note_shape(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        shapes[module] = tuple(output.shape)

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), register_module_forward_hook(note_shape), counter:
        model.eval()(torch.zeros(batch_size, 3, 32, 32))
    macs = own_macs(counter.get_flop_counts())
    layers = []
    for name, module in model.named_modules():
        own = macs.get(".".join(filter(None, (type(model).__name__, name))), 0)
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        if own or parameters or not list(module.children()):
            layers.append(Layer(name, describe(module), shapes.get(module), parameters, own))
    return layers


def own_macs(flop_counts: dict[str, dict[Any, int]]) -> dict[str, int]:
    """Return the multiply-accumulates of each module without those of the modules inside it."""
    totals = {name: sum(by_operator.values()) // 2 for name, by_operator in flop_counts.items() if name != "Global"}
    own = dict(totals)
    for name, total in totals.items():
        around = [outer for outer in totals if name.startswith(f"{outer}.")]
        if around:
            own[max(around, key=len)] -= total
    return own


def show(title: str, layers: Sequence[Layer]) -> None:
    """Print the table and its totals."""
    parameters, macs = sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("layer", "type", "output"):
        table.add_column(heading)
    for heading in ("parameters", "MACs"):
        table.add_column(heading, justify="right")
    for layer in layers:
        shape = "x".join(map(str, layer.shape)) if layer.shape else "-"
        table.add_row(layer.name or "(itself)", layer.kind, shape, _number(layer.parameters), _number(layer.macs))
    table.add_row()
    table.add_row("total", "", "", f"{parameters:,}", f"{macs:,}", style="bold")
    console = Console(speaks=True)
    console.rich.width = 10_000  # deep models are wider than 80 columns, and half a number is none
    console.say(title, "bold")
    console.rich.print(table)
    console.say(f"The parameters take {4 * parameters / 1e6:.2f} MB as float32.")
    console.say("MACs: multiply-accumulates of the convolutions and matrix products, forward.")


def _number(count: int) -> str:
    return f"{count:,}" if count else ""
