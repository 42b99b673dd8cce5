"""MobileNetV2 for 32x32 images.

MobileNetV2: Inverted Residuals and Linear Bottlenecks. Mark Sandler, Andrew Howard, Menglong Zhu, Andrey Zhmoginov,
Liang-Chieh Chen. CVPR 2018, arXiv 1801.04381.

The half-width network of the distillation literature's CIFAR-100 table (Tian et al., arXiv 1910.10699; first in Jin et
al., Knowledge Distillation via Route Constrained Optimization, arXiv 1904.09149): 0.81 M parameters at 100 classes.
It differs from the paper: the second stage keeps its resolution (stride 1), so a 32-pixel image ends at 2 x 2; ReLU in
place of ReLU6; the first block, which expands by 1, keeps its expanding convolution; no dropout; and, as in the paper,
the last 1x1 convolution has 1280 channels at every width up to 1.

Places: ``stem``, ``blocks.0`` ... ``blocks.6`` (linear bottlenecks: no ReLU at their end), ``head``, ``pool``, ``fc``.

Letters: N images, C channels, H x W pixels, K classes.
"""

from collections import OrderedDict

from torch import Tensor, nn

from limbeck.zoo._parts import reset_he

# Channels at width 1, repeats, stride of the first repeat: the paper's table 2, but for the second row's stride (2 there).
STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expand: int) -> None:
        super().__init__()
        middle = in_channels * expand
        self.expand = _conv(in_channels, middle, kernel=1)
        self.depthwise = _conv(middle, middle, kernel=3, stride=stride, groups=middle)
        self.project = _conv(middle, channels, kernel=1, activate=False)
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """A narrow MobileNetV2 for small images.

    Args:
        width: Factor on all channels but the last convolution's; 0.5 in the literature's table.
        expand: Expansion of the inverted residuals, the paper's t; 6.
        num_classes: K.
        in_channels: Channels of the images.
    """

    def __init__(self, width: float = 0.5, expand: int = 6, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        channels = int(32 * width)
        self.stem = _conv(in_channels, channels, kernel=3, stride=2)
        stages: list[nn.Module] = []
        for index, (base, repeats, stride) in enumerate(STAGES):
            blocks: list[nn.Module] = []
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, int(base * width), step, expand if index else 1))
                channels = int(base * width)
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        last = int(1280 * max(1.0, width))
        self.head = _conv(channels, last, kernel=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: He's normal (fan-out) for convolutions, a normal of 0.01 for the linear layer."""
        reset_he(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _conv(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels))
    if activate:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)
