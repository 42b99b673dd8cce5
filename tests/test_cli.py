"""The command line, from words to exit codes."""

import csv
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import limbeck
from limbeck import methods, zoo
from limbeck.cli import COMMANDS, main

TINY = "--samples 200 --epochs 1 --accelerator cpu --progress false"
CONTROL = "--teacher mlp-16@random"


@dataclass
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[[str], Answer]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Run:
    """Runs a command in an empty folder; runs draw no report, which takes ten times as long as the training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)  # main() sets its own; put back after the test

    def command(line: str) -> Answer:
        try:
            code = main(line.split())
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    return command


def weights(net: nn.Module, path: str = "weights.safetensors") -> str:
    save_file(net.state_dict(), path)
    return path


def same(a: str, b: str) -> bool:
    one, other = (load_file(Path(folder) / "student.safetensors") for folder in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# the main job


def test_train_distill_eval(run):
    trained = run(
        "train --network mlp-32 --samples 400 --epochs 6 --schedule cosine --run-dir runs/teacher --accelerator cpu"
    )
    assert (trained.code, trained.err) == (0, "")
    assert "runs/teacher/student.safetensors" in trained.out

    distilled = run(
        "distill kd --student mlp-16 --teacher mlp-32@runs/teacher/student.safetensors --run-dir runs/kd "
        f"{TINY.replace('--epochs 1', '--epochs 6')}"
    )
    assert (distilled.code, distilled.err) == (0, "")  # a student no better than chance would be warned of
    told = json.loads(Path("runs/kd/result.json").read_text())
    assert (told["method"], told["data"], told["seed"]) == ("kd", "digits", 0)
    assert told["teacher"]["accuracy"] > 0.5

    measured = run("eval --network mlp-16@runs/kd/student.safetensors")
    assert measured.code == 0
    accuracy = f"{100 * told['networks']['student']['test']['accuracy']:.2f} %"
    assert accuracy in distilled.out
    assert accuracy in measured.out


ORDINARY = "--student resnet8 --teacher resnet8@random"
STAGED = f"{ORDINARY} --epochs 2"
EVERY = dict.fromkeys(methods.__all__, ORDINARY) | {
    "plain": "--student mlp-16",
    "ls": "--student mlp-16 --smoothing 0.2",
    "kd": f"--student mlp-16 {CONTROL} --temperature 2 --alpha 0.5",
    "logits": f"--student mlp-16 {CONTROL}",
    "bounded": f"--student mlp-8 {CONTROL} --data diabetes",
    "fitnets": STAGED,
    "fsp": STAGED,
    "ft": STAGED,
    "ab": STAGED,
    "at": f"{ORDINARY} --layers [[layer1,layer1],[layer2,layer2]]",
    "gradient": f"--student mlp-16 {CONTROL}",
    "jacobian": f"--student mlp-16 {CONTROL} --projection 0.01",
    "rkd": f"--student mlp-16 {CONTROL}",
    "crd": f"{ORDINARY} --negatives 64",
    "dml": "--student mlp-16 --peers [mlp-16,mlp-32] --labels 100 --alternate false --ensemble true",
    "one": "--student mlp-16-16 --layer layers.fc2:in",
    "byot": "--student resnet8",
    "rekd": "--student mlp-16 --teacher mlp-8@random",
    "dekd": f"--student mlp-16 {CONTROL} --epochs 2",
    "takd": f"--student mlp-16 {CONTROL} --assistants mlp-24 --epochs 2",
    "tfkd_reg": "--student mlp-16 --mode code",
    "tfkd_self": "--student mlp-16 --epochs 2",
    "ban": "--student mlp-16 --generations 1 --epochs 2 --soft 0 --cwtm 1 --dkpp 1",
    "embedding_table": "--student levels:few --teacher levels:many@random",
    "kpn": f"{STAGED} --layers [[layer1,layer1],[layer3,layer2]]",
}
LEVELS = """
from torch import nn

class Levels(nn.Module):
    def __init__(self, dimensions, classes):
        super().__init__()
        self.embed, self.fc = nn.Embedding(17, dimensions), nn.Linear(dimensions * 64, classes)

    def forward(self, x):
        return self.fc(self.embed((4 * x + 8).clamp(0, 16).long()).flatten(1))

def few(num_classes):
    return Levels(2, num_classes)

def many(num_classes):
    return Levels(5, num_classes)
"""


@pytest.mark.parametrize("method", methods.__all__)
def test_every_method_trains_from_the_command_line(run, method):
    Path("levels.py").write_text(LEVELS)  # images as tokens: no network of the zoo has a table of embeddings
    answer = run(f"distill {method} {TINY} --run-dir run {EVERY[method]}")
    assert answer.code == 0, answer.err
    student = zoo.network(EVERY[method].split()[1], *((1, (10,)) if "diabetes" in EVERY[method] else (10, (1, 8, 8))))
    student.load_state_dict(load_file("run/student.safetensors"))
    with open("run/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (2 if "--epochs 2" in EVERY[method] else 1)


def test_options_reach_the_method(run):
    run(f"distill kd --student mlp-16 {CONTROL} {TINY} --run-dir a --temperature 1 --alpha 0.5")
    run(f"distill kd --student mlp-16 {CONTROL} {TINY} --run-dir b --temperature 9 --alpha 0.5")
    assert not same("a", "b")


def test_dashes_and_underscores_are_alike(run):
    for words in ("--run-dir a --weight-decay 0.1", "--run_dir=b --weight_decay=0.1"):
        assert run(f"train --network mlp-16 {TINY} {words}").code == 0
    assert same("a", "b")
    assert yaml.safe_load(Path("a/config.yaml").read_text())["train"]["weight_decay"] == 0.1


def test_a_run_has_a_folder_of_its_own_by_default(run):
    assert run(f"train --network mlp-16 {TINY}").code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-plain-mlp_16-digits")


def test_the_config_of_a_run_reproduces_it(run):
    teacher = weights(zoo.network("mlp-16", 10, (1, 8, 8)))
    run(f"distill kd --student mlp-16 --teacher mlp-16@{teacher} --seed 3 --lr 0.1 {TINY} --run-dir a")
    again = run("--config a/config.yaml distill kd --run-dir b")
    assert again.code == 0, again.err
    assert same("a", "b")
    other = run("--config a/config.yaml --run-dir c --seed 4")
    assert other.code == 0, other.err
    assert not same("a", "c")
    there = run("distill --config=a/config.yaml")
    assert there.code == 2
    assert (
        "a holds a run already: --resume goes on with it, and another folder, --run-dir NEW, begins anew" in there.err
    )


SMALL = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, num_classes))
"""


def test_a_number_is_a_name_where_a_name_belongs(run):
    Path("numbered.py").write_text(SMALL)
    both = "--student numbered:small --teacher numbered:small@random"
    trained = run(f"distill at {both} --layers [[1,0],[0,1]] --check false {TINY} --run-dir run")
    assert trained.code == 0, trained.err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["distill"]["at"]["layers"] == [["1", "0"], ["0", "1"]]
    strange = run(f"distill byot {both.partition(' --teacher')[0]} --exits [1,7.10] {TINY}")
    assert strange.code == 2
    assert "no layer '7.10'" in strange.err


def test_help_is_a_word_too(run):
    assert run("help distill kd").out == run("distill kd --help").out
    assert run("help").out == run("--help").out


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(run, monkeypatch):
    line = f"train --network mlp-16 {TINY} --run-dir".replace("--epochs 1", "--epochs 3")
    assert run(f"{line} whole").code == 0
    seen = []

    def press(module: nn.Module, inputs: object) -> None:
        seen.append(module.training)
        if module.training and seen.count(True) == 5:
            signal.raise_signal(signal.SIGINT)

    made = zoo.network
    with monkeypatch.context() as patched:

        def interrupting(*arguments: object, **options: object) -> nn.Module:
            net = made(*arguments, **options)
            net.register_forward_pre_hook(press)
            return net

        patched.setattr("limbeck.zoo.network", interrupting)
        stopped = run(f"{line} parts")
    assert stopped.code == 130
    assert "the same command with --run-dir parts --resume goes on" in stopped.out
    assert run(f"{line} parts").code == 2
    other = run(f"{line} parts --resume --lr 0.01")
    assert other.code == 2
    assert "the run in parts has another lr: 0.05, and not 0.01. Go on with the same settings" in other.err
    other = run(f"distill ls --student mlp-16 {TINY} --run-dir parts --resume")
    assert other.code == 2
    assert "the run in parts is one of `limbeck train`, and not of `limbeck distill ls`" in other.err
    assert run(f"{line} parts --resume --progress false").code == 0
    assert same("whole", "parts")


def test_a_second_ctrl_c_is_130_too(run, monkeypatch):
    def twice(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.cli.fitting.fit", twice)
    assert run(f"train --network mlp-16 {TINY}").code == 130


# what there is


def test_list_methods_has_a_line_for_each(run):
    header, *lines = run("list methods").out.splitlines()
    assert header.split() == ["method", "paper", "year", "matches", "who", "teaches"]
    assert [line.split()[0] for line in lines] == list(methods.__all__)
    (line,) = (line for line in lines if line.startswith("rkd"))
    assert line.split("  ")[0] == "rkd"
    assert all(part in line for part in ("Relational Knowledge Distillation", "2019", "relations", "frozen network"))


def test_list_networks_and_data(run):
    networks, data = run("list networks").out, run("list data").out
    assert len(networks.splitlines()) == 1 + len(zoo.names())
    assert all(name in networks for name in zoo.names())
    assert [line.split()[0] for line in data.splitlines()[1:]] == limbeck.data.names()


def test_cite_prints_bibtex(run):
    answer = run("cite at")
    assert answer.out.startswith("@inproceedings{")
    assert "Paying More Attention to Attention" in answer.out
    assert answer.out.count("{") == answer.out.count("}")


def test_layers_prints_both_tables_and_the_pairs(run):
    out = run("layers resnet8 resnet14 --shape [1,8,8] --num-outputs 7").out
    assert "student: resnet8" in out
    assert "teacher: resnet14" in out
    assert "(N, 64, 2, 2)" in out
    assert "(N, 7)" in out
    pairs = out[out.index("pairs that methods use") :]
    assert [line.split()[1::2] for line in pairs.splitlines() if "layer" in line][1:] == [
        [f"layer{n}", f"layer{n}"] for n in (1, 2, 3)
    ]
    assert "teacher" not in run("layers resnet8").out


def test_every_command_has_help(run):
    for command in ("", *COMMANDS):
        for asks in ("--help", "-h"):
            answer = run(f"{command} {asks}")
            assert answer.code == 0
            assert answer.out.startswith(f"usage: limbeck {command}".strip())


def test_the_version_is_that_of_the_package(run):
    assert run("--version").out == f"limbeck {importlib.metadata.version('limbeck')}\n"


def test_all_commands_are_listed_each_with_its_line(run):
    shown = " ".join(run("--help").out.split())
    lines = [f"{word} {about}" for word, about in COMMANDS.items()]
    assert shown.endswith(" ".join(lines))
    for word, about in COMMANDS.items():
        assert about in " ".join(run(f"{word} --help").out.split())


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("", "limbeck COMMAND [options]"),
        ("distill", "limbeck distill METHOD"),
        ("distill kd", "limbeck distill kd --student NAME --teacher NAME [options]"),
        ("distill ban", "limbeck distill ban --student NAME [options]"),
        ("distill kd+at", "limbeck distill kd+at --student NAME --teacher NAME [options]"),
        ("compare", "limbeck compare METHODS... --student NAME [options]"),
        ("list", "limbeck list methods|networks|data|tasks"),
        ("cite", "limbeck cite METHOD"),
    ],
)
def test_the_usage_is_one_short_line(run, command, usage):
    line, empty, *_ = run(f"{command} --help").out.splitlines()
    assert (line, empty) == (f"usage: {usage}", "")


@pytest.mark.parametrize(
    "command", ["", "train", "distill at", "distill kd+rkd", "mimic", "tune", "initialize", "list"]
)
def test_help_has_none_of_the_parsers_own_words(run, command):
    shown = run(f"{command} --help").out
    for words in (
        "type:",
        "null",
        "Union",
        "<class",
        "print_config",
        "default: None",
        "subcommand",
        "[options] ",
        "+ ",
    ):
        assert words not in shown, words
    options = re.findall(r"^  (--\S+)", shown, re.MULTILINE)
    assert not [option for option in options if "_" in option or option.endswith("+")]


def test_defaults_are_told_in_plain_words(run):
    shown = " ".join(run("train --help").out.split())
    for words in (
        "--run-dir RUN-DIR The run's folder; by default one in runs/ that says what was run, and when. --resume Go on",
        "--optimizer {sgd,adam,adamw} Of every player. (default: sgd)",
        "--check {true,false}",
        "false trains nevertheless. (default: true)",
        "--mean [X,X]",
    ):
        assert words in shown, words
    assert "(default: [3,32,32])" in " ".join(run("initialize --help").out.split())


def test_help_has_the_words_of_the_docstrings(run):
    shown = " ".join(run("distill kd --help").out.split())
    for words in (
        "--temperature X",
        "(default: 4.0)",
        "resnet56@teacher.safetensors",
        "Learning rate, above 0; 0.05 as in RepDistiller",
    ):
        assert words in shown


def test_the_program_is_installed():
    program = Path(sys.executable).with_name("limbeck")
    answer = subprocess.run([program, "cite", "kd"], capture_output=True, text=True, check=True)
    assert "Distilling the Knowledge" in answer.stdout


# what the user can mend: the exit code is 2, and standard error names the thing and the remedy


def empty_folder() -> None:
    Path("images/train/cat").mkdir(parents=True)


def empty_parquet() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": [], "label": []}, schema=pa.schema([("image", image), ("label", pa.int64())]))
    Path("rows").mkdir()
    for split in ("train", "test"):
        pq.write_table(table, f"rows/{split}-00000.parquet")


def teacher_of(*shape: int, classes: int = 10) -> Callable[[], str]:
    return lambda: weights(zoo.network("mlp-" + "-".join(map(str, shape)), classes, (1, 8, 8)))


def garbage() -> None:
    Path("weights.safetensors").write_text("nothing of the kind")


def config(text: str) -> Callable[[], object]:
    return lambda: Path("a.yaml").write_text(text)


ABSENT = "cuda" if sys.platform == "darwin" else "mps"
FILE = "--teacher mlp-16@weights.safetensors"
PAIR = "--student resnet8 --teacher resnet8@random"
WRONG: dict[str, tuple[Callable[[], object], str, list[str]]] = {
    # networks and layers
    "unknown network": (list, "train --network resnt8", ["unknown network 'resnt8'", "resnet8"]),
    "unknown layer": (
        list,
        f"distill at {PAIR} --layers [[layr1,layer1]]",
        ["no layer 'layr1'", "'layer1'", "limbeck layers"],
    ),
    "unknown hint": (list, f"distill fitnets {PAIR} --hint layr2", ["no layer 'layr2'", "'layer2'"]),
    "hint larger than guided": (
        list,
        f"distill fitnets {PAIR} --hint layer1 --guided layer3",
        [
            "student's shape (8, 64, 2, 2)",
            "teacher's (8, 16, 8, 8)",
            "choose a guided layer whose map is at least as large",
        ],
    ),
    "a map and a vector": (
        list,
        "distill fitnets --student plane2 --teacher mlp-16@random",
        ["(8, 16, 2, 2)", "(8, 16)", "choose layers of the same kind", "limbeck layers"],
    ),
    "no maps at all": (
        list,
        f"distill at --student mlp-16 {CONTROL}",
        ["feature maps", "'layers.fc2:in'", "(kd, rkd)"],
    ),
    # teachers
    "other classes": (
        teacher_of(16, classes=7),
        f"distill kd --student mlp-8 {FILE}",
        ["trained for 7 classes, the data has 10"],
    ),
    "weights that do not fit": (
        teacher_of(20),
        f"distill kd --student mlp-8 {FILE}",
        [
            "mlp-16: the weights in weights.safetensors do not fit",
            "layers.fc1.weight (file (20, 64), network (16, 64))",
        ],
    ),
    "weights of another network": (
        teacher_of(16, 16),
        f"distill kd --student mlp-8 {FILE}",
        ["do not fit", "not in the network (2): layers.fc3.bias, layers.fc3.weight"],
    ),
    "no weights": (
        list,
        "distill kd --student mlp-8 --teacher mlp-16",
        ["mlp-16@FILE", "limbeck train --network mlp-16", "mlp-16@random"],
    ),
    "no file": (list, f"distill kd --student mlp-8 {FILE}", ["no such file", "weights.safetensors"]),
    "no weights inside": (garbage, f"distill kd --student mlp-8 {FILE}", ["weights.safetensors is a text file"]),
    "no teacher": (list, "distill kd --student mlp-8", ["`limbeck distill kd` needs --teacher\n", "kd --help"]),
    "a teacher too many": (
        list,
        f"distill plain --student mlp-8 {CONTROL}",
        ["`limbeck distill plain` has no option --teacher", "limbeck distill plain --help"],
    ),
    "nothing to evaluate": (list, "eval --network mlp-8", ["the network mlp-8 has no weights", "mlp-8@FILE"]),
    # data
    "unknown data": (list, "train --network mlp-8 --data digts", ["digits", "'digts'"]),
    "no root": (list, "train --network mlp-8 --data cifar10", ["CIFAR10", "--root DIR"]),
    "a wrong root": (list, "train --network mlp-8 --data mnist --root nowhere", ["nowhere", "--root DIR"]),
    "no image": (empty_folder, "train --network resnet8 --data imagefolder --root images", ["imagefolder", "images"]),
    "no row": (
        empty_parquet,
        "train --network resnet8 --data parquet --root rows",
        ["parquet", "at least one sample", "got none"],
    ),
    "more samples than there are": (
        list,
        "train --network mlp-8 --samples 9999",
        ["samples between 1 and the 1294", "got 9999"],
    ),
    # options
    "nothing at all": (list, "", ["`limbeck` needs a COMMAND", "`limbeck --help` shows them"]),
    "no method": (list, "distill", ["needs a METHOD, as `limbeck distill kd`: `limbeck list methods` shows them"]),
    "no method to check": (list, "check", ["`limbeck check` needs a METHOD, as `limbeck check kd`"]),
    "list of what": (list, "list", ["`limbeck list` needs one more word", "methods, networks, data, tasks"]),
    "list of something else": (list, "list teachers", ["`limbeck list` has no 'teachers'", "methods, networks"]),
    "several things missing": (list, "tune kd", ["`limbeck tune` needs --student and --search", "limbeck tune --help"]),
    "a word missing": (list, "table mlp-8@random", ["needs STUDENTS..., as `limbeck table TEACHER@FILE STUDENT@FILE`"]),
    "a word too many": (list, "cite kd at", ["`limbeck cite` takes no further word, got 'at'"]),
    "no value": (list, "train --batch-size 3 --network", ["--network: expected a value after it, --network NAME"]),
    "misspelt command": (list, "distil kd", ["'distil'", "did you mean distill"]),
    "misspelt method": (list, "distill kdd --student mlp-8", ["'kdd'", "did you mean kd?"]),
    "misspelt option": (
        list,
        f"distill kd --student mlp-8 {CONTROL} --temprature 3",
        ["--temprature", "did you mean --temperature", "limbeck distill kd --help"],
    ),
    "misspelt with dashes": (list, "train --network mlp-8 --batchsize=3", ["did you mean --batch-size"]),
    "misspelt in cite": (list, "cite kdd", ["unknown method 'kdd'", "did you mean kd"]),
    "another method's option": (
        list,
        f"distill kd --student mlp-8 {CONTROL} --angle 3",
        ["`limbeck distill kd` has no option --angle", "limbeck distill kd --help"],
    ),
    "no number": (list, "train --network mlp-8 --lr fast", ["--lr: expected a number, got 'fast'", "train --help"]),
    "no number in a sum": (
        list,
        f"distill kd+at {PAIR} --kd.temperature hot",
        ["--kd.temperature: expected a number, got 'hot'"],
    ),
    "no whole number": (
        list,
        "train --network a --batch-size 3.5",
        ["--batch-size: expected a whole number, got '3.5'"],
    ),
    "neither true nor false": (list, "train --network a --resume maybe", ["--resume: expected true or false, got"]),
    "no list": (list, "train --network a --mean 3", ["--mean: expected a list of numbers, as [0.5,0.1], got '3'"]),
    "a list of others": (list, "train --network a --mean [a,b]", ["expected a list of numbers", "got [a, b]"]),
    "a method elsewhere": (
        list,
        "distill --student mlp-8 --teacher X kd",
        ["the method comes first, as `limbeck distill kd --student NAME`", "`limbeck list methods`"],
    ),
    "a method alone": (list, "kd+at --student mlp-8", ["'kd+at': did you mean `limbeck distill kd+at`?"]),
    "methods missing": (
        list,
        "compare --student mlp-8",
        ["needs METHODS..., as `limbeck compare kd at --student NAME"],
    ),
    "a sum's option out of range": (
        list,
        f"distill kd+at {PAIR} --kd.temperature -1",
        ["--kd.temperature must be in (0, 1000], got -1.0"],
    ),
    "an accelerator that is not there": (
        list,
        f"train --network mlp-8 --accelerator {ABSENT}",
        [f"--accelerator {ABSENT}: torch finds none on this machine", "auto"],
    ),
    "a run's folder that is a file": (
        teacher_of(8),
        "train --network mlp-8 --run-dir weights.safetensors",
        ["--run-dir: expected a folder, got the file weights.safetensors: name another, as runs/weights"],
    ),
    "a config of another method": (
        config("distill: {kd: {student: mlp-8, teacher: mlp-16@random}}"),
        "distill at --config a.yaml",
        ["a.yaml is of `limbeck distill kd`, and not of `limbeck distill at`: leave the command out"],
    ),
    "a config of a comparison's seed": (
        config("{method: kd, epochs: 1}"),
        "--config a.yaml",
        ["with 'method'. Comparisons, searches and calls from Python leave such files"],
    ),
    "no pairs": (list, f"distill at {PAIR} --layers [[a]]", ["expected a list of pairs of words, as [[a,b],[a,b]]"]),
    "one of two kinds": (list, "train --network a --size x", ["a whole number or a list of whole numbers, as [1,2]"]),
    "no names": (list, f"initialize {PAIR} --to a.safetensors --blocks [3]", ["as {name: [1,2]}, got [3]"]),
    "a choice that is none": (
        list,
        "train --network mlp-8 --optimizer sdg",
        ["--optimizer: expected one of sgd, adam, adamw, got 'sdg': did you mean sgd?"],
    ),
    "no epoch": (list, "train --network mlp-8 --epochs 0", ["--epochs must be at least 1, got 0"]),
    "a value that makes no sense": (
        list,
        f"distill fitnets {PAIR} --hint-share 2",
        ["--hint-share must be in (0, 1), got 2.0"],
    ),
    "unknown logger": (list, f"train --network mlp-8 {TINY} --logger FooLogger", ["'FooLogger'", "TensorBoardLogger"]),
    "a strategy that is none": (list, f"train --network mlp-8 {TINY} --strategy foo", ["strategy='foo'"]),
    "resume of what": (list, f"train --network mlp-8 {TINY} --resume", ["--resume needs the folder", "--run-dir"]),
    "no config": (list, "--config nowhere.yaml", ["--config: the file nowhere.yaml cannot be read: No such file"]),
    "a config that is no YAML": (config("train: [1"), "--config a.yaml", ["--config: a.yaml is no YAML, line "]),
    "a config without options": (config("words"), "--config a.yaml", ["--config: expected a config.yaml of a run"]),
    "a config of numbers": (config("3: 4"), "--config a.yaml train", ["--config: expected a config.yaml of a run"]),
    "a config of no command": (config("trainn: {}"), "--config=a.yaml", ["'trainn': did you mean train?"]),
    "a config with an option that is none": (
        config("train: {network: a, lrr: 1}"),
        "--config a.yaml",
        ["`limbeck train` has no option 'lrr': did you mean lr?"],
    ),
    "a config with a wrong value": (
        config("train: {network: a, lr: fast}"),
        "--config a.yaml",
        ["--lr: expected a number, got 'fast'", "limbeck train --help"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_user_can_mend(run, case):
    prepare, line, words = WRONG[case]
    prepare()
    answer = run(line)
    assert answer.code == 2, answer.err
    assert answer.out == ""
    assert answer.err.startswith("limbeck: error: ")
    assert "Traceback" not in answer.err
    assert len(answer.err.splitlines()) <= 5
    for word in words:
        assert word in answer.err


def test_a_loss_that_explodes_is_named(run):
    answer = run(f"distill kd --student mlp-16 {CONTROL} {TINY} --lr 1e30 --run-dir run")
    assert answer.code == 2
    assert "is not finite at batch" in answer.err
    assert "'student/" in answer.err
    assert "lower the learning rate" in answer.err
    assert not Path("run/checkpoints").exists()


def test_a_teacher_no_better_than_chance_is_a_warning(run):
    answer = run(f"distill kd --student mlp-16 --teacher mlp-64@random {TINY} --run-dir run")
    assert answer.code == 0
    told = json.loads(Path("run/result.json").read_text())
    assert re.match(
        "limbeck: warning: the teacher (is no better than chance|cannot be told from guessing): ", answer.err
    )
    assert f"accuracy {100 * told['teacher']['accuracy']:.2f} %, where guessing has 10.00 %" in answer.err
    assert "NAME@FILE" in answer.err
    assert "ChanceWarning" in Path("run/train.log").read_text()


def test_an_ensemble_teaches(run):
    names = [f"mlp-{width}" for width in (8, 16)]
    names = [f"{name}@{weights(zoo.network(name, 10, (1, 8, 8)), f'{name}.safetensors')}" for name in names]
    line = f"distill kd --student mlp-8 --teacher [{','.join(names)}] {TINY} --check false --run-dir run"
    answer = run(line)
    assert answer.code == 0, answer.err
    teacher = json.loads(Path("run/result.json").read_text())["teacher"]
    ensemble = limbeck.Ensemble([zoo.network(name, 10, (1, 8, 8)) for name in names], mean="geometric")
    measured = limbeck.evaluate(ensemble, limbeck.data.load("digits", samples=200).val)
    assert teacher["accuracy"] == pytest.approx(measured["accuracy"], abs=1e-6)


def test_a_traceback_on_demand(run, monkeypatch):
    monkeypatch.setenv("LIMBECK_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown network"):
        run("train --network resnt8")
