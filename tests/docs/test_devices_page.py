"""docs/devices.md: its scripts are those of examples/slurm, and run where `srun` starts processes on this machine."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.cli import build
from limbeck.cli.parser import underscored
from limbeck.engine.run import Run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/devices.md").read_text()
SCRIPTS = {path.stem: path.read_text() for path in (ROOT / "examples/slurm").glob("*.sbatch")}
FENCED = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = {
    "--student": "mlp-8",
    "--teacher": "mlp-16@random",
    "--data": "digits",
    "--root": None,
    "--batch-size": "64",
    "--samples": "200",
    "--epochs": "2",
    "--accelerator": "cpu",
    "--check": "false",
}
"""What stands for the same words of a script; with None it is left out."""
SRUN = """#!/bin/bash
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    export SLURM_PROCID=$rank SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE)) SLURM_NODEID=$((rank / SLURM_NTASKS_PER_NODE))
    "$@" &
done
worst=0
for job in $(jobs -p); do wait $job; code=$?; ((code > worst)) && worst=$code; done
exit $worst
"""


def command(script: str) -> list[str]:
    """The words of a script after srun."""
    line = next(line for line in script.replace("\\\n", " ").splitlines() if line.startswith("srun "))
    return shlex.split(line)[1:]


def asked(script: str) -> dict[str, str]:
    """What a script asks of SLURM."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", script, re.MULTILINE))


def shrunk(words: list[str], **changed: str | None) -> list[str]:
    """The same command, of something that takes seconds."""
    small = SMALL | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    kept, follows = list[str](), False
    for word in words:
        if not follows and word not in small:
            kept.append(word)
        follows = word in small
    return [*kept, *(word for name, value in small.items() if value is not None for word in (name, value))]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with `srun` and `scontrol` on the path, where scripts run as SLURM runs them."""
    tools = tmp_path / "tools"
    tools.mkdir()
    programs = {
        "srun": SRUN,
        "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol.txt\n',
        "limbeck": f'#!/bin/bash\nexec {sys.executable} -m limbeck.cli "$@"\n',
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submitted(script: str, words: list[str], nodes: int = 1, tasks: int = 1, job: int = 17) -> subprocess.Popen[str]:
    """A script under way, with another command in it, as sbatch starts it on the first of its nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    says = {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NAME": asked(script)["job-name"],
        "SLURM_NNODES": nodes,
        "SLURM_NTASKS": nodes * tasks,
        "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_PROCID": 0,
        "SLURM_LOCALID": 0,
        "SLURM_NODEID": 0,
        "MASTER_PORT": port,
    }
    text = script.replace("\\\n", " ")
    lines = [f"srun {shlex.join(words)}" if line.startswith("srun ") else line for line in text.splitlines()]
    return subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        env=os.environ | {name: str(value) for name, value in says.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def test_the_page_shows_the_scripts():
    shown = [text for text in FENCED.findall(PAGE) if text.startswith("#!")]
    assert len(SCRIPTS) == 4
    assert sorted(shown) == sorted(SCRIPTS.values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_asks_for_what_its_command_needs(name):
    wanted, words = asked(SCRIPTS[name]), command(SCRIPTS[name])
    for option, of in (("--devices", "ntasks-per-node"), ("--nodes", "nodes")):
        assert (words[words.index(option) + 1] if option in words else "1") == wanted.get(of, "1")
    assert "ntasks" not in wanted or wanted["ntasks"] == "1"
    build(words[1:])[0].parse_args([underscored(word) for word in words[1:]])


def test_two_nodes_of_slurm_train_one_network(cluster):
    """Lightning waits for ever for a second node where it does not see what SLURM says."""
    words = shrunk(command(SCRIPTS["train"]), devices="1", nodes="2")
    ended(submitted(SCRIPTS["train"], words, nodes=2))
    run = Run(cluster / "runs/resnet18")
    assert run.result()["finished"]
    assert (run.folder / "train.log").read_text().count("stage train:") == 1


@pytest.mark.parametrize(("code", "queued"), [(130, "requeue 17\n"), (2, ""), (0, "")])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_job_that_was_stopped_queues_up_again_and_one_that_failed_does_not(name, code, queued, cluster):
    (cluster / "scontrol.txt").touch()
    job = submitted(SCRIPTS[name], ["bash", "-c", f"exit {code}"])
    job.communicate(timeout=60)
    assert job.returncode == code
    assert (cluster / "scontrol.txt").read_text() == queued
