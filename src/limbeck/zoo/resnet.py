"""ResNets for 32x32 images.

Deep Residual Learning for Image Recognition. Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun. CVPR 2016,
arXiv 1512.03385, section 4.2.

A 3x3 stem, three stages of basic blocks (32, 16 and 8 pixels wide for a 32-pixel image), global average pooling and
one linear layer; ``depth = 6n + 2``. ``resnet8x4`` and ``resnet32x4`` are the wide ones of the distillation
literature's CIFAR-100 table (Tian et al., Contrastive Representation Distillation, arXiv 1910.10699).

Differs from the paper: where the shape changes, the shortcut is a 1x1 convolution with batch norm (the paper's CIFAR
nets pad with zeros, its option A), as in the literature's table; so
resnet20 has 0.28 M parameters at 100 classes, not 0.27 M.

Places: ``conv1``, ``layer1``, ``layer2``, ``layer3`` (all stages after their last ReLU), ``pool``, ``fc``. The input of
``layer1.2.relu2`` is the pre-activation of that block.

Letters: N images, C channels, H x W pixels, K classes.
"""

from torch import Tensor, nn

from limbeck.zoo._parts import reset_he


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the output is after the ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        active: Tensor = self.relu2(out + self.shortcut(x))
        return active


class ResNet(nn.Module):
    """A CIFAR ResNet of basic blocks.

    Args:
        depth: Number of weight layers, ``6n + 2``.
        widths: Channels of the stem and of the three stages; 16, 16, 32, 64 as in the paper's section 4.2.
        num_classes: K.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"resnet: expected a depth of 6n + 2 (8, 14, 20, ...), got {depth}")
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: He's normal (fan-out) for convolutions, torch's default for the rest."""
        reset_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
