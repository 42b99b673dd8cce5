"""ShuffleNet V1 and V2 for 32x32 images.

- V1: ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices. Xiangyu Zhang, Xinyu Zhou,
  Mengxiao Lin, Jian Sun. CVPR 2018, arXiv 1707.01083.
- V2: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design. Ningning Ma, Xiangyu Zhang, Hai-Tao
  Zheng, Jian Sun. ECCV 2018, arXiv 1807.11164.

Both in the form of the distillation literature's CIFAR-100 table (Tian et al., arXiv 1910.10699): 0.95 M and 1.36 M
parameters at 100 classes. They differ from the papers: the stem is a 1x1 convolution with stride 1 and no max pooling
follows it, so that a 32-pixel image ends at 4 x 4; V1 has a ReLU after the depthwise convolution (the paper has none)
and takes the bottleneck's width from the branch's own output rather than from the whole stage's.

Places: ``conv1``, ``layer1``, ``layer2``, ``layer3`` (after their last ReLU), for V2 ``relu2`` (the last 1x1 convolution's
output), ``pool``, ``fc``.

Letters: N images, C channels, H x W pixels, K classes.
"""

import torch
from torch import Tensor, nn


class ShuffleUnitV1(nn.Module):
    """A bottleneck of grouped 1x1 convolutions with a channel shuffle; with stride 2 it appends its pooled input."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        branch = channels - in_channels if stride == 2 else channels
        middle = branch // 4
        # the stem's 24 channels are too few to be grouped (the paper's section 3.2)
        self.groups = 1 if in_channels == 24 else groups
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        out = _shuffle(self.relu1(self.bn1(self.conv1(x))), self.groups)
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + x if self.pool is None else torch.cat([out, self.pool(x)], dim=1)
        active: Tensor = self.relu3(out)
        return active


class ShuffleNetV1(nn.Module):
    """ShuffleNet V1 with grouped convolutions.

    Args:
        groups: Groups of the 1x1 convolutions; 3.
        widths: Channels of the three stages; 240, 480, 960, the paper's for three groups.
        num_classes: K.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        groups: int = 3,
        widths: tuple[int, int, int] = (240, 480, 960),
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _stage_v1(24, widths[0], 4, groups)
        self.layer2 = _stage_v1(widths[0], widths[1], 8, groups)
        self.layer3 = _stage_v1(widths[1], widths[2], 4, groups)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass, half go through a bottleneck; then they are shuffled together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _bottleneck(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        passed, worked = x.chunk(2, dim=1)
        return _shuffle(torch.cat([passed, self.branch(worked)], dim=1), 2)


class ShuffleDownV2(nn.Module):
    """Both branches see all channels and halve the resolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )
        self.right = _bottleneck(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H / 2, W / 2)``."""
        return _shuffle(torch.cat([self.left(x), self.right(x)], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2.

    Args:
        widths: Channels of the three stages and of the last convolution; 116, 232, 464, 1024 is the paper's size 1x.
        num_classes: K.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (116, 232, 464, 1024),
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage_v2(24, widths[0], 3)
        self.layer2 = _stage_v2(widths[0], widths[1], 7)
        self.layer3 = _stage_v2(widths[1], widths[2], 3)
        self.conv2 = nn.Conv2d(widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of ``x``, (N, C, H, W), out over ``groups`` hands."""
    samples, channels, height, width = x.shape
    return x.reshape(samples, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


def _stage_v1(in_channels: int, channels: int, units: int, groups: int) -> nn.Sequential:
    first = ShuffleUnitV1(in_channels, channels, 2, groups)
    return nn.Sequential(first, *(ShuffleUnitV1(channels, channels, 1, groups) for _ in range(units - 1)))


def _stage_v2(in_channels: int, channels: int, units: int) -> nn.Sequential:
    first = ShuffleDownV2(in_channels, channels)
    return nn.Sequential(first, *(ShuffleUnitV2(channels) for _ in range(units)))


def _bottleneck(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
