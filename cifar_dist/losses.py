"""What a training step minimises: cross-entropy, with smoothed or mixed labels, or a self-organizing map's own loss."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.models.som import Som


class Labels(NamedTuple):
    """The classes of a batch: `targets` (B,) int64 and, where images are mixed, `others` (B,) with `share` (B,) left to `targets`."""

    targets: Tensor
    others: Tensor | None = None
    share: Tensor | None = None


def training_loss(model: nn.Module, outputs: Tensor, labels: Labels, label_smoothing: float, progress: float) -> Tensor:
    """Return the loss summed over images, () on the device.

    `outputs` are the model's in training mode; `progress` in [0, 1) is the share of the run that is done. Where a mixed
    image shows two classes, each counts by its share.
    """
    if isinstance(model, Som):
        return model.loss_sum(outputs, progress)
    if labels.others is None or labels.share is None:
        return F.cross_entropy(outputs, labels.targets, label_smoothing=label_smoothing, reduction="sum")
    loss_sum = outputs.new_zeros(())
    for targets, share in ((labels.targets, labels.share), (labels.others, 1 - labels.share)):
        losses = F.cross_entropy(outputs, targets, label_smoothing=label_smoothing, reduction="none")
        # Not a dot product, which rounds by where its operands start in memory: shares are cut from those of several steps.
        loss_sum = loss_sum + (losses * share.to(losses.dtype)).sum()
    return loss_sum


def count_correct(outputs: Tensor, labels: Labels) -> Tensor:
    """Return how many of `outputs` (B, K) predict their class, () float64; each class of a mixed image counts by its share.

    Exact for any cut of a batch: shares are multiples of 2**-24.
    """
    predicted = outputs.argmax(dim=1)
    if labels.others is None or labels.share is None:
        return (predicted == labels.targets).sum().double()
    share = labels.share.double()
    return (predicted == labels.targets).double() @ share + (predicted == labels.others).double() @ (1 - share)


def join_labels(parts: Sequence[Labels]) -> Labels:
    """Return the labels of several batches as those of one."""
    targets, others, shares = zip(*parts, strict=True)
    if others[0] is None:
        return Labels(torch.cat(targets))
    return Labels(torch.cat(targets), torch.cat(others), torch.cat(shares))
