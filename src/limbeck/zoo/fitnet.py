"""The thin deep maxout nets of FitNets and their teacher.

FitNets: Hints for Thin Deep Nets. Adriana Romero, Nicolas Ballas, Samira Ebrahimi Kahou, Antoine Chassang, Carlo Gatta,
Yoshua Bengio. ICLR 2015, arXiv 1412.6550. The teacher is from Maxout Networks. Ian Goodfellow, David Warde-Farley,
Mehdi Mirza, Aaron Courville, Yoshua Bengio. ICML 2013, arXiv 1302.4389.

No batch norm and no shortcuts: what makes the deep ones hard to train without hints. Layers count the convolutions,
the maxout linear layer and the softmax layer. Parameters at 10 classes, three channels, 32x32 pixels:

==============  ======  =========  ===========  ====================================================================
name            layers  paper      here         source of the widths
==============  ======  =========  ===========  ====================================================================
fitnet1         11      250 K      251,194      a public port; the paper's multiplications (30 M) agree
fitnet2         11      862 K      864,122      a public port; the paper's multiplications (108 M) agree
fitnet3         13      1.6 M      1,506,138    a public port; 6 % below the paper, see below
fitnet4         19      2.5 M      2,548,602    the authors' yaml; the paper's multiplications (382 M) agree
fitnet-teacher  5       about 9 M  9,046,330    pylearn2's maxout cifar10.yaml; the multiplications (725 M) agree
==============  ======  =========  ===========  ====================================================================

Not confirmed:

- The widths of fitnet1 to fitnet3 were not seen in the authors' own code, which publishes only the
  19-layer net. For fitnet3 the paper's two figures (1.6 M parameters, 392 M multiplications) fit a first stage of
  64, 64, 64, 64 rather than the 32, 48, 64, 64 used here.
- The linear maxout layer has 500 units. Both public yaml files give it five pieces; the figures of the paper's table
  come out only with two, so two is the default here and ``pieces=5`` gives the yaml's.

Differs from the code: the last 8x8 max pooling is global, the same for 32x32 images; the initialisation keeps the
variance unless ``irange`` is given (their uniform ±0.005 shrinks the signal about twenty times a layer); norm
constraints and the smaller learning rate of the convolutions are left to the training loop.

Places: ``stage1.0`` ... ``stage3.5`` (each a maxout convolution's output), ``pool1`` ... ``pool3``, ``fc1``,
``fc``; for the teacher ``features.0`` ... ``features.5`` (convolutions and poolings in turn), ``fc1``, ``fc``.

Letters: N images, C channels, H x W pixels, K classes.
"""

import math

from torch import Tensor, nn

# Channels after maxout, stage by stage; 3x3 kernels throughout, 2x2 max pooling after the first two stages.
STAGES = {
    1: ((16, 16, 16), (32, 32, 32), (48, 48, 64)),
    2: ((16, 32, 32), (48, 64, 80), (96, 96, 128)),
    3: ((32, 48, 64, 64), (80, 80, 80, 80), (128, 128, 128)),
    4: ((32, 32, 32, 48, 48), (80, 80, 80, 80, 80, 80), (128, 128, 128, 128, 128, 128)),
}
# Channels after maxout, kernel, padding, pooling window; every pooling has stride 2.
TEACHER = ((96, 8, 4, 4), (192, 8, 3, 4), (192, 5, 3, 2))


class MaxoutConv(nn.Module):
    """A convolution whose every channel is the largest of two linear pieces."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 2 * channels, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H', W')``."""
        largest: Tensor = self.conv(x).unflatten(1, (-1, 2)).amax(2)
        return largest


class MaxoutLinear(nn.Module):
    """A linear layer whose every unit is the largest of several linear pieces."""

    def __init__(self, in_features: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, units * pieces)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, units)``."""
        largest: Tensor = self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)
        return largest


class FitNet(nn.Module):
    """A thin deep maxout net.

    Args:
        which: 1, 2, 3 or 4, the paper's number.
        num_classes: K.
        in_channels: Channels of the images.
        pieces: Linear pieces of the maxout linear layer (2; see the file's docstring).
        irange: Draw all weights uniformly from ±irange (the authors: 0.005); None keeps the variance.
    """

    def __init__(
        self,
        which: int,
        num_classes: int = 10,
        in_channels: int = 3,
        pieces: int = 2,
        irange: float | None = None,
    ) -> None:
        super().__init__()
        if which not in STAGES:
            raise ValueError(f"fitnet: expected 1, 2, 3 or 4, got {which}")
        first, second, third = STAGES[which]
        self.irange = irange
        self.stage1 = _stage(in_channels, first)
        self.pool1 = nn.MaxPool2d(2)
        self.stage2 = _stage(first[-1], second)
        self.pool2 = nn.MaxPool2d(2)
        self.stage3 = _stage(second[-1], third)
        self.pool3 = nn.AdaptiveMaxPool2d(1)
        self.fc1 = MaxoutLinear(third[-1], 500, pieces)
        self.fc = nn.Linear(500, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: keep the variance, or ±irange; biases are zero."""
        _reset(self, self.irange)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)``, at least 4 x 4, to logits ``(N, K)``."""
        x = self.pool1(self.stage1(x))
        x = self.pool2(self.stage2(x))
        x = self.pool3(self.stage3(x))
        logits: Tensor = self.fc(self.fc1(x.flatten(1)))
        return logits


class FitNetTeacher(nn.Module):
    """The wide, shallow maxout net that teaches FitNets on CIFAR.

    Args:
        num_classes: K.
        in_channels: Channels of the images.
        size: H and W, which set the first linear layer's width.
        pieces: Linear pieces of the maxout linear layer (2; see the file's docstring).
        irange: Draw all weights uniformly from ±irange (the authors: 0.005); None keeps the variance.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        size: tuple[int, int] = (32, 32),
        pieces: int = 2,
        irange: float | None = None,
    ) -> None:
        super().__init__()
        self.irange = irange
        layers: list[nn.Module] = []
        height, width = size
        for channels, kernel, padding, window in TEACHER:
            layers += [MaxoutConv(in_channels, channels, kernel, padding)]
            # pylearn2 rounds the pooled size up
            layers += [nn.MaxPool2d(window, 2, ceil_mode=True)]
            height, width = (math.ceil((side + 2 * padding - kernel + 1 - window) / 2) + 1 for side in (height, width))
            in_channels = channels
        if min(height, width) < 1:
            raise ValueError(f"fitnet-teacher: images of {size[0]}x{size[1]} pixels are too small")
        self.features = nn.Sequential(*layers)
        self.fc1 = MaxoutLinear(in_channels * height * width, 500, pieces)
        self.fc = nn.Linear(500, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start afresh: keep the variance, or ±irange; biases are zero."""
        _reset(self, self.irange)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        logits: Tensor = self.fc(self.fc1(self.features(x).flatten(1)))
        return logits


def _stage(in_channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    inputs = (in_channels, *widths[:-1])
    return nn.Sequential(*(MaxoutConv(i, o) for i, o in zip(inputs, widths, strict=True)))


def _reset(net: nn.Module, irange: float | None) -> None:
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if irange is None:
                # the larger of two independent normals has the second moment of one: 1 / fan_in keeps it
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            else:
                nn.init.uniform_(module.weight, -irange, irange)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
