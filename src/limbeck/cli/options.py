"""The options that commands share: a function a group, whose parameters the parser reads.

For that it imports also what is here under TYPE_CHECKING, so nothing is.
"""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace

from limbeck.cli.help import NETWORKS, dashed
from limbeck.core.method import Make
from limbeck.core.options import ranged, ranges_of, refuse_outside
from limbeck.engine.precision import Precision, Teachers, TeacherType

ELSEWHERE = "elsewhere"
"""The name of a teacher of whom there is nothing but a cache."""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where a launcher of several processes says which of them this is."""


def answers(task: str | None = None, output: str | None = None, num_outputs: int | None = None) -> None:
    """Say what the networks are made to do.

    Args:
        task: A name of `limbeck list tasks`, or a task of your own, as mytask:task: a limbeck.Task, or a function that
            returns one. By default the data's; loaders of your own are taken for classification.
        output: Where the answer is in what the networks return: a key, a field or a place, as scores, 0 or heads:scores.
        num_outputs: How many outputs a network needs: classes, labels or values. Data by name know it.
    """


def views(
    teacher_output: str | None = None,
    teacher_inputs: str | None = None,
    teacher_classes: list[int] | None = None,
    teacher_num_outputs: int | None = None,
) -> None:
    """Say how the teacher is fed and read, where it is not as the student.

    Args:
        teacher_output: Where its answer is in what it returns, as --output says it of the student.
        teacher_inputs: A function of your own, as myviews:larger, which makes its inputs of the student's.
        teacher_classes: Which of its outputs each of the student's is, as [3,5,7]; the others are left out.
        teacher_num_outputs: How many outputs it has, where it has others than the student.
    """


def remembered(cache: str | None = None) -> None:
    """Say where what the teacher says is kept.

    Args:
        cache: A folder of `limbeck cache build`, from which it is read: the teacher is not run.
    """


@ranged
def load_data(
    data: str = "digits",
    root: str | None = None,
    download: bool = False,
    batch_size: int = 64,
    labels: int | None = None,
    samples: int | None = None,
    val_share: float = 0.1,
    augment: Literal["default", "none", "crop", "crop-flip", "cutout"] = "default",
    split_seed: int = 0,
    workers: int = 2,
    size: int | list[int] | None = None,
    ignore: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    in_memory: bool | None = None,
    views: int | None = None,
    view_seed: int = 0,
    seed: int = 0,
) -> Any:
    """Load the data.

    Args:
        data: A name of `limbeck list data`, or a function of your own, as mydata:photos, which returns a limbeck.data.Data,
            or loaders (train, val, test) or (train, val). It is given what is said here by the names of its arguments.
        root: The folder that holds its files; the digits need none.
        download: Fetch missing files into the root.
        batch_size: Samples in a batch, over all devices, at least 1; 64 as in RepDistiller.
        labels: Keep this many training labels, at least one of each class; the other images stay, without.
        samples: Use only this many training samples.
        val_share: Share of train held out for validation, in (0, 1), where the set has no validation split.
        augment: Of training images; by default what suits the set.
        split_seed: Of the choice of validation samples, samples and labels, in [0, 4294967295].
        workers: Processes that decode images which are not in memory, at least 0.
        size: Side in pixels to which images that are not in memory are cropped, by default 224 as torchvision expects it;
            of images with masks the side, or [height,width], to which all are resized.
        ignore: Value of the pixels of a mask that have no label; 255 by default.
        mean: Of every channel, as [0.5,0.5,0.5], of pixels scaled to 0..1; by default what is known of the set, or
            computed, or ImageNet's for images that are not in memory.
        std: Likewise.
        in_memory: Keep images in memory as they are, or decode them one by one; by default those of one size of at most 96
            pixels a side are kept.
        views: In how many ways each training image looks, at least 1, epoch by epoch in turn; by default each epoch draws
            anew.
        view_seed: Of how they look then, in [0, 4294967295].
        seed: Of everything random, in [0, 4294967295]: weights, order of batches, augmentation.
    """
    said: dict[str, Any] = {
        "root": root,
        "download": download,
        "batch_size": batch_size,
        "labels": labels,
        "samples": samples,
        "val_share": val_share,
        "augment": augment,
        "seed": seed,
        "split_seed": split_seed,
        "workers": workers,
        "size": size,
        "ignore": ignore,
        "mean": mean,
        "std": std,
        "in_memory": in_memory,
        "views": views,
        "view_seed": view_seed,
    }
    from limbeck import data as datasets

    return datasets.load(data, **said) if data in datasets.names() or ":" not in data else _own_data(data, said)


@ranged
def training(
    epochs: int = 30,
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Literal["step", "cosine", "constant"] = "step",
    precision: Precision = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    sync_batchnorm: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    teachers: Teachers = "whole",
    teacher_dtype: TeacherType = "own",
    accumulate: int = 1,
    clip: float | None = None,
    run_dir: str | None = None,
    resume: bool = False,
    logger: list[str] | str | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Say how to train.

    Args:
        epochs: Of all stages together, at least 1; 30 is ours.
        optimizer: Of every player.
        lr: Learning rate, above 0; 0.05 as in RepDistiller, for SGD on CIFAR.
        momentum: Of SGD, in [0, 1); 0.9 as in RepDistiller. Nesterov's correction is ours.
        weight_decay: Decay of the weights, at least 0; 5e-4 as in RepDistiller.
        schedule: Of the learning rate: a tenth after 5/8, 6/8 and 7/8 of the updates, as in RepDistiller; half a
            cosine; or constant.
        precision: Lightning's name.
        accelerator: Lightning's name.
        devices: How many in each machine, at least 1.
        nodes: How many machines, at least 1, on each of which torchrun or SLURM starts the same command.
        strategy: ddp, which is that of several devices; fsdp2, which shares out weights, gradients and the optimizers'
            states; or another of Lightning's names.
        sync_batchnorm: Let batch norm take its statistics over all processes, on GPUs.
        channels_last: Lay the weights of convolutions out with channels last.
        compile: Compile the networks and the losses.
        teachers: Where the teachers' weights lie: whole on each device; sharded among the devices, or offloaded to the
            host's memory, and brought together block by block.
        teacher_dtype: In which numbers teachers compute, whatever the precision is; own is as they come.
        accumulate: Batches whose gradients are averaged before an update, at least 1.
        clip: The largest norm of a player's gradient, above 0; unlimited by default.
        run_dir: The run's folder; by default one in runs/ that says what was run, and when.
        resume: Go on with the run in run_dir.
        logger: Another logger by Lightning's name, or several: [TensorBoardLogger,WandbLogger,MLFlowLogger].
        progress: Show progress bars; by default in a terminal.

    Raises:
        ValueError: An option out of its range, a device that is not there, or more than there are.
    """
    _refuse_device(accelerator)
    _refuse_more_than_there_are(devices, accelerator)
    return {
        "epochs": epochs,
        "optimizer": _optimizer(optimizer, lr, momentum, weight_decay),
        "schedule": _schedule(schedule),
        "precision": precision,
        "accelerator": accelerator,
        "devices": devices,
        "nodes": nodes,
        "strategy": strategy,
        "sync_batchnorm": sync_batchnorm,
        "channels_last": channels_last,
        "compile": compile,
        "teachers": teachers,
        "teacher_dtype": teacher_dtype,
        "accumulate": accumulate,
        "clip": clip,
        "resume": resume,
        "progress": progress,
        "loggers": [_logger(name, run_dir) for name in several(logger)],
    }


def caution(check: bool = True) -> None:
    """Say whether to look first.

    Args:
        check: Look for mistakes before the training, which takes seconds; false trains nevertheless.
    """


def student_of(student: str, new_head: bool = False) -> str:
    """Name the student.

    Args:
        student: A network of `limbeck list networks`, as resnet8x4 or timm:mobilenetv3_small_100; its first weights as
            NAME@FILE, NAME@RUN or NAME@pretrained.
        new_head: Begin with a fresh last layer where the file of weights is for another number of classes; all else must
            fit. So do peers and assistants; a teacher never does.
    """
    return student


def network_of(network: str, new_head: bool = False) -> str:
    """Name the network.

    Args:
        network: A network of `limbeck list networks`; its weights as NAME@FILE, NAME@FILE:KEY for one of several in a file,
            NAME@RUN for the student in a run's folder, finished or not, or NAME@pretrained.
        new_head: Begin with a fresh last layer where the file of weights is for another number of classes; all else must
            fit.
    """
    return network


def trained_of(network: str) -> str:
    """Name the network.

    Args:
        network: A network of `limbeck list networks` with its weights: NAME@FILE, NAME@FILE:KEY for one of several in a
            file, NAME@RUN for the student in a run's folder, finished or not, or NAME@pretrained.
    """
    return network


def teacher_of(teacher: list[str] | str) -> list[str] | str:
    """Name the teacher.

    Args:
        teacher: A network with its weights, as resnet56@teacher.safetensors or resnet56@runs/teacher, a run's folder;
            NAME@random is an untrained one, a control. Several, as [resnet56@a.safetensors,wrn-16-2@b.safetensors], teach
            with the mean of their logits. "elsewhere" is one of whom there is nothing but a --cache.
    """
    return teacher


def possible_teacher_of(teacher: list[str] | str | None = None) -> list[str] | str | None:
    """Name the teacher, if there is one.

    Args:
        teacher: A network with its weights, NAME@FILE or NAME@RUN, or several, as [NAME@FILE,NAME@FILE], for the mean of
            their logits. Where there is none, ban and tfkd_self train one first.
    """
    return teacher


def peers_of(peers: list[str] | str) -> list[str] | str:
    """Name the peers.

    Args:
        peers: The other network, as resnet20, or several, as [resnet20,resnet8]; each has an initialisation of its own.
    """
    return peers


def assistants_of(assistants: list[str] | str) -> list[str] | str:
    """Name the assistants.

    Args:
        assistants: A network of a size in between, as resnet20, or several from the largest on, as [resnet32,resnet14].
    """
    return assistants


def total(hard: float | None = None) -> None:
    """Say what the methods share.

    Args:
        hard: Weight of the labels, whatever it is in each method; by default 1, and 0 where no method has them.
    """


def _own_data(name: str, said: dict[str, Any]) -> Any:
    """Call the user's function with what was said, where that is not our default; its own defaults stay."""
    from limbeck.data import Data
    from limbeck.data.files import SIDE
    from limbeck.zoo._outside import find

    module, _, attribute = name.partition(":")
    function = find(name, module, attribute)
    if not callable(function):
        raise TypeError(f"{name}: expected a function that returns data, got {type(function).__name__}")
    ours, takes = inspect.signature(load_data).parameters, inspect.signature(function).parameters
    meant = [key for key, value in said.items() if key == "seed" or value != ours[key].default]
    if unheard := [key for key in meant if key not in (*takes, "seed")]:
        raise ValueError(
            f"{name} has no argument {unheard[0]!r}: give it one, or leave {dashed('--' + unheard[0])} out"
        )
    said["size"] = SIDE if said["size"] is None else said["size"]  # for one that needs it
    needed = [key for key, one in takes.items() if key in said and one.default is inspect.Parameter.empty]
    torch.manual_seed(said["seed"])
    data = function(**{key: said[key] for key in {*meant, *needed} if key in takes})
    if isinstance(data, Data):
        return data.with_seed(said["seed"])
    if not isinstance(data, tuple):
        raise TypeError(
            f"{name}: expected it to return a limbeck.data.Data, or loaders (train, val, test) or (train, val), got "
            f"{type(data).__name__}"
        )
    return data


def call(function: Callable[..., Any], leaf: Namespace) -> Any:
    """Call a group of options with what was said."""
    return function(**{name: leaf[name] for name in inspect.signature(function).parameters})


def several(names: list[str] | str | None) -> list[str]:
    """Return one name, several or none as a list."""
    return [names] if isinstance(names, str) else names or []


def look_ahead(groups: Iterable[Callable[..., Any]], leaf: Namespace, before: str = "") -> None:
    """See that what was said can be, before what takes seconds is loaded.

    Args:
        groups: Of options.
        leaf: What was said.
        before: What stands before the options' names in a sum, as ``kd.``.

    Raises:
        ValueError: A number out of its range, an unknown network, a file of weights that is missing, or a device that is
            not there.
    """
    for group in groups:
        for name, allowed in ranges_of(group).items():
            if (key := before + name) in leaf:
                refuse_outside(dashed(f"--{key}"), leaf[key], allowed)
        if group in (student_of, network_of, trained_of, teacher_of, possible_teacher_of, peers_of, assistants_of):
            for role in NETWORKS:
                for name in several(leaf[role] if role in inspect.signature(group).parameters else None):
                    if (role, name) != ("teacher", ELSEWHERE):
                        _refuse_absent(name)
        if group is training:
            _refuse_device(leaf.accelerator)


def refuse_folder(leaf: Namespace) -> None:
    """See that a training's folder is free for it.

    Raises:
        ValueError: It is a file, or holds a run already, and nobody wants to go on with that.
    """
    if leaf.run_dir is None or any(
        os.environ.get(rank, "0") != "0" for rank in RANKS
    ):  # the first process writes there
        return
    folder = Path(leaf.run_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run-dir: expected a folder, got the file {folder}: name another, as runs/{folder.stem}")
    if not leaf.resume and (folder / "config.yaml").exists():
        raise ValueError(
            f"{folder} holds a run already: --resume goes on with it, and another folder, --run-dir NEW, begins anew"
        )


def _refuse_absent(name: str) -> None:
    """Refuse a network that there is not, or whose weights are not there; factories are found when they are called."""
    from limbeck import zoo
    from limbeck.zoo._files import split_key

    base, weights = zoo.split_name(name)
    zoo.refuse_file(base)
    if ":" not in base:
        zoo._from_zoo(base, num_classes=2)
    if weights not in (None, "random", "pretrained") and not split_key(weights)[0].exists():
        zoo._found(base, weights)  # which says so


def fresh_folder(*words: str) -> str:
    """Name a run's folder by what is run, and when."""
    from limbeck import zoo

    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", zoo.split_name(word)[0]) for word in words)
    return str(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}")


def _refuse_device(accelerator: str) -> None:
    there = ["cpu"]
    there += ["gpu", "cuda"] if torch.cuda.is_available() else []
    there += ["gpu", "mps"] if torch.backends.mps.is_available() else []
    if accelerator in ("gpu", "cuda", "mps") and accelerator not in there:
        raise ValueError(
            f"--accelerator {accelerator}: torch finds none on this machine, only {', '.join(there)}: leave it out, or say "
            "auto, which takes what there is"
        )


def _refuse_more_than_there_are(devices: int, accelerator: str) -> None:
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    there = (os.cpu_count() or 1) if on_cpu else torch.accelerator.device_count()
    if devices > there > 0:
        raise ValueError(
            f"devices must be at most {there}, since there are no more{' CPU cores' * on_cpu}, got {devices}"
        )


def _optimizer(name: str, lr: float, momentum: float, weight_decay: float) -> Make:
    if name == "sgd":
        return lambda parameters: torch.optim.SGD(
            parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
        )
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return lambda parameters: kind(parameters, lr, weight_decay=weight_decay)


def _schedule(name: str) -> Callable[[torch.optim.Optimizer, int], Any] | None:
    from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

    if name == "cosine":
        return lambda optimizer, updates: CosineAnnealingLR(optimizer, updates)
    if name == "step":
        return lambda optimizer, updates: MultiStepLR(optimizer, [updates * eighths // 8 for eighths in (5, 6, 7)])
    return None


def _logger(name: str, run_dir: str | None) -> Any:
    from lightning.pytorch import loggers

    known = [each for each in dir(loggers) if each.endswith("Logger") and each != "Logger"]
    if name not in known:
        raise ValueError(f"unknown logger {name!r}: Lightning has {', '.join(known)}")
    try:
        return getattr(loggers, name)(save_dir=run_dir or "runs")
    except ModuleNotFoundError as error:
        packages = re.findall(r"pip install -U '(.+?)'", str(error))  # Lightning lists those of which one will do
        raise ModuleNotFoundError(
            f"--logger {name} needs a package that is not installed: pip install '{packages[-1]}'"
        ) from error
