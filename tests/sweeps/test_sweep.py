import errno
import json
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

import engine.sweeps.sweep
import engine.training.checkpoint
import engine.training.loop
import engine.training.memory
from engine.errors import UserError
from engine.runs.records import load_records
from tests.helpers import PROJECT
from tests.helpers.runs import rows_of

HOLD = (
    "import fcntl, sys; place, summary = sys.argv[1:]; "
    "f = open(place + '/.lock', 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
    "print('held', flush=True); sys.stdin.readline(); "
    "summary and open(place + '/summary.json', 'w').write(summary)"
)


def directories(work: Path, group: str = "default") -> dict[int, Path]:
    """Return a group's run directories by batch."""
    found = {}
    for path in (work / "results" / "runs" / group).glob("*/.hydra/config.yaml"):
        found[int(path.parent.parent.name.split("-b")[1].split("-")[0])] = path.parent.parent
    return found


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """Record the batch size of every epoch that is trained."""
    batches: list[int] = []
    train_epoch = engine.training.loop.train_epoch

    def counted(step, *rest):
        batches.append(step.plan.batch)
        return train_epoch(step, *rest)

    monkeypatch.setattr(engine.training.loop, "train_epoch", counted)
    return batches


def test_the_same_command_again_trains_only_missing_runs(small, workplace, command, trained):
    assert command("train.py", "-m", *small, "batch=32,64").status == 0
    del trained[:]
    longer = command("train.py", "-m", *small, "batch=32,64,96", "seed=0")
    assert longer.status == 0 and "3 runs, 2 finished already" in longer.out
    assert longer.out.count("finished  resnet8-") == 2
    assert trained == [96, 96]
    rows = rows_of(workplace / "results" / "default" / "table.csv")
    assert [row["batch"] for row in rows] == ["32", "64", "96"]
    again = command("train.py", "-m", *small, "batch=96,32", "seed=1,0")
    assert again.status == 0 and trained == [96, 96, 96, 96, 32, 32]
    rows = rows_of(workplace / "results" / "default" / "table.csv")
    assert [(row["batch"], row["runs"]) for row in rows] == [("32", "2"), ("64", "1"), ("96", "2")]


def test_a_restarted_run_is_unfinished_until_it_completes_again(
    small, workplace, command, trained, monkeypatch
):
    """An interrupted run with resume=false has no result, and the same command resumes it."""
    sweep = ("-m", *small, "epochs=3", "batch=32,64")
    assert command("train.py", *sweep).status == 0
    train_epoch, stops = engine.training.loop.train_epoch, []

    def stop(*rest):
        stops.append(1)
        if len(stops) == 3:
            raise KeyboardInterrupt
        return train_epoch(*rest)

    monkeypatch.setattr(engine.training.loop, "train_epoch", stop)
    alone = [*small, "epochs=3", "batch=64", "resume=false"]
    assert command("train.py", *alone).status == 130
    assert json.loads((directories(workplace)[64] / "summary.json").read_text())["epochs"] == 3
    (row,) = [r for r in load_records("default") if r.summary["batch"] == 64]
    assert row.status == "interrupted"
    outcome = command("train.py", *alone)
    assert outcome.status == 0 and "resuming  after epoch 2 of 3" in outcome.out
    assert not (directories(workplace)[64] / ".afresh").exists()
    del trained[:]
    assert "resuming" not in command("train.py", *alone).out and trained == [64, 64, 64]


def test_a_run_that_cannot_be_trained_again_fails(small, workplace, command, monkeypatch):
    sweep = ("-m", *small, "epochs=1", "batch=32,64")
    assert command("train.py", *sweep).status == 0
    table = (workplace / "results" / "default" / "table.csv").read_text()

    def refuse(*_):
        raise UserError("micro_batch=64: too much")

    with monkeypatch.context() as patch:
        patch.setattr(engine.training.memory, "check_memory", refuse)
        outcome = command("train.py", *sweep, "resume=false")
    assert outcome.status == 1 and outcome.err.count("micro_batch=64: too much") >= 2
    assert (workplace / "results" / "default" / "table.csv").read_text() == table

    def fail(*_):
        raise RuntimeError("the device fell off")

    with monkeypatch.context() as patch:
        patch.setattr(engine.training.loop, "train_epoch", fail)
        assert command("train.py", *sweep, "resume=false").status == 1
    rows = rows_of(workplace / "results" / "default" / "table.csv")
    assert [row["failed"] for row in rows] == ["1", "1"]


def test_a_closed_output_does_not_make_a_run_fail(small, workplace, command, monkeypatch):
    def leave(*_):
        raise BrokenPipeError

    monkeypatch.setattr(engine.training.loop, "train_epoch", leave)
    assert command("train.py", *small).status == 141
    assert command("train.py", "-m", *small, "batch=32,64").status != 0
    for directory in directories(workplace).values():
        assert json.loads((directory / "summary.json").read_text())["status"] == "interrupted"
        assert not (directory / "error.log").exists()


def test_a_sweep_in_which_runs_raise_diverge_and_fill_the_disk(
    small, workplace, command, trained, monkeypatch
):
    train_epoch, save_checkpoint = (
        engine.training.loop.train_epoch,
        engine.training.checkpoint.save_checkpoint,
    )

    def interfere(step, *rest):
        if step.plan.batch == 16:
            raise RuntimeError("the device\nfell off")
        if step.plan.batch == 48:
            next(step.model.parameters()).data.fill_(float("inf"))
        return train_epoch(step, *rest)

    def fill_the_disk(path, setup, *rest):
        if setup.config.batch == 64:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_checkpoint(path, setup, *rest)

    sweep = ("-m", *small, "batch=16,32,48,64")
    with monkeypatch.context() as patch:
        patch.setattr(engine.training.loop, "train_epoch", interfere)
        patch.setattr(engine.training.checkpoint, "save_checkpoint", fill_the_disk)
        outcome = command("train.py", *sweep)
    assert outcome.status == 1
    place = directories(workplace)
    assert outcome.err.splitlines()[-2:] == [
        f"failed: {(place[16] / 'error.log').relative_to(workplace)}: "
        "RuntimeError: the device fell off",
        f"failed: {(place[64] / 'error.log').relative_to(workplace)}: "
        "OSError: [Errno 28] No space left on device",
    ]
    assert "Traceback" in (place[16] / "error.log").read_text()
    assert "Traceback" not in outcome.err
    table = (workplace / "results" / "default" / "table.md").read_text()
    for row in ("| 16 | 0.03536 | failed (base line) | - |", "| 48 | 0.06124 | 33.3 (nan) |",
                "| 64 | 0.07071 | failed | - |"):  # fmt: skip
        assert row in table
    before = len(trained)
    assert command("train.py", *sweep).status == 0
    # Failed runs are trained again, the diverged one is not.
    assert trained[before:] == [16, 16, 64, 64]
    assert not (place[16] / "error.log").exists()
    assert "failed" not in (workplace / "results" / "default" / "table.md").read_text()


def test_a_run_that_is_refused_before_it_starts_is_failed(small, workplace, command, monkeypatch):
    check_memory = engine.training.memory.check_memory

    def refuse(setup):
        if setup.config.batch == 48:
            raise UserError("micro_batch=1024: needs more memory | than there is")
        check_memory(setup)

    monkeypatch.setattr(engine.training.memory, "check_memory", refuse)
    assert command("train.py", "-m", *small, "batch=32,48").status == 1
    folder = workplace / "results" / "default"
    rows = rows_of(folder / "table.csv")
    assert [(row["batch"], row["failed"], row["missing"]) for row in rows] == [
        ("32", "0", "0"), ("48", "1", "0"),
    ]  # fmt: skip
    page = (folder / "README.md").read_text()
    assert r": failed, UserError: micro_batch=1024: needs more memory \| than there is" in page
    assert "batch=32,48" in page
    monkeypatch.undo()


def test_a_run_killed_between_divergence_and_summary_stays_diverged(
    small, workplace, command, trained
):
    wild = ["optimizer.lr_scaling=none", "optimizer.base_lr=1e30", "scheduler=constant"]
    assert command("train.py", *small, *wild, "epochs=4").status == 0
    (directory,) = directories(workplace).values()
    before = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").unlink()
    del trained[:]
    assert command("train.py", *small, *wild, "epochs=4").status == 0
    after = json.loads((directory / "summary.json").read_text())
    assert trained == [] and after["status"] == "diverged" and after["steps"] == before["steps"]


def test_published_runs_are_not_trained_again(small, workplace, command, trained):
    sweep = ("-m", *small, "batch=32,64", "group=pub")
    assert command("train.py", *sweep).status == 0
    table = (workplace / "results" / "pub" / "table.csv").read_text()
    (workplace / "results" / "runs").rename(workplace / "elsewhere")
    del trained[:]
    again = command("train.py", *sweep)
    assert again.status == 0 and "2 runs, 2 finished already" in again.out
    assert trained == [] and not directories(workplace, "pub")
    assert (workplace / "results" / "pub" / "table.csv").read_text() == table
    alone = command("train.py", *small, "batch=32", "group=pub")
    assert "finished already" in alone.out and "results/pub/runs.jsonl" in alone.out
    assert command("train.py", *small, "batch=32", "group=other").status == 0
    assert trained == [32, 32]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_another_process_trains_is_waited_for(
    small, workplace, command, trained, monkeypatch, interrupted
):
    assert command("train.py", *small, "batch=32", "epochs=1").status == 0
    place = directories(workplace)[32]
    (place / "summary.json").unlink()
    (place / "checkpoint.pt").unlink()
    del trained[:]
    summary = json.dumps({"status": "interrupted"}) if interrupted else ""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, place, summary], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        # The holder releases the lock only once the sweep waits, however slow the machine is.
        waits = types.SimpleNamespace(sleep=lambda seconds: holder.communicate())
        monkeypatch.setattr(engine.sweeps.sweep, "time", waits)
        outcome = command("train.py", "-m", *small, "batch=32,64", "epochs=1")
    assert outcome.status == 0
    assert "waiting   for 1 runs" in outcome.out
    # The other process ended without an outcome, so the sweep took its run over, after its own.
    assert trained == [64, 32]


def test_runs_are_retried_if_a_launcher_loses_its_workers(
    small, workplace, command, trained, monkeypatch
):
    launch_jobs, launched = engine.sweeps.sweep.launch_jobs, []

    def lose_workers(task, jobs, hydra_overrides, ended):
        launched.append([job.config.batch for job in jobs])
        if len(jobs) > 1:
            launch_jobs(task, jobs[:1], hydra_overrides, ended)
            raise RuntimeError("a worker was killed")
        if jobs[0].config.batch != 64:
            launch_jobs(task, jobs, hydra_overrides, ended)

    monkeypatch.setattr(engine.sweeps.sweep, "launch_jobs", lose_workers)
    outcome = command("train.py", "-m", *small, "batch=32,64,96", "epochs=1")
    assert launched == [[32, 64, 96], [64], [96]]
    assert outcome.status == 1 and "launcher: RuntimeError: a worker was killed" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("missing: results/runs/default/resnet8-")
    table = (workplace / "results" / "default" / "table.md").read_text()
    assert "| 64 | - | missing | - |" in table and table.count("missing") == 1


def test_two_sweeps_at_once_share_the_runs_and_the_table(small, workplace, tmp_path):
    overrides = ["-m", *small, "batch=16,32,48,64", "epochs=1"]
    train = PROJECT / "train.py"
    outputs = []

    def sweep():
        made = subprocess.run(
            [sys.executable, train, *overrides], capture_output=True, text=True, cwd=workplace
        )
        outputs.append(made)

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made.returncode for made in outputs] == [0, 0], [made.stderr for made in outputs]
    lines = [line for made in outputs for line in made.stdout.splitlines()]
    # At least one of the sweeps prints the result of each run.
    assert sum(line.startswith("test accuracy") for line in lines) >= 4
    rows = rows_of(workplace / "results" / "default" / "table.csv")
    assert [(row["batch"], row["missing"]) for row in rows] == [
        ("16", "0"), ("32", "0"), ("48", "0"), ("64", "0"),
    ]  # fmt: skip
    for directory in directories(workplace).values():
        assert len((directory / "metrics.jsonl").read_text().splitlines()) == 1
        assert json.loads((directory / "summary.json").read_text())["status"] == "completed"
