from __future__ import annotations

import torch

from limbeck.data.epochs import generator
from limbeck.data.source import Part, Source
from limbeck.data.split import groups, hold_out

TEST_SHARE = 0.2
UNIT = 100.0
"""The progression is told in hundreds, 0.25 to 3.46: a network's outputs begin about 0, and learn values about 1."""


def read() -> Source:
    """Read scikit-learn's 442 diabetes patients (Efron et al. 2004), 10 numbers each; a fixed fifth is the test split."""
    from sklearn.datasets import load_diabetes

    rows, progression = load_diabetes(return_X_y=True, scaled=False)
    patients = Part(torch.from_numpy(rows).float(), torch.from_numpy(progression).float()[:, None] / UNIT)
    train, test = hold_out(groups(patients.targets), TEST_SHARE, generator("diabetes", "test"))
    return Source(patients.take(train), None, patients.take(test), ())
