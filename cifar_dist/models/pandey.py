"""The convolutional network of Abhishek Pandey, "Image classification using PyTorch" (2020). His map is in som.py."""

from collections import OrderedDict

from torch import nn

from cifar_dist.models.base import Layers


def pandey(num_classes: int) -> Layers:
    """Two 5x5 convolutions, each with ReLU and max-pooling, and one linear layer (Pandey 2020); 69,706 parameters.

    Not given, so chosen: no padding, as in LeNet; PyTorch's own initial weights.
    """
    return Layers(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 5),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),  # (B, 32, 14, 14)
            conv2=nn.Conv2d(32, 64, 5),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),  # (B, 64, 5, 5)
            flatten=nn.Flatten(),
            fc=nn.Linear(64 * 5 * 5, num_classes),
        )
    )
