"""In which numbers a training computes, and where; apart from `fit`, so that help need not import Lightning."""

from typing import Literal

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"]
"""In which numbers a training computes, by Lightning's names."""
Teachers = Literal["whole", "sharded", "offloaded"]
"""Where the weights of teachers lie: on each device, shared out among them, or in the host's memory."""
TeacherType = Literal["own", "bfloat16", "float16"]
"""In which numbers teachers compute."""
