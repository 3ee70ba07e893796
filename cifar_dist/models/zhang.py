"""The "ResNet-featured" network of Zixuan Zhang, "CIFAR10 Image Classification", with its concatenating skip."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Zhang(nn.Module):
    """Convolutions with batch norm and ReLU; the stem joins the third one's output as further channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn_conv1 = nn.BatchNorm2d(16)
        self.conv2, self.bn_conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.conv3, self.bn_conv3 = nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64)
        self.skip, self.bn_skip = nn.Conv2d(16, 64, 1, stride=4), nn.BatchNorm2d(64)
        self.conv4, self.bn_conv4 = nn.Conv2d(128, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.bn_conv1(self.conv1(images))  # (B, 16, 32, 32)
        x = F.relu(self.bn_conv2(self.conv2(F.relu(stem))))  # (B, 32, 16, 16)
        conv3_relu = F.relu(self.bn_conv3(self.conv3(x)))  # (B, 64, 8, 8)
        skip = F.relu(self.bn_skip(self.skip(stem)))  # (B, 64, 8, 8)
        x = torch.cat((conv3_relu, skip), dim=1)  # joined, not added as in a ResNet
        x = F.relu(self.bn_conv4(self.conv4(x)))  # (B, 128, 4, 4)
        return self.fc(x.mean(dim=(2, 3)))


def zhang(num_classes: int) -> Zhang:
    """A CNN whose stem skips to the third convolution by concatenation (Zhang, "CIFAR10 Image Classification"); 174,154 parameters.

    His widths are in a figure that is lost. Chosen: 16, 32, 64, a skip of 64 (a 1x1 convolution with stride 4), 128;
    strides in place of pooling; average pooling before the linear layer; PyTorch's own initial weights.
    """
    return Zhang(num_classes)
