"""Runs that a sweep trains in separate processes: output, failures and kills."""

import re
import subprocess
import sys
import types

import pytest

import engine.sweeps.children
import engine.sweeps.sweep
from engine.config.compose import make_jobs
from engine.config.schema import Config
from engine.runs.run import Run
from engine.sweeps.children import train_in_processes
from engine.system.lock import holder, locked
from tests.helpers.runs import rows_of
from tests.helpers.sweeps import EACH_EPOCH, directories, summary_of

TIMED = (
    "train_seconds_mean", "seconds_to_target_mean", "images_per_second_mean", "runs_at_once",
)  # fmt: skip
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1] + '/.lock', 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
    "print('held', flush=True); sys.stdin.readline()"
)


def test_two_at_once_give_the_table_of_one_at_a_time(small, workplace, command):
    sweep = ("-m", *small, "epochs=2", "batch=32,64")
    one = command("train.py", *sweep, "group=one", "parallel=1")
    two = command("train.py", *sweep, "group=two", "parallel=2")
    assert (one.status, two.status) == (0, 0), two.err
    assert "parallel  2 runs at once, 1 thread each\n" in two.out and "parallel" not in one.out
    tables = [rows_of(workplace / "results" / name / "table.csv") for name in ("one", "two")]
    for rows in tables:
        assert len(rows) == 2 and all(row["missing"] == "0" for row in rows)
        for row in rows:
            for key in TIMED:
                del row[key]
    assert tables[0] == tables[1]
    for path in (workplace / "results" / "runs" / "two").iterdir():
        summary = summary_of(path)
        assert "parallel" not in summary["command"] and summary["runs_at_once"] == 2
        # Each line of a run has its name before it.
        assert f"\n{path.name}  run       results/runs/two/{path.name}\n" in two.out
        assert f"\n{path.name}  test accuracy {summary['test_accuracy']:.2f} %" in two.out
        other = summary_of(workplace / "results" / "runs" / "one" / path.name)
        assert other["runs_at_once"] == 1 and other["test_loss"] == summary["test_loss"]
    again = command("train.py", *sweep, "group=two", "parallel=2")
    assert again.status == 0 and "2 runs, 2 finished already" in again.out


def test_lines_are_printed_with_the_runs_name(small, workplace, command, monkeypatch, tmp_path):
    script = tmp_path / "talks.py"
    script.write_text(
        "import sys, time\n"
        "sys.stdout.write('one\\ntwo'); sys.stdout.flush(); time.sleep(0.3)\n"
        "sys.stdout.write(' halves\\n')\n"
        "for part in range(3): sys.stderr.write(f'{part}0 %\\r'); sys.stderr.flush()\n"
        "sys.stderr.write('done\\n')\n"
        "sys.stdout.write('no end'); sys.stdout.flush()\n"
        "sys.exit(130)\n"
    )
    monkeypatch.setattr(engine.sweeps.children, "TRAIN", script)
    outcome = command("train.py", "-m", *small, "batch=32,64", "parallel=2")
    for directory in directories(workplace).values():
        own = [li for li in outcome.out.splitlines() if li.startswith(f"{directory.name}  ")]
        expected = [f"{directory.name}  {text}" for text in ("one", "two halves", "no end")]
        assert own == 2 * expected, "each run is launched twice"
        assert outcome.err.count(f"{directory.name}  done\n") == 2 and " %" not in outcome.err
    assert outcome.status == 1 and "it wrote no summary" in outcome.err


def test_a_killed_run_starts_again_and_the_others_train_on(small, workplace, command, altered):
    altered(
        EACH_EPOCH.format("""
    if batch == 32 and epoch == 3 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    )
    outcome = command("train.py", "-m", *small, "epochs=3", "batch=32,64,96", "parallel=2")
    assert outcome.status == 0, outcome.err
    place = directories(workplace)
    assert outcome.err.count("killed ") == 1
    assert f"killed    {place[32].name}: SIGKILL\n" in outcome.err
    # The checkpoint of epoch 2 may still have been under way.
    assert re.search(f"{place[32].name}  resuming  after epoch [12] of 3\n", outcome.out)
    assert outcome.out.count("  run    ") == 4
    rows = rows_of(workplace / "results" / "default" / "table.csv")
    assert [(row["batch"], row["missing"], row["failed"]) for row in rows] == [
        ("32", "0", "0"), ("64", "0", "0"), ("96", "0", "0"),
    ]  # fmt: skip


def test_failures_beside_a_good_run_are_reported(small, workplace, command, altered):
    altered(
        EACH_EPOCH.format("""
    if batch == 16:
        raise MemoryError
    """)
        + """
import engine.training.memory
from engine.errors import UserError

def refuse(setup):
    if batch == 48:
        raise UserError("micro_batch=1024: needs more memory than there is")

engine.training.memory.check_memory = refuse
if batch == 64:
    raise RuntimeError("the device fell off")
"""
    )
    sweep = ("-m", *small, "epochs=1", "batch=16,32,48,64,96", "parallel=2")
    assert command("train.py", *small, "epochs=1", "batch=96").status == 0
    damaged = directories(workplace)[96]
    (damaged / "summary.json").unlink()
    (damaged / "checkpoint.pt").write_bytes(b"nonsense")
    outcome = command("train.py", *sweep)
    assert outcome.status == 1 and "Traceback" not in outcome.err
    place = directories(workplace)
    memory = "micro_batch=1024: the run does not fit into memory; a smaller micro_batch needs less"
    refused = "micro_batch=1024: needs more memory than there is"
    last = outcome.err.splitlines()[-4:]
    assert last[0].endswith(f"{place[16].name}/error.log: UserError: {memory}")
    assert last[1].endswith(f"{place[48].name}/error.log: UserError: {refused}")
    assert last[2].endswith(f"{place[64].name}/error.log: RuntimeError: the device fell off")
    assert "checkpoint.pt: is truncated, damaged or not a checkpoint" in last[3]
    assert f"failed    {place[48].name}: {refused}; see results/runs/default/" in outcome.err
    for batch, directory in place.items():
        summary = summary_of(directory)
        assert summary["status"] == ("completed" if batch == 32 else "failed")
        assert (directory / "error.log").exists() == (batch != 32)
        assert f"batch={batch}" in summary["command"]
    log = (place[64] / "error.log").read_text()
    assert log.startswith("Traceback") and log.endswith("RuntimeError: the device fell off\n")
    rows = rows_of(workplace / "results" / "default" / "table.csv")
    assert [row["failed"] for row in rows] == ["1", "0", "1", "1", "1"]


@pytest.mark.parametrize("unseen", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_a_run_that_another_process_trains_is_waited_for(
    small, workplace, command, monkeypatch, unseen
):
    assert command("train.py", *small, "batch=32", "epochs=1").status == 0
    place = directories(workplace)[32]
    (place / "summary.json").unlink()
    (place / "checkpoint.pt").unlink()
    if unseen:
        # The other process begins between the sweep's look and the child's.
        monkeypatch.setattr(engine.sweeps.children, "holder", lambda directory: None)
        monkeypatch.setattr(engine.sweeps.sweep, "LAUNCHES", 2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        held = [None] if unseen else []

        def first_unseen(directory):
            return held.pop() if held and directory.name == place.name else holder(directory)

        monkeypatch.setattr(engine.sweeps.sweep, "holder", first_unseen)
        waits = types.SimpleNamespace(sleep=lambda seconds: other.communicate())
        monkeypatch.setattr(engine.sweeps.sweep, "time", waits)
        sweep = ("-m", *small, "batch=32,64", "epochs=1", "parallel=2")
        outcome = command("train.py", *sweep)
    assert outcome.status == 0, outcome.err
    assert "waiting   for 1 runs that other processes train" in outcome.out
    assert ("is being trained by" in outcome.err) == unseen
    assert not list(workplace.rglob("error.log")) and "failed" not in outcome.err
    assert all(summary_of(d)["status"] == "completed" for d in directories(workplace).values())


def test_a_run_that_is_finished_or_held_meanwhile_is_not_started(
    small, workplace, command, capsys, monkeypatch
):
    monkeypatch.setattr(engine.sweeps.children, "Child", None)
    assert command("train.py", *small, "epochs=1").status == 0
    (job,) = make_jobs("train", Config, [[*small, "epochs=1"]])
    run = Run(job.config)
    train_in_processes([(run, job)], 1)
    assert capsys.readouterr().out.startswith(f"finished  {run.name}: test accuracy ")
    (run.directory / "summary.json").unlink()
    with locked(run.directory):
        train_in_processes([(run, job)], 1)
    assert capsys.readouterr().err.startswith(f"waiting   run {run.directory}: is being trained by")
    assert not (run.directory / "summary.json").exists()
