"""What a training step minimises: cross-entropy, with smoothed or mixed labels, or a self-organizing map's own loss."""

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.inputs.labels import Labels
from cifar_dist.models.som import Som


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
