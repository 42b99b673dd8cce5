"""The demo, in miniature."""

import torch
from safetensors.torch import load_file

from limbeck import zoo
from limbeck.verbs.demo import STUDENT, TEACHER, demo


def test_the_demo_compares_trains_and_reports(tmp_path, capsys):
    with_labels, without = demo(seeds=2, epochs=2, run_dir=str(tmp_path / "demo"))
    shown = capsys.readouterr().out
    for comparison in (with_labels, without):
        roles = [candidate.role for candidate in comparison.candidates]
        assert roles[:2] == ["teacher", "baseline"]
        assert "distilled" in roles
        assert all(len(candidate.values) == 2 for candidate in comparison.candidates[1:])
        assert comparison.title in shown
    assert "control" in [candidate.role for candidate in with_labels.candidates]

    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(candidate.name in page for candidate in with_labels.candidates)
    for name, file in ((STUDENT, "student"), (TEACHER, "teacher")):
        net = zoo.network(name, 10, (1, 8, 8))
        net.load_state_dict(load_file(tmp_path / "demo" / f"{file}.safetensors"))
        assert torch.isfinite(net(torch.rand(3, 1, 8, 8))).all()
