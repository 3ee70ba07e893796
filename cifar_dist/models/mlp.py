"""A fully connected baseline: what Zixuan Zhang, "CIFAR10 Image Classification", argues against."""

from collections import OrderedDict

from torch import nn

from cifar_dist.errors import UserError
from cifar_dist.models.base import Layers
from cifar_dist.models.dropout import Dropout


def mlp(num_classes: int, *, hidden_layers: int = 2, width: int = 512, dropout: float = 0.0) -> Layers:
    """Pixels, hidden layers with ReLU, logits: no notion of neighbouring pixels; 1,841,162 parameters. No source: ours."""
    if hidden_layers < 0 or width < 1:
        raise UserError(
            f"mlp needs hidden_layers of 0 or more and a width of 1 or more, got {hidden_layers} and {width}"
        )
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    inputs = 3 * 32 * 32
    for i in range(1, hidden_layers + 1):
        layers |= {f"fc{i}": nn.Linear(inputs, width), f"relu{i}": nn.ReLU(inplace=True)}
        if dropout:
            layers[f"dropout{i}"] = Dropout(dropout)
        inputs = width
    layers[f"fc{hidden_layers + 1}"] = nn.Linear(inputs, num_classes)
    return Layers(OrderedDict(layers))
