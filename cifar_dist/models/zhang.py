"""The "ResNet-featured" network of Zixuan Zhang, "CIFAR10 Image Classification", with its concatenating skip."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.errors import UserError
from cifar_dist.models.base import Classifier


class Zhang(Classifier):
    """Convolutions with batch norm and ReLU; the stem joins the third one's output as further channels."""

    def __init__(self, num_classes: int, width: int, pool: bool) -> None:
        super().__init__()
        self.pool, stride = pool, 1 if pool else 2
        w1, w2, w3, w4 = width, 2 * width, 4 * width, 8 * width
        self.conv1, self.bn_conv1 = nn.Conv2d(3, w1, 3, padding=1), nn.BatchNorm2d(w1)
        self.conv2, self.bn_conv2 = nn.Conv2d(w1, w2, 3, stride=stride, padding=1), nn.BatchNorm2d(w2)
        self.conv3, self.bn_conv3 = nn.Conv2d(w2, w3, 3, stride=stride, padding=1), nn.BatchNorm2d(w3)
        self.skip, self.bn_skip = nn.Conv2d(w1, w3, 1, stride=4), nn.BatchNorm2d(w3)
        self.conv4, self.bn_conv4 = nn.Conv2d(2 * w3, w4, 3, stride=stride, padding=1), nn.BatchNorm2d(w4)
        self.fc = nn.Linear(w4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.bn_conv1(self.conv1(images))  # (B, w1, 32, 32)
        x = self.halved(F.relu(self.bn_conv2(self.conv2(F.relu(stem)))))  # (B, w2, 16, 16)
        conv3_relu = self.halved(F.relu(self.bn_conv3(self.conv3(x))))  # (B, w3, 8, 8)
        skip = F.relu(self.bn_skip(self.skip(stem)))  # (B, w3, 8, 8)
        x = torch.cat((conv3_relu, skip), dim=1)  # joined, not added as in a ResNet
        x = self.halved(F.relu(self.bn_conv4(self.conv4(x))))  # (B, w4, 4, 4)
        return self.fc(x.mean(dim=(2, 3)))

    def halved(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if self.pool else x


def zhang(num_classes: int, *, width: int = 16, pool: bool = False) -> Zhang:
    """A CNN whose stem skips to the third convolution by concatenation (Zhang, "CIFAR10 Image Classification"); 174,154 parameters.

    His widths are in a figure that is lost. Chosen: 16 for the stem, then 32, 64 and 128, or in the same proportions for
    another `width`; a skip as wide as the third convolution, a 1x1 convolution with stride 4; strides, or with `pool`
    max-pooling behind each block, which costs four times the arithmetic and gains seven points (docs/RESULTS.md);
    average pooling before the linear layer; PyTorch's own initial weights.
    """
    if width < 1:
        raise UserError(f"zhang needs a width of 1 or more, got {width}")
    return Zhang(num_classes, width, pool)
