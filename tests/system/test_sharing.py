"""What counts as another process that takes CPU from a run."""

import json
import os
import subprocess
import sys

import pytest
import torch

import engine.runs.run
import engine.system.sharing
from engine.system.resources import parent_of, runs_at_once
from engine.system.runtime import Runtime
from engine.system.sharing import Neighbors, combine, cpu_share, lacked_cpu, of_this_sweep
from engine.training.metrics import PartialEpoch
from tests.helpers import PROJECT
from tests.helpers.runs import only_run
from tests.helpers.training import make_plain, trained

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Holds the lock of a run until it is killed.
HOLD = """
import sys, time
from pathlib import Path
from engine.system.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cpus(monkeypatch):
    """Let the machine have four CPUs, and one run at once."""
    monkeypatch.setattr(engine.system.sharing, "available_cpus", lambda: 4)
    monkeypatch.delenv("LARS_BENCH_RUNS_AT_ONCE", raising=False)


@pytest.fixture
def neighbor(tmp_path):
    """Return the runs folder of a process that this one started, and which trains a run."""
    run = tmp_path / "runs" / "group" / "run"
    run.mkdir(parents=True)
    (tmp_path / "runs" / "group" / "other").mkdir()
    (tmp_path / "runs" / "group" / "other" / ".lock").touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield tmp_path / "runs", process
        process.kill()


def test_runs_at_once_are_what_the_sweep_says(monkeypatch):
    monkeypatch.delenv("LARS_BENCH_RUNS_AT_ONCE", raising=False)
    assert runs_at_once() == 1
    monkeypatch.setenv("LARS_BENCH_RUNS_AT_ONCE", "3")
    assert runs_at_once() == 3


@pytest.mark.parametrize(
    ("threads", "at_once", "expected"),
    # A run cannot use more than the machine has, nor more than its share next to other runs.
    [(1, "1", 3.0), (2, "1", 1.5), (4, "1", 0.75), (8, "1", 0.75), (2, "2", 1.5), (2, "4", 3.0)],
)
def test_the_cpu_share_is_of_what_the_run_can_use(cpus, monkeypatch, threads, at_once, expected):
    monkeypatch.setenv("LARS_BENCH_RUNS_AT_ONCE", at_once)
    assert cpu_share(threads, 30.0, 10.0) == expected


def test_a_run_lacked_cpu_if_its_share_is_below_that_of_a_run_left_alone(cpus, monkeypatch):
    monkeypatch.setattr(engine.system.sharing, "LEAST_CPU_SHARE", 0.75)
    alone = Runtime(CPU, "fp32", threads=2)
    assert lacked_cpu(alone, 14.9, 10.0) and not lacked_cpu(alone, 15.1, 10.0)
    assert lacked_cpu(alone, 1.0, 1.0) and not lacked_cpu(alone, 0.5, 0.9), "too short to judge"
    for other in (Runtime(CUDA, "fp32", threads=2), Runtime(CPU, "fp32", threads=2, world_size=2)):
        assert not lacked_cpu(other, 1.0, 10.0)


def test_many_threads_are_idle_more_often(cpus, monkeypatch):
    monkeypatch.setattr(engine.system.sharing, "LEAST_CPU_SHARE", 0.9)
    two, four = Runtime(CPU, "fp32", threads=2), Runtime(CPU, "fp32", threads=4)
    assert lacked_cpu(two, 17.9, 10.0) and not lacked_cpu(two, 18.1, 10.0)
    assert lacked_cpu(four, 19.9, 10.0) and not lacked_cpu(four, 20.1, 10.0)


def test_a_run_is_shared_if_an_epoch_is_and_unknown_if_one_is_not_known():
    assert combine([False, True, None]) is True
    assert combine([False, None]) is None and combine([]) is None
    assert combine([False, False]) is False


def test_a_process_that_trains_another_run_is_a_neighbor(neighbor, monkeypatch):
    runs, process = neighbor
    monkeypatch.delenv("LARS_BENCH_RUNS_AT_ONCE", raising=False)
    assert parent_of(process.pid) == os.getpid()
    assert Neighbors(runs).seen()
    process.kill()
    process.wait()
    assert parent_of(process.pid) is None
    assert not Neighbors(runs).seen()


def test_the_workers_of_one_sweep_are_no_neighbors(neighbor, monkeypatch):
    runs, _ = neighbor
    monkeypatch.setenv("LARS_BENCH_RUNS_AT_ONCE", "2")
    assert Neighbors(runs).seen(), "a child is no worker of the same sweep"
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert not Neighbors(runs).seen(), "it has the same parent"
    # So have two commands of one shell, each of which trains one run at once.
    monkeypatch.setenv("LARS_BENCH_RUNS_AT_ONCE", "1")
    assert Neighbors(runs).seen()
    monkeypatch.delenv("LARS_BENCH_RUNS_AT_ONCE")
    assert Neighbors(runs).seen()


def test_this_process_is_no_neighbor(neighbor, monkeypatch):
    runs, process = neighbor
    assert of_this_sweep(os.getpid())
    monkeypatch.setattr(os, "getpid", lambda: process.pid)
    assert not Neighbors(runs).seen()


def test_locks_are_read_at_most_every_ten_seconds(tmp_path, monkeypatch):
    now, looks = [100.0], []
    monkeypatch.setattr(engine.system.sharing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(engine.system.sharing, "holders_here", lambda runs: looks.append(1) or [1])
    neighbors = Neighbors(tmp_path)
    seen = []
    for now[0] in (100.0, 105.0, 109.9, 110.0, 111.0, 120.0):
        seen.append(neighbors.seen())
    assert seen == [True, False, False, True, False, True] and len(looks) == 3


def test_an_epoch_is_shared_if_a_part_of_it_was(monkeypatch):
    def verdict(begun, others=False, lacked=False):
        monkeypatch.setattr(engine.training.loop, "lacked_cpu", lambda *_: lacked)
        part = None
        if begun != "new":
            part = PartialEpoch.of_no_steps(3, CPU)
            part.shared_machine = begun
        return trained(make_plain(), begun=part, others=lambda: others)[1].shared_machine

    assert verdict("new") is False and verdict(False) is False and verdict(None) is None
    assert verdict(True) is True
    for begun in ("new", False, None):
        assert verdict(begun, others=True) is True and verdict(begun, lacked=True) is True


def test_the_cpu_time_of_the_steps_alone_is_judged(monkeypatch):
    seen = []
    monkeypatch.setattr(engine.training.loop, "lacked_cpu", lambda *given: seen.append(given))
    cpu, wall = iter([5.0, 12.0]), iter([100.0, 110.0])
    monkeypatch.setattr(engine.training.loop.time, "process_time", lambda: next(cpu))
    monkeypatch.setattr(Runtime, "wall_clock", lambda self: next(wall))
    begun = PartialEpoch.of_no_steps(3, CPU)
    begun.seconds = 40.0
    _, outcome = trained(make_plain(), begun=begun)
    ((runtime, *given),) = seen
    assert given == [7.0, 10.0] and runtime.threads == 1 and outcome.seconds == 50.0


def test_a_run_keeps_the_verdict_of_its_epochs(small, workplace, command, monkeypatch):
    looks = iter([[], [1], []])
    monkeypatch.setattr(engine.system.sharing, "holders_here", lambda runs: next(looks))
    monkeypatch.setattr(engine.system.sharing, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(engine.training.loop, "lacked_cpu", lambda *_: False)
    record_epoch = engine.runs.run.Run.record_epoch

    def stop(self, row, outcome):
        record_epoch(self, row, outcome)
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    run = [*small, "epochs=3"]
    with monkeypatch.context() as patch:
        patch.setattr(engine.runs.run.Run, "record_epoch", stop)
        assert command("train.py", *run).status == 130
    looks = iter([[]])
    assert command("train.py", *run).status == 0
    directory = only_run(workplace)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["shared_machine"] for row in rows] == [False, True, False]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["shared_machine"] is True and summary["runs_at_once"] == 1


def test_an_epoch_asks_for_others_once():
    asked = []
    trained(make_plain(), others=lambda: bool(asked.append(1)))
    assert asked == [1]
