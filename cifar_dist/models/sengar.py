"""The network of Sengar & Shweat, "Image classification using Pytorch" (2024)."""

from collections import OrderedDict

from torch import nn

from cifar_dist.models.base import Layers


def sengar(num_classes: int) -> Layers:
    """Three 3x3 convolutions, each with ReLU and max-pooling, then linear layers (Sengar & Shweat 2024); 620,362 parameters.

    Not given, so chosen: widths 32, 64, 128, one hidden layer of 256 units; PyTorch's own initial weights.
    """
    return Layers(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 3, padding=1),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),  # (B, 32, 16, 16)
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),  # (B, 64, 8, 8)
            conv3=nn.Conv2d(64, 128, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            pool3=nn.MaxPool2d(2),  # (B, 128, 4, 4)
            flatten=nn.Flatten(),
            fc1=nn.Linear(128 * 4 * 4, 256),
            relu4=nn.ReLU(inplace=True),
            fc2=nn.Linear(256, num_classes),
        )
    )
