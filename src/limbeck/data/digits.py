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


ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "above four": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "loop": (0, 6, 8, 9),  # a 4 is written open as often as closed
    "straight": (1, 4, 7),
}
"""What is true of which digits: three of the number, two of how it is written."""


def read_attributes() -> Source:
    """Read the same digits, in the same splits, with several labels each: their attributes, int64 (N, 5)."""
    source = read()
    table = torch.tensor([[int(digit in group) for group in ATTRIBUTES.values()] for digit in range(10)])
    train, test = (Part(part.images, table[part.targets]) for part in (source.train, source.test))
    return Source(train, None, test, tuple(ATTRIBUTES))
