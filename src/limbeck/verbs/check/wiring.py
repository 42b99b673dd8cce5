"""What the losses depend on, and what of it trains and is saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.core.batches import tensors
from limbeck.core.finding import Finding
from limbeck.core.method import Method
from limbeck.verbs.check.setup import Setup
from limbeck.verbs.check.terms import weigh

SHOWN = 4  # told of by name or shape


def wiring(setup: Setup) -> Iterator[Finding]:
    """Find tensors that losses depend on and that nobody trains: of lists, of adapters, of teachers."""
    method = setup.method
    players = method.players()
    trained = {id(p) for modules in players.values() for module in modules for p in module.parameters()}
    names = {id(p): name for name, p in method.named_parameters()}
    # inputs may need a gradient too, where a loss compares gradients by them
    fed = {tuple(tensor.shape) for tensor in tensors(setup.batch)}
    strays = [
        leaf
        for leaf in setup.played.leaves
        if id(leaf) not in trained and (isinstance(leaf, nn.Parameter) or tuple(leaf.shape) not in fed)
    ]
    named = [names[id(leaf)] for leaf in strays if id(leaf) in names]
    loose = [leaf for leaf in strays if id(leaf) not in names]
    if loose:  # what a step makes anew, to differentiate by, is no layer
        again = {id(leaf) for leaf in weigh(setup.stage, setup.batch).leaves}
        loose = [leaf for leaf in loose if id(leaf) in again]
    if named:
        yield Finding(
            "untrained",
            "warning",
            f"the losses depend on {_some(named)}, which no player trains: is it an adapter, name it among the players; is "
            "it a teacher, wrap it in limbeck.Frozen; else freeze it, requires_grad_(False)",
            {"tensors": float(len(named))},
        )
    if loose:
        shapes = [str(tuple(leaf.shape)) for leaf in loose]
        yield Finding(
            "unregistered",
            "failed",
            f"the losses depend on {len(loose)} tensors that belong to no network, of shapes {_some(shapes)}: they neither "
            "train nor are saved. Layers in a plain list or dict are not registered: nn.ModuleList, nn.ModuleDict, "
            "nn.Parameter are; a layer inside a loss's function goes into S[...].via(layer)",
            {"tensors": float(len(loose))},
        )


def modes(method: Method) -> Iterator[Finding]:
    """Find layers in train mode that nobody trains: of teachers that were not frozen, and of backbones that were."""
    played = {module for modules in method.players().values() for root in modules for module in root.modules()}
    for name, module in _named(method):
        if module in played and isinstance(module, _BatchNorm) and _moves_though_frozen(module):
            yield Finding(
                "frozen",
                "warning",
                f"the parameters of {name!r} are frozen, and yet its running mean and variance move with every batch, as "
                "of any such batch norm: .eval() keeps them, and stays where all parameters of a part are frozen",
            )
            return


def _moves_though_frozen(module: _BatchNorm) -> bool:
    own = list(module.parameters())
    return module.training and module.track_running_stats and bool(own) and not any(p.requires_grad for p in own)


def _named(method: Method) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of the networks by the names that their author knows."""
    for net in method.networks().values():
        yield from net.named_modules()


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")
