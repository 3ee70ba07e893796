"""What training asks of a model besides its logits. Most models take all of it as it is here."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from cifar_dist.inputs.labels import Labels
from cifar_dist.models.losses import cross_entropy_sum


class Prototypes(NamedTuple):
    """A grid of units as people look at them."""

    images: Tensor  # (rows, columns, 3, H, W), normalised
    wins: Tensor  # (rows, columns, K) int64: the training images of each class that a unit wins
    u_matrix: Tensor  # (rows, columns) float32: how far a unit lies from its neighbours, see `som.u_matrix`


class Classifier(nn.Module):
    """Images (B, 3, 32, 32) float -> logits (B, K), in evaluation at least."""

    images_to_fit = 0  # training images that `fit` wants to see
    is_map = False  # whether there are `map_errors`

    def fit(self, images: Tensor) -> None:
        """Set what a fresh model takes from normalised training images (N, 3, H, W), not from chance."""

    def loss_sum(self, outputs: Tensor, labels: Labels, label_smoothing: float, progress: float | Tensor) -> Tensor:
        """Return what a step minimises, summed over images, () on the device.

        `outputs` are the model's in training mode; `progress` () in [0, 1) is the share of the run that is done.
        """
        return cross_entropy_sum(outputs, labels, label_smoothing)

    def training_logits(self, outputs: Tensor) -> Tensor | None:
        """Return the logits (B, K) among the outputs in training mode; None where the model predicts nothing yet."""
        return outputs

    def label(self, blocks: Iterable[tuple[Tensor, Tensor]], sum_across_ranks: Callable[[Tensor], Tensor]) -> None:
        """Learn the classes afterwards, of a model that trains without them. Collective.

        `blocks` are this rank's share of the training images: normalised images (B, 3, 32, 32), targets (B,).
        """

    def map_errors(self, images: Tensor) -> Tensor:
        """Return how badly a map fits each of some normalised images, (B, 2) float32, as `Som.map_errors` defines it."""
        raise NotImplementedError

    def prototypes(self) -> Prototypes | None:
        """Return what the model's units stand for, to be drawn; None where that is no image."""
        return None


class Layers(Classifier, nn.Sequential):
    """A classifier whose layers follow one another."""
