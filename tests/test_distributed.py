"""On two processes: `gather`, with its values, gradients and the claim that DDP's average is one process's; and loaders.

And what averages: gradients, and values that each process makes of its own.
"""

import socket
from multiprocessing.queues import Queue

import pytest
import torch
from torch import Tensor, distributed, nn

from limbeck.core.distributed import average_gradients, gather, mean_over_processes
from limbeck.data import Items, ragged
from limbeck.data.repeatable import splits

WORLD = 2
PICTURES = [(torch.full((1, 2, 3 + row), float(row)), {"boxes": torch.zeros(row, 4)}) for row in range(6)]
NAMED = [{"image": torch.arange(6.0)[:, None], "label": torch.arange(6), "path": [f"{row}.png" for row in range(6)]}]


def relation(rows: Tensor) -> Tensor:
    """A loss that no process can compute of its own rows alone."""
    return torch.cdist(rows, rows.square()).mean() + (rows @ rows.T).tanh().sum()


def data() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 4).double(), torch.randn(6, 3).double()


def given(rank: int) -> list[nn.Parameter]:
    """Parameters with a gradient in both processes, in the second alone, and in none; and one of other numbers."""
    own = [nn.Parameter(torch.ones(2, 3)) for _ in range(3)] + [nn.Parameter(torch.ones(2).double())]
    for place in (0, 3) if rank == 0 else (0, 1, 3):
        own[place].grad = torch.full_like(own[place], rank + place)
    return own


def work(rank: int, port: int, results: Queue) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=WORLD, rank=rank)
    net, x = data()
    mine = x.chunk(WORLD)[rank]
    rows = gather(net(mine))
    relation(rows).backward()
    for p in net.parameters():  # as DDP does
        distributed.all_reduce(p.grad)
        p.grad /= WORLD
    strided = gather(mine.T[:2].T)
    own = given(rank)
    average_gradients(own)
    averaged = [None if p.grad is None else p.grad.numpy() for p in own]
    leaf = mine.clone().requires_grad_()
    mean = mean_over_processes(leaf.square().sum())
    ((1 + rank) * mean).backward()
    pictures = [
        [int(picture[0, 0, 0]) for picture in batch[0]] for batch in Items(PICTURES, batch_size=4, collate=ragged)
    ]
    paths = [batch["path"] for batch in splits(NAMED, 0).train]
    grads = [p.grad.numpy() for p in net.parameters()]
    means = averaged, mean.item(), leaf.grad.numpy()
    results.put((rank, rows.detach().numpy(), grads, strided.numpy(), means, pictures, paths))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcome(processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = processes.Queue()
    ranks = [processes.Process(target=work, args=(rank, port, results)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    outcome = sorted((results.get(timeout=120) for _ in ranks), key=lambda result: result[0])
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    return outcome


def test_rows_of_every_process_in_the_order_of_ranks(outcome):
    net, x = data()
    for _, rows, _, strided, *_ in outcome:
        torch.testing.assert_close(torch.from_numpy(rows), net(x).detach())
        assert torch.equal(torch.from_numpy(strided), x[:, :2])


def test_averaged_gradients_are_those_of_one_process(outcome):
    net, x = data()
    relation(net(x)).backward()
    for _, _, grads, *_ in outcome:
        for grad, p in zip(grads, net.parameters(), strict=True):
            torch.testing.assert_close(torch.from_numpy(grad), p.grad)


def test_a_mean_over_processes_and_its_gradient(outcome):
    _, x = data()
    for rank, *_, (_, mean, grad), _, _ in outcome:
        assert mean == pytest.approx(x.square().sum().item() / WORLD)
        mine = x.chunk(WORLD)[rank]
        # the processes weigh it by 1 and 2, and what they do with it adds up
        torch.testing.assert_close(torch.from_numpy(grad), 2 * mine * (1 + 2) / WORLD)


def test_gradients_are_averaged_and_a_parameter_with_none_anywhere_keeps_none(outcome):
    for *_, (averaged, *_), _, _ in outcome:
        both, second, none, double = averaged
        assert (both.tolist(), second.tolist(), none) == ([[0.5] * 3] * 2, [[1.0] * 3] * 2, None)
        assert (double.tolist(), str(double.dtype)) == ([3.5] * 2, "float64")


def test_batches_of_any_samples_are_shared_by_samples(outcome):
    assert [pictures for *_, pictures, _ in outcome] == [[[0, 2], [4]], [[1, 3], [5]]]
    assert [paths for *_, paths in outcome] == [[["0.png", "2.png", "4.png"]], [["1.png", "3.png", "5.png"]]]


def test_alone_it_is_the_tensor_itself():
    samples = torch.randn(3, 2, requires_grad=True)
    assert gather(samples) is samples
