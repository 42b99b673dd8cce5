"""`bench/communication.py`: it counts every collective, and says where the arithmetic is not what is counted."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

SCRIPT = Path(__file__).parents[1] / "bench/communication.py"


def load():
    sys.path.append(str(SCRIPT.parent))  # where what it imports lies
    spec = importlib.util.spec_from_file_location("communication_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = load()


def counted(work):
    """What a work hands to collectives, and what it writes to sockets."""
    distributed.barrier()
    before = bench.written()
    with bench.Collectives() as mode:
        work()
    return mode.traffic, bench.written() - before


def gradients_of(net, x):
    net(x).sum().backward()


def work(rank, port, results):
    """What two processes hand over, of which the first alone scatters."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    rows, own = torch.ones(1000, 8), [torch.empty(1000, 8) for _ in range(2)]
    net, x = DistributedDataParallel(nn.Linear(2000, 3)), torch.ones(4, 2000)
    for _ in range(2):  # after the first DDP makes its buckets anew
        gradients_of(net, x)
    told = {
        "gathered": counted(lambda: distributed.all_gather(own, rows)),
        "scattered": counted(lambda: distributed.scatter(rows, own if rank == 0 else None, src=0)),
        "reduced": counted(lambda: gradients_of(net, x)),
        "nothing": counted(lambda: rows @ rows.T),
    }
    with bench.Collectives(), pytest.raises(NotImplementedError, match=r"broadcast_.* cannot count"):
        distributed.broadcast(rows, 0)
    results.put((rank, {name: (vars(traffic), sent) for name, (traffic, sent) in told.items()}))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="what a process writes is told by Linux alone")
def test_what_is_handed_to_collectives_is_what_goes_over_the_sockets(together):
    of = dict(together(work, 2))
    expected = {
        "gathered": bench.Traffic(gathered=32_000, messages=2),
        "scattered": bench.Traffic(scattered=64_000, messages=1),
        "reduced": bench.Traffic(reduced=4 * 6_003, messages=4),  # by DDP, from C++
        "nothing": bench.Traffic(),
    }
    for name, traffic in expected.items():
        handed, sent = zip(*(of[rank][name] for rank in range(2)), strict=True)
        givers = handed[:1] if name == "scattered" else handed
        assert all({**own, "messages": traffic.messages} == vars(traffic) for own in givers)
        assert sum(sent) == pytest.approx(len(givers) * traffic.sent(2), rel=0.03, abs=50)


def test_a_sum_over_four_processes_goes_round_twice():
    traffic = bench.Traffic(reduced=400, gathered=100, scattered=40)
    assert traffic.given == 540
    assert traffic.sent(4) == 2 * 300 + 3 * 100 + 30
    assert traffic.sent(1) == 0


def measured(world, given, sent):
    facts = bench.Facts(world, trained=1000, tensors=3, norms=0, normed=0, apart=0)
    return {world: {"kd": bench.Measured(facts, bench.Traffic(reduced=given), sent, 0.1)}}


GIVEN = 4 * 1000 + 4 * 3 + 16
SENT = GIVEN + 12 * 144


@pytest.mark.parametrize(
    ("world", "given", "sent", "wrong"),
    [
        (2, GIVEN, SENT, []),
        (2, 1.03 * GIVEN, SENT, ["kd, 2 processes: given 4,028"]),
        (2, GIVEN, 0.97 * SENT, ["kd, 2 processes: sent 5,756"]),
        (1, 0, 0, []),
        (1, 4, 0, ["kd, 1 processes: given 0 bytes"]),
    ],
)
def test_what_differs_is_told(world, given, sent, wrong):
    told = list(bench.disagreements(measured(world, given, sent)))
    assert len(told) == len(wrong)
    assert all(line.startswith(start) for line, start in zip(told, wrong, strict=True))


def test_a_wrong_formula_ends_the_script_with_1(monkeypatch, capsys):
    monkeypatch.setattr(bench, "measured", lambda world, names: measured(world, GIVEN * (world > 1), SENT)[world])
    monkeypatch.setattr(bench.Traffic, "sent", lambda traffic, world: SENT)
    assert bench.main(["--only", "kd"]) == 0
    assert "| `kd` | g + c | 4,028 | 4,028 |" in capsys.readouterr().out
    monkeypatch.setitem(bench.KINDS, "kd", replace(bench.KINDS["kd"], formula=lambda facts: bench.Traffic(8040)))
    assert bench.main(["--only", "kd"]) == 1
    assert "kd, 4 processes: given 8,040 bytes by arithmetic, 4,028 as counted" in capsys.readouterr().err


def test_a_table_goes_between_its_marks(monkeypatch, tmp_path):
    page = tmp_path / "devices.md"
    monkeypatch.setattr(bench, "PAGE", page)
    page.write_text("before\n<!-- communication: written by it -->\n\nold\n\n<!-- communication: end -->\nafter\n")
    bench.write(["| new |"])
    assert page.read_text() == (
        "before\n<!-- communication: written by it -->\n\n| new |\n\n<!-- communication: end -->\nafter\n"
    )
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no marks of 'communication'"):
        bench.write(["| new |"])
