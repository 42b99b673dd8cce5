"""A little of `bench/faults.py`: kills, full disks, flipped bits and changed inputs, and no wrong result."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from conftest import undrawn
from limbeck.engine import fit as engine

SCRIPT = Path(__file__).parents[1] / "bench/faults.py"
NUMBERS = {"kills": 3, "full": 3, "flips": 6, "changes": 3}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials are forks")


def load():
    spec = importlib.util.spec_from_file_location("faults_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def bench(folder, words, weak):
    """The process that all trials are forks of: with runs that draw no page, and if asked for, that notice no damage."""
    os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    engine.run_report = undrawn
    module = load()
    if weak:
        from limbeck.core import files

        files._expect, read_back = lambda *_: None, module._read_back
        # a text that pages show: other files are refused for what stands in them, or made again of what they hold
        module._read_back = lambda run: {
            name: read_back(run)[name] for name in read_back(run) if name == "warnings.json"
        }
    sys.exit(module.main(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both benches find there what was trained for the other's trials."""
    return tmp_path_factory.mktemp("faults")


def made(processes, folder, numbers, *words, weak=False):
    words = [*words, *(word for name, number in numbers.items() for word in (f"--{name}", str(number)))]
    process = processes.Process(target=bench, args=(folder, [*words, "--folder", str(folder / "bench")], weak))
    process.start()
    process.join(600)
    return process.exitcode, (folder / "said.txt").read_text()


def test_no_wrong_result_is_taken_for_a_right_one(folder, processes):
    code, said = made(processes, folder, NUMBERS, "--commands", "distill", "stages", "compare")
    assert code == 0, said
    assert said.endswith(f"{sum(NUMBERS.values())} right, 0 wrong\n")


def test_a_wrong_result_is_found(folder, processes):
    """Of a limbeck that does not compare checksums."""
    code, said = made(processes, folder, {"flips": 3}, "--commands", "distill", "--first", "100", weak=True)
    assert code == 1, said
    assert "WRONG" in said
    assert "makes it again" in said
