"""docs/loops.md: limbeck in other people's loops trains to the weights of `limbeck.play`, and two processes as one."""

import os
import re
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import limbeck

PAGE = Path(__file__).parents[2] / "docs/loops.md"
LIGHTNING, ACCELERATE, TIMM = LOOPS = "In a LightningModule of your own", "In Accelerate", "In timm's training script"
LONGEST = 15
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

Names = dict[str, Any]


def snippets(title: str = "") -> list[str]:
    """The Python of a section; without a title, what stands before the first."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.MULTILINE)
    sections = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    return FENCED.findall(sections[title])


def run(texts: list[str], names: Names) -> None:
    for text in texts:
        exec(compile(text, PAGE.name, "exec"), names)


def begun() -> Names:
    """What the page's beginning leaves: the same networks, method and batches each time."""
    names: Names = {}
    run(snippets(), names)
    return names


def weights(names: Names) -> dict[str, Tensor]:
    """All that trains, the method's own layers too, and buffers."""
    return {key: value.detach().clone() for key, value in names["method"].state_dict().items()}


def by_hand(names: Names) -> dict[str, Tensor]:
    names["by_hand"](names["method"], names["loader"])
    return weights(names)


@pytest.fixture(scope="module")
def played() -> dict[str, Tensor]:
    return by_hand(begun())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_gives_the_weights_of_play(loop, played, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Lightning logs into it
    names = begun()
    assert len(names["loader"]) == 20
    before = weights(names)
    if loop == TIMM:
        run(snippets(ACCELERATE)[:1], names)  # the loss as a module
    run(snippets(loop), names)
    after = weights(names)
    trained = dict(names["method"].named_parameters())
    assert not any(torch.equal(before[key], after[key]) for key in trained)
    assert any(key.startswith("objective.") for key in trained)  # VID's own layers
    assert {key for key in played if not torch.equal(played[key], after[key])} == set()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_takes_fifteen_lines(loop):
    lines = [line for text in snippets(loop) for line in text.splitlines() if line.strip()]
    assert len(lines) <= LONGEST


@pytest.mark.filterwarnings("ignore::limbeck.NoEffectWarning")
@pytest.mark.parametrize("name", ["dml", "adversarial"])
def test_players_in_turns_are_played_in_a_lightning_module(name, tmp_path, monkeypatch):
    """As the page says of the two: manual optimization, and `play` in `training_step`."""
    monkeypatch.chdir(tmp_path)

    def fresh() -> Names:
        names = begun()
        student, teacher, example = names["student"], names["teacher"], names["images"][:2]
        names["method"] = (
            limbeck.dml(student, teacher) if name == "dml" else limbeck.adversarial(student, teacher, example=example)
        )
        return names

    names, alone = fresh(), fresh()
    run(snippets(LIGHTNING)[:1], names)

    class InTurns(names["Distilled"]):
        def __init__(self, method: limbeck.Method) -> None:
            super().__init__(method)
            self.automatic_optimization = False

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            optimizers = limbeck.optimizers(self.method, names["sgd"])
            return [*optimizers.values()]

        def training_step(self, batch: Any, index: int) -> None:
            limbeck.play(self.method, batch, dict(zip(self.method.players(), self.optimizers(), strict=True)))

    trainer = names["Trainer"](max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    torch.manual_seed(1)
    trainer.fit(InTurns(names["method"]), names["loader"])
    torch.manual_seed(1)
    expected = by_hand(alone)
    assert {key for key, value in weights(names).items() if not torch.equal(value, expected[key])} == set()


def of_one_size(width: int) -> nn.Module:
    """Without batch norm, whose statistics are each process's own."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def relational(rank: int = 0, world: int = 1) -> Names:
    """A method that relates samples and has layers of its own, and this process's share of each batch."""
    names = begun()
    torch.manual_seed(1)
    student, teacher = of_one_size(4), of_one_size(8)
    vid = limbeck.vid(student, teacher, layers=[("0", "0")], example=names["images"][:2])
    shares = [(x[rank::world], y[rank::world]) for x, y in names["loader"]]
    method = limbeck.kd(student, teacher) + limbeck.rkd(student, teacher) + vid
    return {**names, "student": student, "teacher": teacher, "method": method, "loader": DataLoader(shares, None)}


def work(rank: int, port: int, results: Queue) -> None:
    """Train each loop as one of two processes, started as by torchrun."""
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "loops"}
    os.environ |= {key: str(value) for key, value in {**world, **place, "ACCELERATE_USE_CPU": "true"}.items()}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for loop in LOOPS:
        names = relational(rank, 2)
        run(snippets(ACCELERATE)[:1], names)
        first, last = snippets(loop)
        if loop == LIGHTNING:  # which shares batches out itself, unless told that they are shares
            quiet = "logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False"
            last = last.replace('"auto"', f'"cpu", devices=2, strategy="ddp", use_distributed_sampler=False, {quiet}')
        elif loop == ACCELERATE:
            last = last.replace("optimizer, loader)", "optimizer, None)").replace("prepared)", "loader)")
        else:
            last = last.replace("task.eval_model", "task.prepare_distributed()\ntask.eval_model")
        run([first, last], names)
        results.put((loop, {key: value.numpy() for key, value in weights(names).items()}))


def test_two_processes_train_as_one(together):
    alone, told = by_hand(relational()), together(work, 2 * len(LOOPS))
    assert sorted(loop for loop, _ in told) == sorted([*LOOPS, *LOOPS])
    for loop, together in told:
        for key, value in alone.items():
            torch.testing.assert_close(
                torch.from_numpy(together[key]),
                value,
                rtol=1e-5,
                atol=1e-5,
                msg=lambda text, at=(loop, key): f"{at} {text}",
            )
