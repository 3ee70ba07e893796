"""The LeNet-style network of Zhaoyu Li, "Application research of image classification based on Pytorch and CNN" (2024)."""

from collections import OrderedDict

from torch import nn

from cifar_dist.models.base import Layers


def lenet(num_classes: int) -> Layers:
    """LeNet: two 5x5 convolutions and three linear layers (Li 2024); 62,006 parameters.

    Not given, so chosen: PyTorch's own initial weights.
    """
    return Layers(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 5),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),  # (B, 6, 14, 14)
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),  # (B, 16, 5, 5)
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * 5 * 5, 120),
            relu3=nn.ReLU(inplace=True),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(inplace=True),
            fc3=nn.Linear(84, num_classes),
        )
    )
