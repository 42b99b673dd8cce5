"""The plain convolutional networks of the teacher-assistant paper.

Improved Knowledge Distillation via Teacher Assistant. Seyed-Iman Mirzadeh, Mehrdad Farajtabar, Ang Li, Nir Levine,
Akihiro Matsukawa, Hassan Ghasemzadeh. AAAI 2020, arXiv 1902.03393; layers as in the authors' code
(imirzadeh/Teacher-Assistant-Knowledge-Distillation, ``plain_cnn_cifar.py``).

3x3 convolutions with batch norm and ReLU, 2x2 max pooling after each stage, and one or two linear layers on the
flattened map.
The authors use wider nets for CIFAR-100 than for CIFAR-10 under one name; here ``plane2`` ... ``plane10`` are
always the CIFAR-10 ones and ``plane2-cifar100`` ... ``plane10-cifar100`` the others, whatever the number of classes.
Initialisation: torch's default, as theirs.

Places: ``features.stage1``, ``features.pool1``, ... (stages after their last ReLU), ``hidden`` (a linear layer
and its ReLU, if any), ``fc``.

Letters: N images, C channels, H x W pixels, K classes.
"""

from torch import Tensor, nn

from limbeck.zoo._parts import convolutions

# Widths of the convolutions, stage by stage, and of the hidden linear layer (0: none).
CIFAR10 = {
    2: (((16,), (16,)), 0),
    4: (((16, 16), (32, 32)), 0),
    6: (((16, 16), (32, 32), (64, 64)), 0),
    8: (((16, 16), (32, 32), (64, 64), (128, 128)), 64),
    10: (((32, 32), (64, 64), (128, 128), (256, 256, 256, 256)), 128),
}
CIFAR100 = {
    2: (((32,), (32,)), 0),
    4: (((32, 32), (64, 64)), 0),
    6: (((32, 32), (64, 64), (128, 128)), 0),
    8: (((32, 32), (64, 64), (128, 128), (256, 256)), 64),
    10: (((32, 32), (64, 64), (128, 128), (256, 256, 256, 256)), 512),
}


class Plane(nn.Module):
    """A plain convolutional network.

    Args:
        depth: Number of convolutions: 2, 4, 6, 8 or 10.
        wide: The authors' CIFAR-100 widths in place of their CIFAR-10 ones.
        num_classes: K.
        in_channels: Channels of the images.
        size: H and W, which set the first linear layer's width.
    """

    def __init__(
        self,
        depth: int,
        wide: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        if depth not in CIFAR10:
            raise ValueError(f"plane: expected a depth of 2, 4, 6, 8 or 10, got {depth}")
        stages, hidden = (CIFAR100 if wide else CIFAR10)[depth]
        # the authors' six-layer CIFAR-100 net alone has no pooling after its last stage
        pools = len(stages) - (wide and depth == 6)
        height, width = (side >> pools for side in size)
        if min(height, width) < 1:
            raise ValueError(
                f"plane{depth}: expected images of at least {1 << pools}x{1 << pools} pixels, got {size[0]}x{size[1]}"
            )
        self.features = nn.Sequential()
        channels = in_channels
        for index, widths in enumerate(stages, start=1):
            self.features.add_module(f"stage{index}", convolutions(channels, widths))
            if index <= pools:
                self.features.add_module(f"pool{index}", nn.MaxPool2d(2))
            channels = widths[-1]
        flat = channels * height * width
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.fc = nn.Linear(hidden or flat, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        logits: Tensor = self.fc(self.hidden(self.features(x).flatten(1)))
        return logits
