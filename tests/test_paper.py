"""References."""

from limbeck.core.paper import Paper


def test_bibtex():
    paper = Paper("a2020b", "A Title", "Doe, Jane and Roe, Ann", "ICML", 2020, "outputs", "a peer", arxiv="2001.00001")
    assert paper.bibtex() == (
        "@inproceedings{a2020b,\n"
        '  title = "{A Title}",\n'
        "  author = {Doe, Jane and Roe, Ann},\n"
        "  booktitle = {ICML},\n"
        "  year = {2020},\n"
        "  eprint = {2001.00001},\n"
        "  archivePrefix = {arXiv}\n"
        "}"
    )


def test_bibtex_without_arxiv():
    entry = Paper("a", "T", "Doe, Jane", "Nature", 1986, "labels", "nobody").bibtex()
    assert "eprint" not in entry
    assert entry.count("{") == entry.count("}")
