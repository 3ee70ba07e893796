"""What a training step minimises: cross-entropy, with smoothed or mixed labels. A map's own loss is in som.py."""

import torch.nn.functional as F
from torch import Tensor

from cifar_dist.inputs.labels import Labels


def cross_entropy_sum(outputs: Tensor, labels: Labels, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of logits (B, K), summed over images, (); each class of a mixed image counts by its share."""
    if labels.others is None or labels.share is None:
        return F.cross_entropy(outputs, labels.targets, label_smoothing=label_smoothing, reduction="sum")
    loss_sum = outputs.new_zeros(())
    for targets, share in ((labels.targets, labels.share), (labels.others, 1 - labels.share)):
        losses = F.cross_entropy(outputs, targets, label_smoothing=label_smoothing, reduction="none")
        # Not a dot product, which rounds by where its operands start in memory: shares are cut from those of several steps.
        loss_sum = loss_sum + (losses * share.to(losses.dtype)).sum()
    return loss_sum
