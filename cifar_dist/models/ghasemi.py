"""The family of networks in Ali Ghasemi, "CIFAR-10 Image Classification" (2024): his listing, and his table of 15 attempts."""

from torch import nn

from cifar_dist.dropout import Dropout
from cifar_dist.errors import UserError

WIDTHS = (32, 64, 128, 256, 512)  # of the listing's five convolutions


def ghasemi(
    num_classes: int,
    *,
    convolutions: int = 5,
    linear_layers: int = 3,
    dropout: float = 0.2,
    batch_norm: bool = True,
) -> nn.Module:
    """Blocks of 3x3 convolution, ReLU, batch norm, then linear layers (Ghasemi 2024, listing); 2,753,546 parameters.

    The listing: widths 32 to 512, stride 2 at 64, dropout before the last convolution, average pooling to 2x2, linear
    layers 2048-512-256-10. (His text says eight convolutions, his listing has five.)
    Not given for other depths, so chosen: the five widths share out the convolutions evenly, narrow ones first, and fewer
    than five take the first widths; further linear layers halve again; PyTorch's own initial weights.
    """
    if convolutions < 1 or linear_layers < 1:
        raise UserError(
            f"ghasemi needs at least 1 of convolutions and of linear_layers, got {convolutions} and {linear_layers}"
        )
    layers: list[nn.Module] = []
    channels = 3
    widths = conv_widths(convolutions)
    for i, width in enumerate(widths):
        if dropout and i == convolutions - 1:
            layers.append(Dropout(dropout))
        stride = 2 if width == 64 and channels == 32 else 1
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU(inplace=True)]
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        channels = width
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    inputs = 4 * channels
    for i in range(linear_layers - 1):
        layers += [nn.Linear(inputs, 512 >> i), nn.ReLU(inplace=True)]
        inputs = 512 >> i
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


def conv_widths(convolutions: int) -> list[int]:
    """8 -> [32, 32, 64, 64, 128, 128, 256, 512]."""
    each, more = divmod(convolutions, len(WIDTHS))
    return [width for i, width in enumerate(WIDTHS) for _ in range(each + (i < more))]
