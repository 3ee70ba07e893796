"""Evaluation: every image of a split exactly once, the same numbers on any number of ranks."""

import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cifar_dist.augment import Normalize
from cifar_dist.data import Split
from cifar_dist.distributed import sum_across_ranks
from cifar_dist.metrics import EvalResult, EvalSums
from cifar_dist.models.som import Som
from cifar_dist.sampling import cut

EVAL_BLOCK = 500  # images; fixed, so that every world size computes the same blocks and so the same logits


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def eval_blocks(split: Split, accelerator: Accelerator) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield this rank's share of a split's blocks: (number, pixels (B, 3, 32, 32) uint8, targets (B,)) on the device."""
    for block in cut(0, num_eval_blocks(split), accelerator.num_processes)[accelerator.process_index]:
        places = range(block * EVAL_BLOCK, min((block + 1) * EVAL_BLOCK, len(split)))
        yield block, *split.gather(torch.arange(places.start, places.stop, device=accelerator.device))


def num_eval_blocks(split: Split) -> int:
    return -(-len(split) // EVAL_BLOCK)


@torch.inference_mode()
def evaluate(
    model: nn.Module, split: Split, normalize: Normalize, num_classes: int, accelerator: Accelerator
) -> EvalResult:
    """Count over the whole split, each image exactly once, on any number of ranks; every rank gets the same result."""
    training = model.training
    model.eval()
    sums = EvalSums(num_classes, num_eval_blocks(split), accelerator.device)
    for block, pixels, targets in eval_blocks(split, accelerator):
        with accelerator.autocast():
            logits = model(normalize(pixels))
        sums.add(block, logits, targets)
    model.train(training)
    result = sums.result(sum_across_ranks)
    if not math.isfinite(result.loss):
        raise DivergedError("the weights give a loss that is nan or infinite")
    return result


@torch.inference_mode()
def label_units(model: Som, split: Split, normalize: Normalize, accelerator: Accelerator) -> None:
    """Count the images of each class that each unit of a map wins, exactly, on any number of ranks."""
    wins = torch.zeros_like(model.wins)
    for _, pixels, targets in eval_blocks(split, accelerator):
        winners = model.distances(normalize(pixels)).argmin(dim=1)
        wins.index_put_((winners, targets), torch.ones_like(targets), accumulate=True)
    model.wins.copy_(sum_across_ranks(wins))
