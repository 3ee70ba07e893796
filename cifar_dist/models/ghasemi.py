"""The family of networks in Ali Ghasemi, "CIFAR-10 Image Classification" (2024): his listing, and his table of 15 attempts."""

from collections import OrderedDict

from torch import nn

from cifar_dist.errors import UserError
from cifar_dist.models.base import Layers
from cifar_dist.models.dropout import Dropout

WIDTHS = (32, 64, 128, 256, 512)  # of the listing's five convolutions


def ghasemi(
    num_classes: int,
    *,
    convolutions: int = 5,
    linear_layers: int = 3,
    dropout: float = 0.2,
    batch_norm: bool = True,
) -> Layers:
    """Blocks of 3x3 convolution, ReLU, batch norm, then linear layers (Ghasemi 2024, listing); 2,753,546 parameters.

    The listing: widths 32 to 512, stride 2 at 64, dropout before the last convolution, average pooling to 2x2, linear
    layers 2048-512-256-10. (His text says eight convolutions, his listing has five.)
    Not given for other depths, so chosen: the five widths share out the convolutions evenly, narrow ones first, and fewer
    than five take the first widths; further linear layers halve again; PyTorch's own initial weights.
    """
    if convolutions < 1 or not 1 <= linear_layers <= 9:
        raise UserError(
            f"ghasemi needs 1 or more convolutions and 1 to 9 linear_layers, got {convolutions} and {linear_layers}"
        )
    layers: dict[str, nn.Module] = {}
    channels = 3
    for i, width in enumerate(conv_widths(convolutions), start=1):
        if dropout and 1 < i == convolutions:
            layers["dropout"] = Dropout(dropout)
        stride = 2 if width == 64 and channels == 32 else 1
        layers |= {f"conv{i}": nn.Conv2d(channels, width, 3, stride, padding=1), f"relu{i}": nn.ReLU(inplace=True)}
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(width)
        channels = width
    # To 2x2. AdaptiveAvgPool2d(2) is the same, but its backward pass on a GPU is not deterministic.
    layers |= {"pool": nn.AvgPool2d(8 if convolutions > 1 else 16), "flatten": nn.Flatten()}
    inputs = 4 * channels
    for i in range(1, linear_layers):
        width = 512 >> (i - 1)
        layers |= {f"fc{i}": nn.Linear(inputs, width), f"relu{convolutions + i}": nn.ReLU(inplace=True)}
        inputs = width
    layers[f"fc{linear_layers}"] = nn.Linear(inputs, num_classes)
    return Layers(OrderedDict(layers))


def conv_widths(convolutions: int) -> list[int]:
    """8 -> [32, 32, 64, 64, 128, 128, 256, 512]."""
    each, more = divmod(convolutions, len(WIDTHS))
    return [width for i, width in enumerate(WIDTHS) for _ in range(each + (i < more))]
