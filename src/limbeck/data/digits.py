from __future__ import annotations

import torch

from limbeck.data.epochs import generator
from limbeck.data.source import Part, Source
from limbeck.data.split import hold_out

TEST_SHARE = 0.2
LEVEL = 15
"""The digits have levels 0..16; times 15 they fill a byte without rounding."""


def read() -> Source:
    """Read scikit-learn's 1,797 handwritten digits (UCI, 8x8, grey); a fixed fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = (torch.from_numpy(pixels).view(-1, 1, 8, 8) * LEVEL).to(torch.uint8)
    digits = Part(images, torch.from_numpy(classes).long())
    train, test = hold_out(digits.targets, TEST_SHARE, generator("digits", "test"))
    return Source(digits.take(train), None, digits.take(test), tuple("0123456789"))
