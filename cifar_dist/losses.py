"""What a training step minimises: cross-entropy, with smoothed or mixed labels, or a self-organizing map's own loss."""

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


def training_loss(
    model: nn.Module, outputs: Tensor, labels: Labels, label_smoothing: float, progress: float
) -> tuple[Tensor, Tensor]:
    """Return (loss summed over images, number of correct predictions), both () on the device.

    `outputs` are the model's in training mode; `progress` in [0, 1) is the share of the run that is done. Where a mixed
    image shows two classes, each counts by its share. A map predicts nothing while it trains: nan are correct.
    """
    if isinstance(model, Som):
        return model.loss_sum(outputs, progress), outputs.new_full((), torch.nan)
    predicted = outputs.detach().argmax(dim=1)
    if labels.others is None or labels.share is None:
        loss_sum = F.cross_entropy(outputs, labels.targets, label_smoothing=label_smoothing, reduction="sum")
        return loss_sum, (predicted == labels.targets).sum()
    loss_sum, correct = outputs.new_zeros(()), outputs.new_zeros(())
    for targets, share in ((labels.targets, labels.share), (labels.others, 1 - labels.share)):
        losses = F.cross_entropy(outputs, targets, label_smoothing=label_smoothing, reduction="none")
        loss_sum, correct = loss_sum + losses @ share.to(losses.dtype), correct + (predicted == targets).float() @ share
    return loss_sum, correct
