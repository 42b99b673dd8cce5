"""VGG with batch norm for 32x32 images.

Very Deep Convolutional Networks for Large-Scale Image Recognition. Karen Simonyan, Andrew Zisserman. ICLR 2015,
arXiv 1409.1556.

The form of the distillation literature's CIFAR-100 table (Tian et al., arXiv 1910.10699). It differs from the paper:
batch norm after every convolution, global average pooling and a single linear layer in place of the three wide ones, and
for images below 64 pixels three max poolings, so that the last two blocks see the same resolution. ``vgg8`` (one
convolution a block) is that table's own.

Places: ``block0`` ... ``block4`` (each after its last ReLU; the input of that ReLU is the pre-activation), ``pool0`` ...
``pool3``, ``pool``, ``fc``.

Letters: N images, C channels, H x W pixels, K classes.
"""

from torch import Tensor, nn

from limbeck.zoo._parts import convolutions, reset_he

# Convolutions in each of the five blocks; their widths are 64, 128, 256, 512, 512. 11 to 19 are the paper's A, B, D, E.
BLOCKS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class PoolLarge(nn.MaxPool2d):
    """Pooling for what comes of images of 64 pixels or more; smaller ones it leaves as they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(N, C, H, W)``, an eighth of the image, to a sixteenth if H is at least 8."""
        pooled: Tensor = super().forward(input) if input.shape[2] >= 8 else input
        return pooled


class VGG(nn.Module):
    """A VGG with batch norm and one linear layer.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: K.
        in_channels: Channels of the images.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"vgg: expected a depth of 8, 11, 13, 16 or 19, got {depth}")
        counts = BLOCKS[depth]
        self.block0 = convolutions(in_channels, [64] * counts[0])
        self.pool0 = nn.MaxPool2d(2)
        self.block1 = convolutions(64, [128] * counts[1])
        self.pool1 = nn.MaxPool2d(2)
        self.block2 = convolutions(128, [256] * counts[2])
        self.pool2 = nn.MaxPool2d(2)
        self.block3 = convolutions(256, [512] * counts[3])
        self.pool3 = PoolLarge(2)
        self.block4 = convolutions(512, [512] * counts[4])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: He's normal (fan-out) for convolutions, a normal of 0.01 for the linear layer."""
        reset_he(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)``, at least 8 x 8, to logits ``(N, K)``."""
        x = self.pool0(self.block0(x))
        x = self.pool1(self.block1(x))
        x = self.pool2(self.block2(x))
        x = self.pool3(self.block3(x))
        x = self.block4(x)
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits
