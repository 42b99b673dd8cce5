"""What the documentation is made of beside its pages: docstrings, cards of methods, equations and parts of other files."""

from pathlib import Path

SOURCE = Path(__file__).parents[1]
ROOT = SOURCE.parent
