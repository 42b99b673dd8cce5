"""One comparison made by several processes: every run once, the same table, whoever dies on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import limbeck
from conftest import undrawn
from limbeck.cli import jobs, main
from limbeck.core.files import hold
from limbeck.engine import fit as engine
from limbeck.engine.learner import Learner
from limbeck.report.table import records
from limbeck.verbs import compare as comparison
from limbeck.verbs import runs
from limbeck.verbs.compare import compare

DATA = limbeck.data.load("digits", labels=100, batch_size=128)
RUNS = 4  # plain and kd, two seeds each


def network(name):
    return limbeck.zoo.network(name, DATA.num_classes, DATA.shape)


def run(run_dir=None, **changed):
    torch.manual_seed(0)
    teacher = network("mlp-32")
    settings = {"epochs": 2, "seeds": 2, "progress": False, "accelerator": "cpu"} | changed
    return compare(["kd"], partial(network, "mlp-16"), teacher, DATA, run_dir=run_dir, **settings)


@pytest.fixture(scope="module")
def alone():
    return [candidate.values for candidate in run().candidates]


def other_process(folder, file):
    """Make the same comparison, but wait for a certain file in the second epoch of the first run."""
    original, fit = Learner.on_train_batch_end, runs.fit
    took = []

    def pause(self, *args):
        if self.step == len(DATA.train) + 3:
            until((folder / file).exists)
        original(self, *args)

    Learner.on_train_batch_end, engine.run_report = pause, undrawn
    runs.fit = lambda *args, **options: (took.append(options["run_dir"]), fit(*args, **options))[1]
    found = run(folder)
    (folder / "other.txt").write_text(" ".join(str(path.relative_to(folder)) for path in took))
    (folder / "other.json").write_text(json.dumps(records(found.candidates)))


@pytest.fixture
def other(tmp_path, request, processes):
    """Another process at the same comparison, in the second epoch of its first run until there is a certain file."""
    process = processes.Process(target=other_process, args=(tmp_path, request.param))
    process.start()
    until(lambda: (tmp_path / "plain/seed-0/checkpoints/last.ckpt").exists() or not process.is_alive())
    assert process.is_alive()
    yield process
    process.kill()


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def sessions(folder):
    """How often each run was begun or gone on with."""
    logs = {path.parent: path.read_text() for path in sorted(folder.glob("*/*/train.log"))}
    return [text.count("stage train:") for text in logs.values()]


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
@pytest.mark.parametrize("other", ["kd/seed-0/result.json"], indirect=True)
def test_two_processes_make_every_run_once_and_both_return_the_table_of_one(other, tmp_path, alone):
    found = run(tmp_path)
    assert [candidate.values for candidate in found.candidates] == alone
    other.join(60)
    assert other.exitcode == 0
    assert sessions(tmp_path) == [1] * RUNS
    took = (tmp_path / "other.txt").read_text().split()
    assert took[0] == "plain/seed-0"
    assert len(took) < RUNS
    assert [tuple(row["values"]) for row in json.loads((tmp_path / "other.json").read_text())] == alone


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
@pytest.mark.parametrize("other", ["never"], indirect=True)
def test_the_run_of_a_killed_process_is_gone_on_with_by_the_others(other, tmp_path, alone, monkeypatch):
    waited = []

    def kill(seconds):  # this process has made all the other runs by now, and waits for that one
        waited.append(seconds)
        other.kill()
        other.join()
        assert other.exitcode == -signal.SIGKILL

    monkeypatch.setattr(comparison, "time", SimpleNamespace(sleep=kill))
    found = run(tmp_path)
    assert len(waited) == 1
    assert [candidate.values for candidate in found.candidates] == alone
    assert sessions(tmp_path) == [1, 1, 2, 1]  # kd, kd; plain with seed 0 was gone on with
    with (tmp_path / "table.csv").open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [
            row["mean"] for row in records(found.candidates)
        ]


def array_task(folder, script):
    """What a task of a job array runs, whose processes know nothing of each other."""
    Learner.on_train_batch_end = script(Learner.on_train_batch_end)
    engine.run_report = undrawn
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
    os.environ |= {"SLURM_JOB_NAME": "compare", "SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "1"}
    found = run(folder)
    (folder / "task.json").write_text(json.dumps(records(found.candidates)))


def killed_in_its_second_epoch(original):
    def kill(self, *args):
        if self.step == len(DATA.train) + 3:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, *args)

    return kill


def undisturbed(original):
    return original


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
def test_tasks_of_a_slurm_array_of_which_one_is_killed_make_the_table_of_one(tmp_path, alone, processes):
    dies, stays = (
        processes.Process(target=array_task, args=(tmp_path, script), daemon=True)
        for script in (killed_in_its_second_epoch, undisturbed)
    )
    dies.start()
    until(lambda: (tmp_path / "plain/seed-0/train.log").exists() or not dies.is_alive())
    stays.start()
    found = run(tmp_path)
    for process in (dies, stays):
        process.join(60)
    assert (dies.exitcode, stays.exitcode) == (-signal.SIGKILL, 0)
    assert [candidate.values for candidate in found.candidates] == alone
    assert [tuple(row["values"]) for row in json.loads((tmp_path / "task.json").read_text())] == alone
    assert sorted(sessions(tmp_path)) == [1, 1, 1, 2]
    assert (tmp_path / "report.html").exists()


def test_runs_on_several_devices_each_are_made_by_one_process_at_a_time(tmp_path):
    with hold(tmp_path / ".lock"), pytest.raises(ValueError, match="another process makes the comparison"):
        run(tmp_path, devices=2)


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    with hold(tmp_path / "a/lock") as first:
        assert first
        with hold(tmp_path / "a/lock") as second:
            assert not second
    with hold(tmp_path / "a/lock", wait=True) as third:
        assert third


# the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")
def test_the_command_gives_the_same_table_in_two_processes(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    words = "compare kd --student mlp-8 --teacher mlp-16@random --samples 200 --epochs 1"
    words += " --seeds 2 --decide --most 3 --run-dir"
    assert main([*words.split(), "two", "--jobs", "2"]) == 0
    assert "kd" in capfd.readouterr().out
    assert main([*words.split(), "one"]) == 0
    one, two = (json.loads(Path(name, "results.json").read_text())["rows"] for name in ("one", "two"))
    assert [row["values"] for row in one] == [row["values"] for row in two]


@pytest.mark.parametrize("options", [["--jobs", "0"], ["--jobs", "2", "--devices", "2"]])
def test_jobs_that_cannot_be_are_refused(options, capsys):
    assert main(["compare", "kd", "--student", "mlp-8", "--teacher", "mlp-16@random", *options]) == 2
    assert "at least 1 job, each with one device" in capsys.readouterr().err


STOPS = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
print(flush=True)
time.sleep(60)
"""


def started(monkeypatch, *programs):
    """Let jobs be these programs; return the processes, filled as they start."""
    processes, waiting = [], iter(programs)

    def start(command, words, environment):
        process = subprocess.Popen([sys.executable, "-c", next(waiting)], stdout=subprocess.PIPE, stderr=words)
        process.stdout.readline()
        processes.append(process)
        return process

    monkeypatch.setattr(jobs, "_start", start)
    return processes


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "import sys; print('no teacher', file=sys.stderr); sys.exit(2)",
            "process 2 of 3 ended with exit code 2\nno te",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "process 2 of 3 was killed by SIGKILL"),
    ],
)
def test_where_a_process_fails_the_others_stop_and_the_command_says_so(monkeypatch, capfd, program, said):
    processes = started(monkeypatch, STOPS, program, STOPS)
    assert jobs.side_by_side({}, {}, 3) == 2
    assert said in capfd.readouterr().err
    assert [process.returncode for process in processes][::2] == [130, 130]


def test_ctrl_c_reaches_every_process_once(monkeypatch):
    again = "(signal.signal(signal.SIGINT, lambda *_: sys.exit(3)), time.sleep(0.5), sys.exit(130))"
    twice = STOPS.replace("sys.exit(130)", again)
    processes = started(monkeypatch, twice, twice)
    presses = iter([lambda: os.kill(os.getpid(), signal.SIGINT)])
    sleep = time.sleep

    def press(seconds):
        next(presses, lambda: sleep(seconds))()

    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=press))
    assert jobs.side_by_side({}, {}, 2) == 130
    assert [process.returncode for process in processes] == [130, 130]


def parent(folder):
    """The process that starts two others, for a comparison without end."""
    os.dup2(os.open(folder / "said.txt", os.O_CREAT | os.O_WRONLY), 2)
    words = (
        "compare kd --student mlp-8 --teacher mlp-16@random --labels 100 --epochs 100000 --seeds 1 --jobs 2 --run-dir"
    )
    main([*words.split(), str(folder / "runs")])


def is_held(lock):
    with hold(lock) as mine:
        return not mine


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_processes_end_with_the_one_that_started_them(tmp_path, processes, number):
    starting = processes.Process(target=parent, args=(tmp_path,))
    starting.start()
    logs = [tmp_path / f"runs/{name}/seed-0/train.log" for name in ("plain", "kd")]
    until(lambda: all(map(Path.exists, logs)) or not starting.is_alive())
    assert starting.is_alive(), (tmp_path / "said.txt").read_text()
    assert all(is_held(log.with_name(".lock")) for log in logs)
    os.kill(starting.pid, number)
    starting.join(10)
    until(lambda: not any(is_held(log.with_name(".lock")) for log in logs), seconds=jobs.GRACE / 2)
    assert all("stopped by the user" in log.read_text() for log in logs)  # with a checkpoint


def test_processes_have_gpus_in_turn_and_their_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    given = [jobs._environment(index, 4) for index in range(4)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in given] == ["3", "5", "3", "5"]
    assert {environment["OMP_NUM_THREADS"] for environment in given} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given = jobs._environment(0, 4)
    assert (given["OMP_NUM_THREADS"], given["CUDA_VISIBLE_DEVICES"]) == ("7", "")
