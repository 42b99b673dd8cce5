"""Wide residual networks, ``wrn-D-K``.

Wide Residual Networks. Sergey Zagoruyko, Nikos Komodakis. BMVC 2016, arXiv 1605.07146.

Pre-activation blocks (batch norm, ReLU, convolution), three stages of widths 16K, 32K, 64K after a stem of 16;
``depth = 6n + 4``. As in the authors' code, a block that changes the number of channels feeds its shortcut (a 1x1
convolution without batch norm) with the activated input. The convolutions' initialisation is theirs (fan-out
normal); the linear layer keeps torch's weights and a zero bias, as the literature's CIFAR code has it.

Places: ``conv1``, ``layer1``, ``layer2``, ``layer3`` (sums before any activation), ``relu`` (the last stage after batch
norm and ReLU), ``pool``, ``fc``. The activated output of ``layer1`` is ``layer2.0.relu1``.

Letters: N images, C channels, H x W pixels, K classes.
"""

from torch import Tensor, nn

from limbeck.zoo._parts import reset_he


class PreActBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, and a shortcut; the output is the bare sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        active = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(active)))
        out = self.conv2(self.dropout(out))
        total: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return total


class WideResNet(nn.Module):
    """A wide residual network.

    Args:
        depth: Number of layers, ``6n + 4``.
        widen: The paper's k, times 16, 32 and 64 channels.
        num_classes: K.
        in_channels: Channels of the images.
        dropout: Probability between the two convolutions of a block (0; the paper tries 0.3).
    """

    def __init__(
        self, depth: int, widen: int = 1, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"wrn: expected a depth of 6n + 4 (10, 16, 22, 28, 34, 40, ...), got {depth}")
        if widen < 1:
            raise ValueError(f"wrn: expected a widening factor of at least 1, got {widen}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * widen, blocks, 1, dropout)
        self.layer2 = _stage(16 * widen, 32 * widen, blocks, 2, dropout)
        self.layer3 = _stage(32 * widen, 64 * widen, blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * widen, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: He's normal (fan-out) for convolutions, a zero bias for the linear layer."""
        reset_he(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.relu(self.bn(x))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride, dropout)
    return nn.Sequential(first, *(PreActBlock(channels, channels, 1, dropout) for _ in range(blocks - 1)))
