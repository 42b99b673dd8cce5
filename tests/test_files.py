"""What is written is read back, or refused by name: one bit is enough."""

import json
import os
import random
import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils._pytree import tree_flatten

from limbeck.core import files
from limbeck.core.files import Damaged, digest, keep, packed, read, sha256_of, write

KEPT = {
    "result.json": {"networks": {"student": {"params": 3}}, "values": [0.25, -1.5e-7], "words": "ä ≤ 1"},
    "config.yaml": {"train": {"epochs": 3, "lr": 0.05, "words": "ä ≤ 1"}},
    "student.safetensors": (
        {"steps": torch.tensor(3), "weight": torch.arange(6.0).reshape(2, 3)},
        {"task": "regression"},
    ),
    "last.ckpt": {"step": 3, "random": torch.arange(8, dtype=torch.uint8), "history": [{"loss": 0.5}]},
}


def same(one, other):
    leaves, others = tree_flatten(one), tree_flatten(other)
    return leaves[1] == others[1] and all(
        np.array_equal(a, b) if isinstance(a, (torch.Tensor, np.ndarray)) else a == b
        for a, b in zip(leaves[0], others[0], strict=True)
    )


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_comes_back(tmp_path, name):
    keep(tmp_path / "deep" / name, KEPT[name])
    assert same(read(tmp_path / "deep" / name, "train again"), KEPT[name])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


@pytest.mark.parametrize("name", [*KEPT, "examples.npz"])
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path, name):
    """Whatever bit: what is read is what was written, or nothing is."""
    path = tmp_path / name
    if name in KEPT:
        keep(path, KEPT[name])
    else:
        write(path, lambda beside: np.savez(beside, answers=np.arange(12.0)))
    whole, was = path.read_bytes(), read(path, "train again")
    draws, noticed = random.Random(0), 0
    for _ in range(150):
        broken = bytearray(whole)
        broken[draws.randrange(len(broken))] ^= 1 << draws.randrange(8)
        path.write_bytes(broken)
        try:
            found = read(path, "train again")
        except Damaged as error:
            noticed += re.search(rf"{name}.*train again", str(error)) is not None
        else:
            assert same(found, was)
    assert noticed > 50


@pytest.mark.parametrize("name", [*KEPT, "examples.npz"])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\x80\x04\x95", b"PK\x03\x04", "cut"], ids=str)
def test_what_is_no_such_file_is_refused_by_name(tmp_path, name, content):
    path = tmp_path / name
    if content == "cut":
        keep(tmp_path / name, KEPT[name]) if name in KEPT else write(
            path, lambda beside: np.savez(beside, a=np.ones(3))
        )
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(Damaged, match=rf"{name}.*train again"):
        read(path, "train again")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*result.json: train again"):
        read(tmp_path / "result.json", "train again")


def test_other_programs_read_the_files(tmp_path):
    for name, value in KEPT.items():
        keep(tmp_path / name, value)
    assert json.loads((tmp_path / "result.json").read_text())["values"] == [0.25, -1.5e-7]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == KEPT["config.yaml"]
    assert load_file(tmp_path / "student.safetensors")["weight"].shape == (2, 3)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["step"] == 3


def test_files_without_a_checksum_are_read(tmp_path):
    """Those of older versions and of other programs; but not where a checksum was."""
    (tmp_path / "result.json").write_text('{"values": [1]}')
    (tmp_path / "config.yaml").write_text("epochs: 3\n")
    assert read(tmp_path / "result.json", "") == {"values": [1]}
    assert read(tmp_path / "config.yaml", "") == {"epochs": 3}
    keep(tmp_path / "result.json", {"values": [1]})
    sealed = json.loads((tmp_path / "result.json").read_text())
    for lost in ("sha256", "limbeck_format"):
        (tmp_path / "result.json").write_text(json.dumps({key: value for key, value in sealed.items() if key != lost}))
        with pytest.raises(Damaged, match="checksum"):
            read(tmp_path / "result.json", "")


def test_a_later_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.core.files.VERSION", 2)
    keep(tmp_path / "result.json", {"values": [1]})
    monkeypatch.undo()
    with pytest.raises(Damaged, match="format 2, of another version"):
        read(tmp_path / "result.json", "")


def test_a_full_disk_costs_no_file(tmp_path, monkeypatch):
    keep(tmp_path / "result.json", {"values": [1]})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        keep(tmp_path / "result.json", {"values": [2]})
    assert read(tmp_path / "result.json", "") == {"values": [1]}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_what_killed_writes_left_is_swept_and_nothing_else(tmp_path):
    class Killed(BaseException):
        """Ends a write as SIGKILL does, with nothing cleaned up."""

    left = []

    def half(beside):
        beside.touch()
        left.append(os.link(beside, beside.with_name(beside.name.replace(".", ".0", 1))))
        raise Killed

    for name in ("last.ckpt", "table", "a.b.csv"):
        with pytest.raises(Killed):
            files.write(tmp_path / name, half)
    kept = [".lock", ".last.ckpt", "last.0123456789ab.ckpt", ".gitignore"]
    for name in kept:
        (tmp_path / name).touch()
    assert len([*tmp_path.iterdir()]) == len(left) + len(kept)
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    files.sweep(tmp_path / "none")


def test_a_digest_tells_weights_apart():
    tensors = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert digest(tensors) == digest(dict(reversed(tensors.items())))
    others = (
        {"a": torch.ones(2)},
        {"a": torch.zeros(2), "b": torch.ones(2)},
        {"a": torch.ones(2, 1), "b": torch.zeros(2)},
    )
    assert len({digest(tensors), digest(tensors, {"task": "x"}), *map(digest, others)}) == 5
    assert packed(tensors) == packed(tensors)


def test_the_checksum_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
