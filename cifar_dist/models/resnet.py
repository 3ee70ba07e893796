"""The CIFAR-10 ResNets of He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2016), §4.2."""

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.models.base import Classifier


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an option-A shortcut. (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every stride-th pixel, new channels filled with zeros, no parameters."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(Classifier):
    """3x3 stem of 16 channels, three stages of `blocks` blocks (16, 32, 64 channels), average pool, linear head."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        shapes = [(16, 16, 1)] * blocks
        for channels in (32, 64):
            shapes += [(channels // 2, channels, 2)] + [(channels, channels, 1)] * (blocks - 1)
        self.blocks = nn.Sequential(*(BasicBlock(*shape) for shape in shapes))
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015; by outputs, as in the authors' code
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(images)), inplace=True)
        x = self.blocks(x)  # (B, 64, 8, 8)
        return self.head(x.mean(dim=(2, 3)))


def resnet20(num_classes: int) -> CifarResNet:
    """ResNet-20 for 32x32 images, option-A shortcuts (He et al. 2016, §4.2); 269,722 parameters."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int) -> CifarResNet:
    """ResNet-32 for 32x32 images, option-A shortcuts (He et al. 2016, §4.2); 464,154 parameters."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int) -> CifarResNet:
    """ResNet-44 for 32x32 images, option-A shortcuts (He et al. 2016, §4.2); 658,586 parameters."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int) -> CifarResNet:
    """ResNet-56 for 32x32 images, option-A shortcuts (He et al. 2016, §4.2); 853,018 parameters."""
    return CifarResNet(9, num_classes)


def resnet110(num_classes: int) -> CifarResNet:
    """ResNet-110 for 32x32 images, option-A shortcuts (He et al. 2016, §4.2); 1,727,962 parameters."""
    return CifarResNet(18, num_classes)
