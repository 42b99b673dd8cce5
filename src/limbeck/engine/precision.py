"""In which numbers a training computes, by Lightning's names; apart from `fit`, so that help need not import Lightning."""

from typing import Literal

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"]
