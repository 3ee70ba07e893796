"""A fully connected baseline: what Zixuan Zhang, "CIFAR10 Image Classification", argues against."""

from torch import nn

from cifar_dist.dropout import Dropout
from cifar_dist.errors import UserError


def mlp(num_classes: int, *, hidden_layers: int = 2, width: int = 512, dropout: float = 0.0) -> nn.Module:
    """Pixels, hidden layers with ReLU, logits: no notion of neighbouring pixels; 1,841,162 parameters. No source: ours."""
    if hidden_layers < 0 or width < 1:
        raise UserError(
            f"mlp needs hidden_layers of 0 or more and a width of 1 or more, got {hidden_layers} and {width}"
        )
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = 3 * 32 * 32
    for _ in range(hidden_layers):
        layers += [nn.Linear(inputs, width), nn.ReLU(inplace=True)]
        layers += [Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))
