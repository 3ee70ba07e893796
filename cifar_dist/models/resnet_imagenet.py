"""The ImageNet ResNets of He, Zhang, Ren, Sun (2016), table 1, with the stem that CIFAR-10 studies give them."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.models.base import Classifier


class Block(nn.Module):
    """A basic block of two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, with an option-B shortcut.

    (B, C_in, H, W) -> (B, C_out, H / stride, W / stride). The stride is at the 3x3 convolution, as in torchvision; names
    are torchvision's too, so that its weights load.
    """

    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        out_channels = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1, self.bn1 = nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        else:
            self.conv1, self.bn1 = (
                nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
            )
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        return F.relu(y + (self.downsample(x) if self.downsample else x), inplace=True)


class ResNet(Classifier):
    """3x3 stem with stride 1 and no pooling, four stages of 64, 128, 256, 512 channels, average pool, linear head."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, blocks: Sequence[int], bottleneck: bool, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for i, count in enumerate(blocks):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(Block(channels, 64 << i, 2 if i > 0 and j == 0 else 1, bottleneck))
                channels = (64 << i) * (4 if bottleneck else 1)
            setattr(self, f"layer{i + 1}", stage)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015; by outputs, as in the authors' code
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, C, 4, 4)
        return self.fc(x.mean(dim=(2, 3)))


def resnet18(num_classes: int) -> ResNet:
    """ResNet-18 with a 3x3 stem and no stem pooling (He et al. 2016, table 1); 11,173,962 parameters."""
    return ResNet((2, 2, 2, 2), False, num_classes)


def resnet34(num_classes: int) -> ResNet:
    """ResNet-34 with a 3x3 stem and no stem pooling (He et al. 2016, table 1); 21,282,122 parameters."""
    return ResNet((3, 4, 6, 3), False, num_classes)


def resnet50(num_classes: int) -> ResNet:
    """ResNet-50 with a 3x3 stem and no stem pooling (He et al. 2016, table 1); 23,520,842 parameters."""
    return ResNet((3, 4, 6, 3), True, num_classes)
