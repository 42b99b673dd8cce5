"""limbeck: train a small network to carry what a large one knows."""

from limbeck.core import quiet as quiet  # before what takes seconds

# isort: split
import sys
from typing import Any

import lazy_loader

from limbeck.core.extras import needing

# The names are in __init__.pyi. Each is imported when it is first asked for: `limbeck --help` needs no torch.
_imported, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:  # with obj, Python asks "Did you mean" where nobody catches it
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    with needing("train", f"limbeck.{name}"):
        return _imported(name)
