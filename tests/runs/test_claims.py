"""The threads of a run: decided once, and kept by whatever resumes it."""

import json

import pytest

import engine.runs.run
import engine.sweeps.parallel
import engine.sweeps.sweep
import engine.system.runtime
import engine.training.loop
from engine.runs.claims import (
    claimed_threads,
    plan_threads,
    with_claimed_threads,
    write_threads,
)
from engine.system.resources import RUNS_AT_ONCE
from tests.helpers.runs import config, only_run


@pytest.fixture
def cpus(monkeypatch):
    """Set the number of available CPUs."""

    def become(number):
        for module in (engine.system.runtime, engine.sweeps.parallel):
            monkeypatch.setattr(module, "available_cpus", lambda: number)

    return become


@pytest.fixture
def stop(monkeypatch):
    """Interrupt the next run after an epoch."""
    train_epoch = engine.training.loop.train_epoch

    def arm():
        trained = []

        def once(*rest):
            trained.append(1)
            if len(trained) == 2:
                monkeypatch.setattr(engine.training.loop, "train_epoch", train_epoch)
                raise KeyboardInterrupt
            return train_epoch(*rest)

        monkeypatch.setattr(engine.training.loop, "train_epoch", once)

    return arm


def threads_of(work):
    return json.loads((only_run(work) / "summary.json").read_text())["threads"]


@pytest.fixture
def free(small):
    """The overrides of a small run that gives no threads."""
    return [override for override in small if not override.startswith("threads=")]


def test_a_claim_is_kept_by_a_run_alone_and_by_fewer_runs(
    free, workplace, command, cpus, stop, monkeypatch
):
    cpus(6)
    with monkeypatch.context() as patch:
        # The sweep is killed before it trains anything.
        patch.setattr(engine.sweeps.sweep, "train_in_processes", lambda *rest: None)
        assert command("train.py", "-m", *free, "seed=0,1", "parallel=2").status == 1
    for path in (workplace / "results" / "runs" / "default").iterdir():
        assert json.loads((path / ".hydra" / "claim.json").read_text()) == {"threads": 3}
        if "-s1-" in path.name:
            path.rename(workplace / "aside")
    directory = only_run(workplace)
    stop()
    assert command("train.py", *free).status == 130 and threads_of(workplace) == 3
    # By a sweep of one run, in this process, on a machine that has grown.
    cpus(2)
    stop()
    for arguments in (["-m", "parallel=1", "epochs=2"], ["-m"], []):
        outcome = command("train.py", *free, *arguments)
        assert outcome.status in (0, 130) and threads_of(workplace) == 3, arguments
    assert claimed_threads(directory) == 3
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "completed" and "threads" not in summary["command"]
    # From scratch the run has what the machine gives, and so have its resumes.
    stop()
    cpus(1)
    assert command("train.py", *free, "resume=false").status == 130
    cpus(4)
    assert command("train.py", *free).status == 0 and threads_of(workplace) == 1


def test_given_threads_win_and_a_run_of_an_earlier_version_has_no_claim(
    free, workplace, command, cpus, stop
):
    cpus(1)
    stop()
    assert command("train.py", *free).status == 130
    claim = only_run(workplace) / ".hydra" / "claim.json"
    for damage in ("", "[]", '{"threads": 0}', '{"threads": "2"}', '{"threads": true}'):
        claim.write_text(damage)
        assert claimed_threads(only_run(workplace)) is None
    claim.unlink()
    cpus(2)
    # Its threads were the available CPUs, and a sweep leaves it at that.
    assert command("train.py", "-m", *free).status == 0 and threads_of(workplace) == 2
    assert claimed_threads(only_run(workplace)) == 2
    assert command("train.py", *free, "resume=false", "threads=1").status == 0
    assert threads_of(workplace) == 1


def test_only_a_run_that_has_not_begun_is_decided_anew(tmp_path, monkeypatch):
    (tmp_path / ".hydra").mkdir()
    run = config("data=synthetic")
    plan_threads(run, tmp_path, 4, replaces=False)
    assert claimed_threads(tmp_path) == 4
    plan_threads(run, tmp_path, 2, replaces=False)
    assert claimed_threads(tmp_path) == 4
    plan_threads(run, tmp_path, 2, replaces=True)
    assert claimed_threads(tmp_path) == 2
    plan_threads(run, tmp_path, None, replaces=True)
    assert claimed_threads(tmp_path) is None
    write_threads(tmp_path, 3)
    plan_threads(config("data=synthetic", "resume=false"), tmp_path, 5, replaces=False)
    assert claimed_threads(tmp_path) == 5
    (tmp_path / "checkpoint.prev.pt").touch()
    plan_threads(run, tmp_path, 1, replaces=True)
    assert claimed_threads(tmp_path) == 5
    plan_threads(config("data=synthetic", "resume=false"), tmp_path, 6, replaces=True)
    assert claimed_threads(tmp_path) == 6
    # resume=false has restarted it and saved: the same command resumes it.
    (tmp_path / ".afresh").touch()
    plan_threads(config("data=synthetic", "resume=false"), tmp_path, 7, replaces=True)
    assert claimed_threads(tmp_path) == 6
    (tmp_path / "checkpoint.prev.pt").unlink()
    monkeypatch.setattr(engine.runs.claims, "holder", lambda directory: "process 1 on elsewhere")
    plan_threads(run, tmp_path, 8, replaces=True)
    assert claimed_threads(tmp_path) == 6


def test_from_scratch_only_a_sweeps_run_takes_the_claim(tmp_path, monkeypatch):
    (tmp_path / ".hydra").mkdir()
    write_threads(tmp_path, 3)
    restarted = config("data=synthetic", "resume=false")
    assert with_claimed_threads(restarted, tmp_path).threads is None
    assert with_claimed_threads(config("data=synthetic"), tmp_path).threads == 3
    assert with_claimed_threads(config("data=synthetic", "threads=5"), tmp_path).threads == 5
    monkeypatch.setenv(RUNS_AT_ONCE, "2")
    assert with_claimed_threads(restarted, tmp_path).threads == 3
    # What was stopped after resume=false is resumed.
    monkeypatch.delenv(RUNS_AT_ONCE)
    (tmp_path / ".afresh").touch()
    assert with_claimed_threads(restarted, tmp_path).threads == 3
