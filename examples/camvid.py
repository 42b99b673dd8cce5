r"""Street scenes, a class for every pixel, at 96x128: CamVid, and U-Nets of two sizes that a CPU trains in minutes.

Functions of your own are named on the command line as these are::

    export PYTHONPATH=examples
    limbeck train --network camvid:teacher --data camvid:frames --root ../shared/data/camvid --batch-size 8 \
        --epochs 60 --optimizer adamw --lr 0.003 --schedule cosine --run-dir runs/camvid/teacher
    limbeck compare kd cwd --student camvid:student \
        --teacher camvid:teacher@runs/camvid/teacher/student.safetensors --data camvid:frames \
        --root ../shared/data/camvid --batch-size 8 --epochs 60 --optimizer adamw --lr 0.003 --schedule cosine \
        --run-dir runs/camvid/compare
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import data


def frames(root: str, batch_size: int = 8, seed: int = 0, samples: int | None = None, workers: int = 0) -> data.Data:
    """CamVid's 367, 101 and 233 frames with their 11 classes, in VOC's layout; class 11 has no label."""
    size = (96, 128)
    options = {"batch_size": batch_size, "seed": seed, "samples": samples, "workers": workers}
    return data.load("voc-masks", root, size=size, ignore=11, **options)


def teacher(num_classes: int = 11) -> nn.Module:
    """Return the teacher, a million parameters."""
    return UNet(32, num_classes)


def student(num_classes: int = 11) -> nn.Module:
    """Return the student: a sixtieth of the parameters and of the work."""
    return UNet(4, num_classes)


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) that begins at half of the images' size and has four resolutions."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = _block(3, width, 2)
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.down = nn.ModuleList(
            nn.Sequential(_block(above, below, 2), _block(below, below)) for above, below in pairwise(widths)
        )
        self.up = nn.ModuleList(
            _block(below + beside, beside)
            for below, beside in ((4 * width, 4 * width), (4 * width, 2 * width), (2 * width, width))
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K, H, W) of images (N, 3, H, W)."""
        maps = [self.stem(images)]
        for down in self.down:
            maps.append(down(maps[-1]))
        found = maps.pop()
        for up in self.up:
            beside = maps.pop()
            found = up(torch.cat([_resized(found, beside), beside], 1))
        return _resized(self.classifier(found), images)


def _block(channels: int, width: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[2:], mode="bilinear")
