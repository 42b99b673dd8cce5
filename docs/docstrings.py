"""How mkdocstrings reads what our docstrings have that it does not know."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

TABLE = re.compile(r"^(=+ +=+\n.*^=+ +=+)$", re.MULTILINE | re.DOTALL)


class House(Extension):
    """``Example:`` has doctests as griffe's ``Examples:`` has; a table that a terminal can show stays as it is."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrite a docstring before it is read."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = TABLE.sub(r"```text\n\1\n```", text)
