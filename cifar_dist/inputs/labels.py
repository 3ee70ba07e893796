"""The classes of a batch, of mixed images two, and how many of them are recognised."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Labels(NamedTuple):
    """The classes of a batch: `targets` (B,) int64 and, where images are mixed, `others` (B,) with `share` (B,) left to `targets`."""

    targets: Tensor
    others: Tensor | None = None
    share: Tensor | None = None


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
