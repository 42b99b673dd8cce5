"""On two processes: where weights lie, and who is killed on the way, changes nothing of what a training comes to."""

from __future__ import annotations

import copy
import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from multiprocessing.queues import Queue
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

import limbeck
from contract import (
    EXAMPLE,
    PowerCutError,
    Served,
    batches,
    ctrl_c,
    fit,
    group_norm,
    hooks,
    identical,
    networks,
    power_cut,
    prepare,
    tensors,
)
from limbeck import S, Stage, T, classification, on
from limbeck.core.distributed import is_shared_out, whole
from limbeck.core.method import play
from limbeck.engine.devices import Devices, _mesh, _synchronised, laid_out, replaced
from limbeck.engine.run import Run
from limbeck.engine.sharded import blocks, gathered, shard, spread, spread_optimizer

WORLD = 2
PER_EPOCH = 12
"""Batches. Processes ask each other after every tenth whether somebody wants to stop."""
WHERE = {"ddp": {"devices": WORLD, "strategy": "ddp"}, "fsdp2": {"devices": WORLD, "strategy": "fsdp2"}}
every_strategy = pytest.mark.parametrize("strategy", WHERE)
pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning", "ignore::limbeck.NoEffectWarning")


def adam(own: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(own, 0.01, eps=1e-3)  # large, or a gradient that is 0 but for rounding moves as any other


def vid(student: nn.Module, teacher: nn.Module) -> limbeck.Distill:
    """Answers and a layer are compared, and there are adapters."""
    torch.manual_seed(0)
    layers = limbeck.vid(student, teacher, layers=[("layer2", "layer2")], example=EXAMPLE)
    return limbeck.kd(student, teacher) + layers


def alike(several: list[dict[str, Any]], alone: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert len(several) == WORLD
    for weights in several:
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=atol)


# what the two processes do: cases, one after the other

METHODS: dict[str, Callable[[nn.Module, nn.Module], limbeck.Method]] = {
    "kd": limbeck.kd,
    "dml": lambda student, teacher: limbeck.dml(student, copy.deepcopy(teacher)),
    "adapters": vid,
    "DistributedDataParallel": lambda student, teacher: limbeck.kd(in_ddp(student), teacher),
}


def in_ddp(net: nn.Module) -> nn.Module:
    return DistributedDataParallel(net, find_unused_parameters=True) if distributed.is_initialized() else net


def played(name: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """The networks after a loop of one's own, in which each process has its part of every batch."""
    student, teacher = networks(norm=group_norm)
    student.register_parameter("unused", nn.Parameter(torch.ones(3)))
    method = METHODS[name](student, teacher)
    optimizers = prepare(Stage(method))
    for batch in batches(3):
        play(method, tuple(column[rank::world] for column in batch), optimizers)
    assert student.get_parameter("unused").grad is None
    assert all(p.grad is not None for name, p in student.named_parameters() if name != "unused")
    nets = {
        key: net.module if isinstance(net, DistributedDataParallel) else net for key, net in method.networks().items()
    }
    return {f"{key}.{name}": value for key, net in nets.items() for name, value in tensors(net).items()}


def play_in_a_group(home: Path) -> dict[str, dict[str, Tensor]]:
    return {name: played(name, distributed.get_rank(), WORLD) for name in METHODS}


def trained(where: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """The student after two epochs of a method with adapters, by an optimizer with a state."""
    student, teacher = networks(norm=group_norm)
    settings = {"epochs": 2, "optimizer": adam, "clip": 0.5, "accumulate": 2, **options}
    fit(vid(student, teacher), Served(4), **settings, **where)
    return tensors(student)


def train_with_a_state(home: Path) -> dict[str, dict[str, Tensor]]:
    return {strategy: trained(where) for strategy, where in WHERE.items()}


def train_in_bfloat16(home: Path) -> dict[str, Tensor]:
    return trained(WHERE["fsdp2"], precision="bf16-mixed")


def drawing(at: int = 0, happens: Callable[[], None] = ctrl_c, **options: Any) -> dict[str, Tensor]:
    """The student after a run with batch norm and dropout, in which something happens before a batch."""
    student, teacher = networks(dropout=0.2)
    loader = Served(PER_EPOCH, at=at, happens=happens)
    fit(vid(student, teacher), loader, epochs=2, optimizer=adam, clip=0.5, accumulate=2, **options)
    return tensors(student)


def go_on_after_ctrl_c_and_a_power_cut(home: Path) -> dict[str, Any]:
    found = {}
    for strategy, where in WHERE.items():
        run = {**where, "run_dir": home / f"broken-{strategy}", "resume": True}
        undisturbed = drawing(**where)
        drawing(at=3, **run)
        stopped = Run(run["run_dir"]).checkpoint(Run(run["run_dir"]).last)["limbeck"]["step"]
        try:
            drawing(at=PER_EPOCH + 4, happens=power_cut, **run)
            cut = False
        except PowerCutError:
            cut = True
        found[strategy] = {"stopped": stopped, "cut": cut, "same": identical(drawing(**run), undisturbed)}
    return found


def steady(at: int = 0, happens: Callable[[], None] = ctrl_c, **options: Any) -> dict[str, Tensor]:
    """The student after a run that may be begun and ended by any number of processes."""
    student, teacher = networks(norm=group_norm)
    loader = Served(PER_EPOCH, at=at, happens=happens)
    fit(vid(student, teacher), loader, epochs=2, optimizer=adam, **options)
    return tensors(student)


def begin_with_shares(home: Path) -> None:
    steady(at=3, run_dir=home / "of-shares", **WHERE["fsdp2"])


def go_on_with_shares(home: Path) -> dict[str, Tensor]:
    return steady(run_dir=home / "of-one", resume=True, **WHERE["fsdp2"])


def go_on_after_a_kill(home: Path) -> dict[str, bool]:
    undisturbed = {strategy: steady(**where) for strategy, where in WHERE.items()}
    return {
        strategy: identical(steady(run_dir=killed(home, strategy), resume=True, **where), undisturbed[strategy])
        for strategy, where in WHERE.items()
    }


def keep_the_first_process_batch_norm(home: Path) -> dict[str, dict[str, Tensor]]:
    found = {}
    for strategy, where in WHERE.items():
        student, _ = networks()
        fit(limbeck.plain(student), Served(3), epochs=1, optimizer=partial(torch.optim.SGD, lr=0.0), **where)
        found[strategy] = tensors(student)
    return found


def detached(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.detach() - teacher).square().mean()


def warn_of_what_trains_nothing(home: Path) -> dict[str, list[str]]:
    found = {}
    for name, follow in {"kd": 0.0 * classification.hard, "none": on(detached, S, T, name="nothing")}.items():
        student, teacher = networks(norm=group_norm)
        method = vid(student, teacher)
        whole_of_it = limbeck.Distill(student, teacher, method.objective + follow)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fit(whole_of_it, Served(3), epochs=1, **WHERE["fsdp2"])
        found[name] = [str(one.message) for one in told if one.category is limbeck.NoEffectWarning]
    return found


def users_teacher() -> nn.Module:
    """A teacher with batch norm in a state of the user's own."""
    teacher = networks()[1].train()
    teacher.layer1.eval()
    teacher.fc.bias.requires_grad_(False)
    teacher.fc.register_forward_hook(shows_nothing)
    return teacher


def shows_nothing(*_: Any) -> None:
    """A hook of the user's own."""


def state_of(net: nn.Module) -> tuple[Any, ...]:
    flags = [(p.requires_grad, p.grad is None, type(p)) for p in net.parameters()]
    return [m.training for m in net.modules()], flags, hooks(net), [type(m) for m in net.modules()]


def taught(teachers: str = "whole", dtype: str = "own", **where: Any) -> tuple[dict[str, Tensor], bool]:
    """The student, and whether the user's teacher is what it was."""
    student, teacher = networks(norm=group_norm)[0], users_teacher()
    before, weights = state_of(teacher), tensors(teacher)
    fit(vid(student, teacher), Served(3), epochs=2, teachers=teachers, teacher_dtype=dtype, **where)
    return tensors(student), state_of(teacher) == before and identical(tensors(teacher), weights)


TAUGHT = {
    "whole": ("whole", "own"),
    "sharded": ("sharded", "own"),
    "offloaded": ("offloaded", "own"),
    "in bfloat16": ("whole", "bfloat16"),
    "sharded in bfloat16": ("sharded", "bfloat16"),
}


def be_taught(home: Path) -> dict[tuple[str, str], tuple[dict[str, Tensor], bool]]:
    return {
        (strategy, name): taught(*how, **where) for strategy, where in WHERE.items() for name, how in TAUGHT.items()
    }


def read_a_cache(home: Path) -> dict[str, Any]:
    student, teacher = networks(norm=group_norm)
    data = limbeck.cached(batches(3), home / "cache")
    fit(limbeck.kd(student, teacher), data, epochs=2, **WHERE["ddp"])
    with torch.no_grad():
        teacher.fc.weight.mul_(2)
    return {"student": tensors(student), "refused": refusal(limbeck.kd(student, teacher), data, **WHERE["ddp"])}


def refusal(method: limbeck.Method, data: Any, **options: Any) -> str:
    """What is said of a training that is refused."""
    try:
        fit(method, data, epochs=1, **options)
    except ValueError as error:
        return str(error)
    return "it was not refused"


def refuse(home: Path) -> dict[str, str]:
    return {
        f"{strategy}, {reason}": refusal(limbeck.plain(networks()[0]), data, **where, **options)
        for strategy, where in WHERE.items()
        for reason, data, options in (
            ("batch norm", Served(3), {"sync_batchnorm": True}),
            ("too few", uneven(1), {}),
        )
    }


def uneven(last: int) -> list[Any]:
    """Batches of which the last has fewer samples."""
    *first, rest = batches(3)
    return [*first, tuple(column[:last] for column in rest)]


def serve_odd_batches(home: Path) -> dict[str, tuple[dict[str, Tensor], dict[str, float]]]:
    return {strategy: of_odd_batches(5, **where) for strategy, where in WHERE.items()}


def of_odd_batches(last: int, **where: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    student, teacher = networks(norm=group_norm)
    settings = {"epochs": 2, "optimizer": adam, "accelerator": "cpu", "progress": False}
    result = limbeck.fit(vid(student, teacher), (uneven(last), uneven(3)), **settings, **where)
    return tensors(student), result.metrics


KILLED = {"ddp": 1, "fsdp2": 0}
"""Which process is: the first writes the checkpoints."""


CASES = (
    play_in_a_group,
    train_with_a_state,
    train_in_bfloat16,
    go_on_after_ctrl_c_and_a_power_cut,
    begin_with_shares,
    go_on_with_shares,
    go_on_after_a_kill,
    keep_the_first_process_batch_norm,
    warn_of_what_trains_nothing,
    be_taught,
    read_a_cache,
    refuse,
    serve_odd_batches,
)


def enter(rank: int, port: int) -> None:
    """Become one of two processes, as by torchrun, in a group that waits for a minute and not for half an hour."""
    world = {"WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "devices"}
    os.environ |= {key: str(value) for key, value in {**world, **place}.items()}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", limbeck.ChanceWarning)
    rank_zero_only.rank = rank  # which Lightning reads when it is imported; here it was, before there were two
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))


def work(home: Path, rank: int, port: int, results: Queue) -> None:
    enter(rank, port)
    for case in CASES:
        try:
            results.put((case.__name__, packed(case(home))))
        except Exception:  # noqa: BLE001  # whoever asks for it is told
            results.put((case.__name__, traceback.format_exc()))


def packed(value: Any) -> Any:
    """What is found, without memory that dies with its process."""
    return tree_map(lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf, value)


def unpacked(value: Any) -> Any:
    return tree_map(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, value)


def killed(home: Path, strategy: str) -> Path:
    return home / f"killed-{strategy}"


def die(home: Path, strategy: str, rank: int, port: int) -> None:
    """Train until one of two processes is killed in the second epoch."""
    enter(rank, port)
    at = PER_EPOCH + 5 if rank == KILLED[strategy] else 0
    steady(at, partial(os.kill, os.getpid(), signal.SIGKILL), run_dir=killed(home, strategy), **WHERE[strategy])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a run that one process began, and what a teacher said."""
    home = tmp_path_factory.mktemp("devices")
    steady(at=11, run_dir=home / "of-one")
    limbeck.build_cache(home / "cache", networks(norm=group_norm)[1], batches(3), numbers="float32", accelerator="cpu")
    return home


@dataclass(frozen=True)
class End:
    """How two processes ended of which one was killed, after how many seconds, and the batches that are kept."""

    killed: int | None
    other: int | None
    waited: float
    step: int


@pytest.fixture(scope="module")
def ends(processes, home) -> dict[str, End]:
    return {strategy: end(processes, home, strategy) for strategy in WHERE}


def end(processes: Any, home: Path, strategy: str) -> End:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [processes.Process(target=die, args=(home, strategy, rank, port), daemon=True) for rank in range(WORLD)]
    for one in pair:
        one.start()
    dead, other = pair[KILLED[strategy]], pair[1 - KILLED[strategy]]
    dead.join(timeout=120)
    then = time.monotonic()
    other.join(timeout=60)
    codes, waited = (dead.exitcode, other.exitcode), time.monotonic() - then
    for one in pair:
        one.kill()
        one.join(10)
    run = Run(killed(home, strategy))
    return End(*codes, waited, run.checkpoint(run.last)["limbeck"]["step"])


@pytest.fixture(scope="module")
def outcome(together, home, ends) -> dict[str, list[Any]]:
    """What each of the two found in each case."""
    found: dict[str, list[Any]] = {case.__name__: [] for case in CASES}
    for name, told in together(partial(work, home), WORLD * len(CASES)):
        found[name].append(told)
    return found


@pytest.fixture
def of(outcome) -> Callable[[Callable[[Path], Any]], list[Any]]:
    """Returns what both found in a case, with tensors again."""

    def told(case: Callable[[Path], Any]) -> list[Any]:
        several = outcome[case.__name__]
        assert not any(isinstance(one, str) for one in several), "\n".join(map(str, several))
        return unpacked(several)

    return told


# a loop of one's own


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_that_play_half_a_batch_each_equal_one(of, name):
    alike([found[name] for found in of(play_in_a_group)], played(name))


# the strategies


@cache
def trained_alone(**options: Any) -> dict[str, Tensor]:
    return trained({}, **options)


@every_strategy
def test_an_optimizer_with_a_state_a_clipped_gradient_and_batches_that_share_an_update(of, strategy):
    alike([found[strategy] for found in of(train_with_a_state)], trained_alone())
    assert not identical(trained_alone(), trained_alone(clip=1e6)), "nothing was clipped"


def test_bfloat16_is_near_to_float32(of):
    alike(of(train_in_bfloat16), trained_alone(), atol=0.04)
    assert not any(identical(found, trained_alone()) for found in of(train_in_bfloat16))


@every_strategy
def test_a_run_goes_on_exactly_after_ctrl_c_and_a_power_cut(of, strategy):
    for found in of(go_on_after_ctrl_c_and_a_power_cut):
        assert found[strategy] == {"stopped": 10, "cut": True, "same": True}


@cache
def steady_alone() -> dict[str, Tensor]:
    return steady()


def shapes(value: Any) -> Any:
    """What a checkpoint is like: its keys, and the shapes and types of its tensors."""
    return tree_map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.device) if type(leaf) is Tensor else type(leaf).__name__, value
    )


def test_a_run_begun_with_shares_goes_on_with_one_process(of, home, tmp_path):
    of(begin_with_shares)
    steady(at=11, run_dir=tmp_path)
    mine, theirs = (Run(folder).checkpoint(Run(folder).last) for folder in (tmp_path, home / "of-shares"))
    for part in ("state_dict", "optimizer_states"):
        assert shapes(theirs[part]) == shapes(mine[part])
    assert shapes(theirs["limbeck"]["networks"]) == shapes(mine["limbeck"]["networks"])
    assert theirs["limbeck"]["step"] == mine["limbeck"]["step"] == 10
    after = steady(run_dir=home / "of-shares", resume=True)
    alike([after, load_file(home / "of-shares/student.safetensors")], steady_alone())


def test_a_run_begun_with_one_process_goes_on_with_shares(of, home):
    found = of(go_on_with_shares)
    alike(found, steady_alone())
    assert identical(load_file(home / "of-one/student.safetensors"), found[0])


@every_strategy
def test_where_one_process_is_killed_the_other_ends_with_an_error(ends, strategy):
    found = ends[strategy]
    assert found.killed == -signal.SIGKILL
    assert found.other == 1
    assert found.waited < 60
    assert found.step == PER_EPOCH


@every_strategy
def test_after_a_kill_the_run_goes_on_exactly(of, strategy):
    assert [found[strategy] for found in of(go_on_after_a_kill)] == [True, True]


@every_strategy
def test_the_statistics_of_batch_norm_are_the_first_process_own_in_all(of, strategy):
    student, _ = networks()
    student.train()
    for inputs, *_ in batches(3):
        student(inputs[0::WORLD])
    for found in of(keep_the_first_process_batch_norm):
        for name, value in tensors(student).items():
            torch.testing.assert_close(found[strategy][name], value)


def test_of_shared_weights_only_what_trains_nothing_is_warned_of(of):
    first, _ = of(warn_of_what_trains_nothing)
    assert first["kd"] == []
    (told,) = first["none"]
    assert "nothing" in told


# teachers


@every_strategy
@pytest.mark.parametrize("name", TAUGHT)
def test_where_a_teacher_lies_changes_nothing(of, strategy, name):
    alone, _ = taught()
    found = [told[strategy, name] for told in of(be_taught)]
    alike([weights for weights, _ in found], alone, atol=0.01 if "bfloat16" in name else 1e-5)
    assert [untouched for _, untouched in found] == [True, True]


@pytest.mark.parametrize("dtype", ["own", "bfloat16", "float16"])
def test_an_offloaded_teacher_teaches_a_single_process(dtype):
    assert not distributed.is_initialized()
    weights, untouched = taught("offloaded", dtype)
    assert untouched
    assert not distributed.is_initialized()
    near = [weights, taught("whole", dtype)[0]]
    alike(near, taught()[0], atol=1e-5 if dtype == "own" else 0.01)
    assert identical(near[0], near[1])


def test_two_processes_read_a_cache_as_one_and_refuse_that_of_another_teacher(of, home):
    student, teacher = networks(norm=group_norm)
    fit(limbeck.kd(student, teacher), limbeck.cached(batches(3), home / "cache"), epochs=2)
    alike([found["student"] for found in of(read_a_cache)], tensors(student))
    assert all("teacher" in found["refused"] for found in of(read_a_cache))


# what is refused, and batches that do not come out even


@every_strategy
def test_what_two_processes_cannot_do_is_refused_in_both(of, strategy):
    for found in of(refuse):
        assert "torch synchronises batch norm among GPUs alone" in found[f"{strategy}, batch norm"]
        assert "a batch of 1 cannot be shared among 2 processes" in found[f"{strategy}, too few"]


@every_strategy
def test_of_an_odd_batch_the_last_sample_is_left_out(of, strategy):
    weights, metrics = of_odd_batches(4)
    alike([found[strategy][0] for found in of(serve_odd_batches)], weights)
    for found in of(serve_odd_batches):
        assert found[strategy][1] == pytest.approx(metrics, rel=1e-4)


# by itself: what lies otherwise for a while is as it was afterwards


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A group of one process."""
    yield _mesh(torch.device("cpu"))
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"teachers": "nearby"}, "teachers must be 'whole', 'sharded' or 'offloaded', got 'nearby'"),
        ({"teacher_dtype": "int8"}, "teacher_dtype must be 'own', 'bfloat16' or 'float16', got 'int8'"),
        (
            {"strategy": "fsdp2", "channels_last": True},
            "channels_last=True: FSDP2 shares out weights in torch's own order",
        ),
    ],
)
def test_what_no_device_can_do_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Devices(**options)
    with pytest.raises((ValueError, TypeError), match=next(iter(options)) if len(options) == 1 else told):
        fit(limbeck.plain(networks()[0]), Served(3), epochs=1, **options)


def test_a_single_process_may_share_weights_with_nobody():
    before = dict(os.environ)
    several = [trained({"strategy": "fsdp2"}), trained({"strategy": "fsdp2", "teachers": "sharded"})]
    assert not distributed.is_initialized()
    assert dict(os.environ) == before  # or a later training would wait for others
    alike(several, trained_alone())


def test_batch_norm_is_synchronised_for_a_while_and_keeps_what_it_learned():
    student, teacher = networks()
    method = limbeck.kd(student, teacher)
    before, names = dict(method.named_modules()), list(student.state_dict())
    weights = [*student.parameters()]
    with replaced(method, _synchronised):
        assert isinstance(student.layer1[1], nn.SyncBatchNorm)
        assert not any(type(module) is nn.BatchNorm2d for module in student.modules())
        assert list(student.state_dict()) == names
        assert all(map(is_, student.parameters(), weights))
        assert isinstance(teacher.layer1[1], nn.BatchNorm2d)
        student.double()  # as on another device, parameters have another memory now, and buffers are others
        student.layer1[1].running_mean.fill_(3)
        student.layer2[1].weight.data.fill_(4)
        student.float()
    after = dict(method.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in after)
    assert student.layer1[1].running_mean.tolist() == [3] * 4
    assert student.layer2[1].weight.tolist() == [4] * 8
    assert {value.dtype for value in student.state_dict().values()} == {torch.float32, torch.int64}


def test_a_module_at_two_places_is_replaced_by_one_and_put_back_after_an_error():
    norm = nn.BatchNorm2d(4)
    student = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with suppress(KeyError), replaced(limbeck.plain(student), _synchronised):
        assert student[1] is student[3] is not norm
        raise KeyError
    assert student[1] is student[3] is norm


def test_weights_are_laid_out_for_a_while():
    student, teacher = networks()
    weights, own = tensors(student), student.layer1[0].weight
    with laid_out(vid(student, teacher)):
        assert student.layer1[0].weight is own
        assert own.is_contiguous(memory_format=torch.channels_last)
        assert not own.is_contiguous()
        assert teacher.layer1[0].weight.is_contiguous()
    assert student.layer1[0].weight is own
    assert own.is_contiguous()
    assert identical(tensors(student), weights)


class Reader(nn.Module):
    """As BERT: a table that the head shares, and layers of layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2))
        self.heads = nn.ModuleList([nn.Linear(8, 16), nn.Linear(8, 3)])
        self.heads[0].weight = self.embed.weight


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (limbeck.zoo.network("resnet8", 10, (3, 32, 32)), ["layer1.0", "layer2.0", "layer3.0"]),
        (networks()[0], ["layer1", "layer2"]),
        (Reader(), ["encoder.layer.0", "encoder.layer.1", "heads.1"]),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), []),
        (nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2)), ["0"]),
    ],
    ids=["resnet", "sequences", "reader", "single layers", "one in the other"],
)
def test_blocks(net, names):
    found = {id(block) for block in blocks(net)}
    assert [name for name, module in net.named_modules() if id(module) in found] == names


def descended(net: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> nn.Module:
    optimizer.zero_grad()
    F.cross_entropy(net(batch[0]), batch[1]).backward()
    optimizer.step()
    return net


def test_states_are_gathered_and_spread(alone):
    first, second = batches(2)
    nets = [networks()[0] for _ in range(3)]
    plain, shares, others = nets
    for net in (shares, others):
        shard(net, alone)
        assert isinstance(net.layer1, FSDPModule)
        assert all(is_shared_out(p) for p in net.parameters())
    optimizers = [adam([*net.parameters()]) for net in nets]
    for net, optimizer in zip(nets[:2], optimizers[:2], strict=True):
        descended(net, optimizer, first)
    states = copy.deepcopy(gathered({"net": shares.state_dict(), "optimizer": optimizers[1].state_dict()}))
    own = {"net": plain.state_dict(), "optimizer": optimizers[0].state_dict()}
    assert shapes(states) == shapes(own)
    others.load_state_dict({name: spread(value, others.state_dict()[name]) for name, value in states["net"].items()})
    optimizers[2].load_state_dict(spread_optimizer(states["optimizer"], optimizers[2]))
    moments = optimizers[2].state[others.fc.weight]
    assert is_shared_out(moments["exp_avg"])
    assert not is_shared_out(moments["step"])
    for net, optimizer in zip(nets, optimizers, strict=True):
        descended(net, optimizer, second)
    wanted = tensors(plain)
    for net in (shares, others):
        found = {name: whole(value) for name, value in net.state_dict().items()}
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value)


def test_what_is_gathered_elsewhere_is_left_out(alone):
    net = networks()[0]
    shard(net, alone)
    kept = gathered(net.state_dict(), here=False)
    assert kept["fc.weight"] is None
    assert torch.equal(kept["layer1.1.running_mean"], net.layer1[1].running_mean)
