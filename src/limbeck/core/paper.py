"""Where a method comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A method's reference, and its line in `limbeck list methods`.

    Args:
        key: The BibTeX key.
        title: The title.
        authors: As BibTeX has them: ``"Park, Wonpyo and Kim, Dongju"``.
        venue: Where it appeared.
        year: When.
        arxiv: The arXiv number, if it has one.
        matches: What student and teacher are compared in.
        teacher: Who teaches.
    """

    key: str
    title: str
    authors: str
    venue: str
    year: int
    matches: str
    teacher: str
    arxiv: str = ""

    def bibtex(self) -> str:
        """Return the BibTeX entry."""
        fields = {"author": self.authors, "booktitle": self.venue, "year": str(self.year)}
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        title = f'"{{{self.title}}}"'  # in braces, so that no style changes its letters
        return f"@inproceedings{{{self.key},\n  title = {title},\n{lines}\n}}"
