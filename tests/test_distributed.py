"""`gather` on two processes: values, gradients, and the claim that DDP's average of them is one process's."""

import socket
from multiprocessing.queues import Queue

import pytest
import torch
from torch import Tensor, distributed, nn

from limbeck.distributed import gather

WORLD = 2


def relation(rows: Tensor) -> Tensor:
    """A loss that no process can compute of its own rows alone."""
    return torch.cdist(rows, rows.square()).mean() + (rows @ rows.T).tanh().sum()


def data() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 4).double(), torch.randn(6, 3).double()


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
    results.put((rank, rows.detach().numpy(), [p.grad.numpy() for p in net.parameters()], strided.numpy()))
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
    outcome = sorted((results.get(timeout=60) for _ in ranks), key=lambda result: result[0])
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    return outcome


def test_rows_of_every_process_in_the_order_of_ranks(outcome):
    net, x = data()
    for _, rows, _, strided in outcome:
        torch.testing.assert_close(torch.from_numpy(rows), net(x).detach())
        assert torch.equal(torch.from_numpy(strided), x[:, :2])


def test_averaged_gradients_are_those_of_one_process(outcome):
    net, x = data()
    relation(net(x)).backward()
    for _, _, grads, _ in outcome:
        for grad, p in zip(grads, net.parameters(), strict=True):
            torch.testing.assert_close(torch.from_numpy(grad), p.grad)


def test_alone_it_is_the_tensor_itself():
    samples = torch.randn(3, 2, requires_grad=True)
    assert gather(samples) is samples
