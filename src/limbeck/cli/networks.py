from __future__ import annotations

from torch import nn

from limbeck import zoo
from limbeck.data import Data


def network(name: str, data: Data) -> nn.Module:
    """Make a network that suits the data, by its name."""
    return zoo.network(name, data.num_classes, data.shape)


def weighted(name: str, role: str) -> str:
    """Insist on weights; a function of the user's own may bring its own."""
    base, weights = zoo.split_name(name)
    own = ":" in base and not base.startswith(("torchvision:", "timm:"))
    if weights is None and not own:
        raise ValueError(
            f"the {role} {name} has no weights: name their file, {name}@FILE "
            f"(train one with `limbeck train --network {name}`), or take {name}@random for an untrained one"
        )
    return name
