"""A network made to be trained in as little time as possible, after Keller Jordan's airbench94 (arXiv 2404.00498) and its Muon variant."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.errors import UserError
from cifar_dist.models.base import Classifier

PATCH = 2  # pixels, the side of a whitening filter
COVARIANCE_FLOOR = (
    5e-4  # added to the eigenvalues of patches, so that noise isn't blown up to the size of everything else
)


class SpeedNet(Classifier):
    """Whitening filters of which only the biases are trained, three groups of two convolutions, a linear head. (B, 3, 32, 32) -> (B, K)."""

    images_to_fit = 5000  # as its authors take

    def __init__(self, widths: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        whitened = 2 * 3 * PATCH**2  # each filter and its negative
        self.whiten = nn.Conv2d(3, whitened, PATCH)  # its filters are set by `fit`
        self.whiten.weight.requires_grad_(False)
        channels = (whitened, *widths)
        self.groups = nn.Sequential(*(Group(channels[i], channels[i + 1]) for i in range(3)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()

    def fit(self, images: Tensor) -> None:
        self.whiten.weight.data.copy_(whitening_filters(images))

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.whiten(images))  # (B, 24, 31, 31)
        x = self.groups(x)  # 3 x 3 places
        # Not amax: its gradient looks for places that equal the maximum, and a compiled bf16 graph finds none. Not adaptive
        # pooling: on a GPU its gradient has no deterministic kernel.
        x = F.max_pool2d(x, x.shape[2:]).flatten(1)
        return self.head(x) / x.shape[1]


class Group(nn.Module):
    """conv 3x3, max-pool 2, batch norm, GELU, conv 3x3, batch norm, GELU. (B, C_in, H, W) -> (B, C_out, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = filters(in_channels, out_channels), norm(out_channels)
        self.conv2, self.norm2 = filters(out_channels, out_channels), norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def filters(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return 3x3 filters of which the first `in_channels` pass their channel on (as many as there are)."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:in_channels])
    return conv


def norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm without scale, whose running statistics forget fast: a run has some hundred steps."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


@torch.no_grad()
def whitening_filters(images: Tensor) -> Tensor:
    """Return filters (24, 3, 2, 2) for images (N, 3, H, W), normalised: the directions in which patches vary, scaled to vary alike."""
    patches = F.unfold(images.double().cpu(), PATCH).transpose(1, 2).flatten(0, 1)  # (N * places, 12)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = directions.T / (variances + COVARIANCE_FLOOR).sqrt().unsqueeze(1)
    return torch.cat((filters, -filters)).float().view(-1, 3, PATCH, PATCH)


def speednet(num_classes: int, *, width: int = 64) -> SpeedNet:
    """Whitening, six convolutions of 64, 256 and 256 channels (Jordan 2024, after Page 2018); 1,972,792 parameters."""
    if width < 24:
        raise UserError(f"speednet needs a width of 24 or more, got {width}")
    return SpeedNet((width, 4 * width, 4 * width), num_classes)
