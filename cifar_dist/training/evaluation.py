"""Evaluation: every image of a split exactly once, the same numbers on any number of ranks."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from cifar_dist.data import Split
from cifar_dist.errors import DivergedError
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import cut
from cifar_dist.models import memory_format
from cifar_dist.models.base import Classifier
from cifar_dist.progress import Report, unheard
from cifar_dist.runtime.collectives import gather_rows, sum_across_ranks
from cifar_dist.runtime.compiling import eagerly
from cifar_dist.runtime.cpu import use_onednn, uses_onednn
from cifar_dist.training.metrics import EvalResult

EVAL_BLOCK = 500  # images; fixed, so that every world size computes the same blocks and so the same logits


def eval_blocks(split: Split, accelerator: Accelerator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield this rank's share of a split's blocks: (places (B,), pixels (B, 3, S, S) uint8, targets (B,)) on the device."""
    for block in own_share(split, accelerator):
        places = torch.arange(block * EVAL_BLOCK, min((block + 1) * EVAL_BLOCK, len(split)), device=accelerator.device)
        yield places, *split.gather(places)


def own_share(split: Split, accelerator: Accelerator) -> range:
    """Return the blocks of a split that this rank looks at."""
    num_blocks = -(-len(split) // EVAL_BLOCK)
    return cut(0, num_blocks, accelerator.num_processes)[accelerator.process_index]


def evaluate(
    model: nn.Module,
    split: Split,
    normalize: Normalize,
    num_classes: int,
    accelerator: Accelerator,
    tta: bool = False,
    progress: Report = unheard,
) -> EvalResult:
    """Look at the whole split, each image exactly once, on any number of ranks; every rank gets the same result.

    An image's logits come from one rank and zeros from the others, so adding them up doesn't round. With `tta` they are the
    weighted mean over `six_views`. `progress` is told how many images were looked at, if the others are
    as far as this rank.
    """
    logits, blocks, start = torch.zeros(len(split), num_classes, device=accelerator.device), 0, time.perf_counter()
    errors = torch.zeros(len(split), 2, device=accelerator.device)
    map_ = model if isinstance(model, Classifier) and model.is_map else None
    own_blocks = len(own_share(split, accelerator))
    with evaluating(model, accelerator):
        for blocks, (places, pixels, _) in enumerate(eval_blocks(split, accelerator), start=1):
            images = normalize(pixels)
            for weight, view in six_views(images) if tta else ((1.0, images),):
                logits[places] += weight * model(view).float()
            if map_:
                errors[places] = map_.map_errors(images)
            progress(len(split) * blocks / own_blocks, len(split))
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    own_s = torch.tensor([(time.perf_counter() - start) / blocks if blocks else 0.0], device=accelerator.device)
    block_s = [seconds or None for seconds in gather_rows(own_s).flatten().tolist()]
    result = replace(EvalResult.of(sum_across_ranks(logits).cpu(), split.labels()), block_s=block_s)
    if map_:
        result = replace(result, map_errors=sum_across_ranks(errors).cpu())
    if not math.isfinite(result.loss):
        raise DivergedError("the weights give a loss that is nan or infinite")
    return result


@contextmanager
def evaluating(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Have the model evaluate inside as every other process would: with oneDNN, which training may do without.

    A compiled model isn't compiled again for this.
    """
    training, onednn = model.training, uses_onednn()
    model.eval()
    if not onednn:
        use_onednn(True)
        model.to(memory_format=memory_format(model))
    try:
        with torch.inference_mode(), accelerator.autocast(), eagerly(model):
            yield
    finally:
        if not onednn:
            use_onednn(False)
            model.to(memory_format=memory_format(model))
        model.train(training)


def six_views(images: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Yield (weight, images): as they are, moved up and left by a pixel, and down and right; each also mirrored (Jordan 2024)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    for weight, view in ((0.25, images), (0.125, padded[..., 2:, 2:]), (0.125, padded[..., :height, :width])):
        yield weight, view
        yield weight, view.flip(-1)
