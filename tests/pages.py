"""What every page of ours must be, checked without a browser: whole, alone, and readable by everybody."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote


class Checker(HTMLParser):
    """Collects what a page loads and says, and whether its elements close."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self):
        super().__init__()
        self.loaded, self.links, self.open, self.words = [], [], [], []
        self.headings, self.pictures, self.header_cells, self.scrolling, self.language = [], [], [], [], None

    def handle_starttag(self, tag, attributes):
        self._note(tag, dict(attributes))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._note(tag, dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def _note(self, tag, attributes):
        if tag == "a":
            self.links.append(attributes["href"])
        else:
            self.loaded += [attributes[name] for name in ("src", "href", "xlink:href", "data") if name in attributes]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("svg", "img"):
            self.pictures.append(attributes.get("aria-label") if tag == "svg" else attributes.get("alt"))
            assert tag == "img" or attributes.get("role") == "img"
        if tag == "th":
            self.header_cells.append(attributes.get("scope"))
        if attributes.get("class") == "scroll":
            self.scrolling.append(attributes)
        if tag == "html":
            self.language = attributes.get("lang")


def read(page):
    """Return a page's text and its words, if it is as all pages must be."""
    text = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in checker.loaded), (
        "a page needs only itself"
    )
    assert all((page.parent / unquote(link)).exists() for link in checker.links), "a link to nothing"
    assert "<script" not in text
    assert not re.search(r"url\((?!#)|@import", text)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)  # names of XML, which nobody opens
    assert 'name="viewport"' in text
    assert "prefers-color-scheme" in text
    assert "@media print" in text

    assert checker.language == "en"
    assert re.search(r"<title>[^<]+</title>", text)
    assert checker.headings[0] == 1
    assert checker.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(checker.headings, checker.headings[1:], strict=False))
    assert all(checker.pictures), "a picture without words"
    assert set(checker.header_cells) <= {"col", "row"}
    assert all(one.get("tabindex") == "0" and one.get("aria-label") for one in checker.scrolling)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    return text, " ".join(" ".join(checker.words).split())
