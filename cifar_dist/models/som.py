"""Kohonen's self-organizing map, as in Abhishek Pandey, "Image classification using PyTorch" (2020), §1.2."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cifar_dist.errors import UserError
from cifar_dist.inputs.labels import Labels
from cifar_dist.models.base import Classifier, Prototypes


class Som(Classifier):
    """A grid of units, each a weight vector as long as an image, and how many training images of each class it wins."""

    is_map = True
    grid_distances: Tensor  # (U, U) float32: squared distance on the grid between any two units
    wins: Tensor  # (U, K) int64: set by `label`

    def __init__(self, num_classes: int, rows: int, columns: int, sigma_start: float, sigma_end: float) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.sigma_start, self.sigma_end = sigma_start, sigma_end
        self.weight = nn.Parameter(0.1 * torch.randn(rows * columns, 3 * 32 * 32))
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        squares = (places.unsqueeze(0) - places.unsqueeze(1)).square().sum(dim=2)
        self.register_buffer("grid_distances", squares, persistent=False)
        self.register_buffer("wins", torch.zeros(rows * columns, num_classes, dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) -> squared distances (B, U) in training, logits (B, K) in evaluation.

        A logit is the log of the share that a class has in the training images won by the image's unit, each class having
        one more: its largest is the unit's majority class, its second largest the runner-up. An image goes to the nearest
        unit that won any.
        """
        distances = self.distances(images)
        if self.training:
            return distances
        totals = self.wins.sum(dim=1)
        distances = distances.masked_fill((totals == 0) & totals.any(), torch.inf)
        shares = (self.wins + 1) / (totals + self.wins.shape[1]).unsqueeze(1)
        return shares.log()[distances.argmin(dim=1)]

    def distances(self, images: Tensor) -> Tensor:
        """Return the squared distance (B, U) float32 of each image to each unit."""
        device = images.device.type
        # A difference of large sums needs all its digits. (`summary` runs models on the meta device, which has no autocast.)
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            x = images.flatten(1).float()
            return x.square().sum(dim=1, keepdim=True) - 2 * x @ self.weight.T + self.weight.square().sum(dim=1)

    def loss_sum(self, outputs: Tensor, labels: Labels, label_smoothing: float, progress: float | Tensor) -> Tensor:
        """Return the sum over images of 1/2 sum_j h(b, j) |x - w_j|^2, whose gradient step is Kohonen's adaptation.

        `outputs` (B, U) are squared distances. The winner b and its neighbourhood h(b, j) = exp(-d(b, j)^2 / 2 sigma^2) are
        held constant; sigma falls exponentially with `progress`. Labels have no part in it.
        """
        sigma = self.sigma_start * (self.sigma_end / self.sigma_start) ** progress
        winners = outputs.detach().argmin(dim=1)
        neighbourhood = torch.exp(self.grid_distances[winners] / (-2 * sigma**2))
        return 0.5 * (neighbourhood * outputs).sum()

    def training_logits(self, outputs: Tensor) -> None:
        """A map predicts nothing while it trains."""

    @torch.inference_mode()
    def label(self, blocks: Iterable[tuple[Tensor, Tensor]], sum_across_ranks: Callable[[Tensor], Tensor]) -> None:
        """Count the training images of each class that each unit wins."""
        wins = torch.zeros_like(self.wins)
        for images, targets in blocks:
            winners = self.distances(images).argmin(dim=1)
            wins.index_put_((winners, targets), torch.ones_like(targets), accumulate=True)
        self.wins.copy_(sum_across_ranks(wins))

    def map_errors(self, images: Tensor) -> Tensor:
        """Return the distance of each image to its best unit, and 1 where its second best unit isn't a neighbour of that, else 0.

        Their means over images are the quantisation error, in the units of normalised inputs (Kohonen, "Self-Organizing Maps",
        3rd ed. 2001), and the topographic error (Kiviluoto 1996, "Topology preservation in self-organizing maps"), which is 0
        where the map keeps neighbours together. Neighbours share a side on the grid. All units count, also those that win no
        training image. A map of one unit has no second best, and no topographic error.
        """
        squares = self.distances(images)
        nearest, units = squares.topk(min(2, squares.shape[1]), dim=1, largest=False)
        torn = self.grid_distances[units[:, 0], units[:, -1]] > 1
        return torch.stack((nearest[:, 0].clamp(min=0).sqrt(), torn.float()), dim=1)

    def prototypes(self) -> Prototypes:
        grid = (self.rows, self.columns)
        weights = self.weight.detach()
        return Prototypes(weights.view(*grid, 3, 32, 32), self.wins.view(*grid, -1), u_matrix(weights.view(*grid, -1)))


def u_matrix(weights: Tensor) -> Tensor:
    """Return for each unit of `weights` (rows, columns, D) the mean distance to its two to four neighbours on the grid.

    Valleys are clusters, ridges their borders (Ultsch and Siemon 1990, "Kohonen's self organizing feature maps for exploratory
    data analysis"; Kohonen 2001). A map of one unit has no neighbours, and 0.
    """
    total, neighbours = torch.zeros(2, *weights.shape[:2], device=weights.device)
    for dim in (0, 1):
        before, after = (slice(None),) * dim + (slice(None, -1),), (slice(None),) * dim + (slice(1, None),)
        between = (weights[after] - weights[before]).square().sum(dim=2).sqrt()
        for side in (before, after):
            total[side] += between
            neighbours[side] += 1
    return total / neighbours.clamp(min=1)


def som(
    num_classes: int, *, rows: int = 20, columns: int = 20, sigma_start: float = 10.0, sigma_end: float = 0.5
) -> Som:
    """A self-organizing map, classifying by majority of the training images a unit wins (Pandey 2020, §1.2); 1,228,800 parameters.

    Not given, so chosen: 20 x 20 units, sigma from half the grid's side to half a unit, initial weights around the mean colour.
    """
    if min(rows, columns) < 1 or not math.inf > sigma_start >= sigma_end > 0:
        raise UserError(
            "som needs rows and columns of 1 or more and sigma_start >= sigma_end > 0, "
            f"got {rows}, {columns}, {sigma_start} and {sigma_end}"
        )
    return Som(num_classes, rows, columns, sigma_start, sigma_end)
