"""Does a compiled model compute what the eager one does? Both against float64, for every model, in float32 and bfloat16.

    python benchmarks/compiled.py                      # all models on a CPU; a quarter of an hour on two cores
    python benchmarks/compiled.py lenet speednet --batch-size 32

Each line: how far outputs, gradient, and weights after three steps of SGD are from those in float64, as a share of their norm (of
the weights' change), eager and compiled; and how long compiling took. A compiler may add in another order and round less often: so
it may be as far off as eager is, not farther (DIFFERENT: over three times as far, or not finite).
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cifar_dist.inputs.labels import Labels
from cifar_dist.models import MODELS, build_model
from cifar_dist.models.dropout import DropoutMasks

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
IN_FLOAT32 = ("som",)  # whatever it is given
NAMES = ("outputs", "gradient", "three steps")
TIMES_AS_FAR = 3.0
# Below which nothing is told apart, of each of NAMES: one ReLU that rounding switches moves later steps by so much.
UNIT = {"float32": (1e-6, 1e-5, 1e-2), "bfloat16": (1e-2, 1e-1, 1e-1)}


class Steps(NamedTuple):
    """What three steps computed."""

    outputs: Tensor  # of the first
    gradient: list[Tensor]
    change: list[Tensor]  # of the weights


def main(argv: Sequence[str]) -> int:
    """Print the table; returns 1 where a model differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args(argv)
    print(
        "| model | precision | "
        + " | ".join(f"{name}, eager / compiled" for name in NAMES)
        + " | s | |\n|---|---|---|---|---|---|---|"
    )
    unlike = 0
    for name in given.models or MODELS:
        for precision in PRECISIONS:
            torch._dynamo.reset()
            start = time.monotonic()
            eager, compiled = errors(name, precision, given.batch_size)
            word = "" if agree(eager, compiled, precision) else "DIFFERENT"
            cells = " | ".join(f"{a:.1e} / {b:.1e}" for a, b in zip(eager, compiled, strict=True))
            print(f"| {name} | {precision} | {cells} | {time.monotonic() - start:.0f} | {word} |", flush=True)
            unlike += bool(word)
    return 1 if unlike else 0


def errors(name: str, precision: str, batch_size: int) -> tuple[list[float], list[float]]:
    """Return how far eager and compiled are from float64: outputs, gradient, the weights' change in three steps."""
    torch.manual_seed(0)
    model = build_model(name)
    images = torch.randn(batch_size, 3, 32, 32)
    model.fit(images[: model.images_to_fit])
    labels = Labels(torch.randint(10, (batch_size,)))
    exact = torch.float32 if name in IN_FLOAT32 else torch.float64
    truth = steps(copy.deepcopy(model).to(exact), images.to(exact), labels, None)
    compiled = copy.deepcopy(model)
    compiled.compile(dynamic=False)
    return tuple(  # type: ignore[return-value]
        [far(a, b) for a, b in zip(steps(one, images, labels, PRECISIONS[precision]), truth, strict=True)]
        for one in (model, compiled)
    )


def agree(eager: Sequence[float], compiled: Sequence[float], precision: str) -> bool:
    """Whether compiled is about as far from the truth as eager; what is not finite is not."""
    return all(b <= TIMES_AS_FAR * max(a, u) for a, b, u in zip(eager, compiled, UNIT[precision], strict=True))


def steps(model: nn.Module, images: Tensor, labels: Labels, precision: torch.dtype | None) -> Steps:
    """Take three steps on one batch."""
    DropoutMasks(model, seed=0).draw(torch.arange(len(images)))
    parameters = [p for p in model.parameters() if p.requires_grad]
    before, seen = [p.detach().clone() for p in parameters], []
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    for step in range(3):
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            outputs = model(images)
        loss = model.loss_sum(
            outputs.double() if images.dtype == torch.float64 else outputs.float(), labels, 0.0, step / 3
        )
        (loss / len(images)).backward()
        if not step:
            seen = [outputs.detach(), [p.grad.clone() for p in parameters]]
        optimizer.step()
        optimizer.zero_grad()
    return Steps(seen[0], seen[1], [p.detach() - b for p, b in zip(parameters, before, strict=True)])


def far(found: Tensor | list[Tensor], truth: Tensor | list[Tensor]) -> float:
    """Return the distance as a share of the truth's norm; of several tensors that of the farthest, none smaller than a hundredth of all."""
    found, truth = ([x] if isinstance(x, Tensor) else x for x in (found, truth))
    norms = [t.norm().item() for t in truth]
    least = 0.01 * sum(n**2 for n in norms) ** 0.5
    return max(((f.double() - t).norm() / max(n, least)).item() for f, t, n in zip(found, truth, norms, strict=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
