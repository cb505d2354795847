"""Runs that a sweep trains in separate processes: output, failures, kills and signals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

import engine.sweeps.children
import engine.sweeps.sweep
from engine.config.compose import make_jobs
from engine.config.schema import Config
from engine.runs.run import Run
from engine.sweeps.children import train_in_processes
from engine.system.lock import holder, locked
from tests.helpers import PROJECT
from tests.helpers.runs import STATE, assert_same, rows_of, state_of

TIMED = (
    "train_seconds_mean", "seconds_to_target_mean", "images_per_second_mean", "runs_at_once",
)  # fmt: skip
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1] + '/.lock', 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
    "print('held', flush=True); sys.stdin.readline()"
)
# Code that the processes run before train.py's own; `batch` is the run's.
EACH_EPOCH = """
import os, signal, time
import engine.training.loop
train_epoch = engine.training.loop.train_epoch
batch = int(next(a for a in sys.argv if a.startswith("batch="))[6:])

def changed(step, scheduler, draws, title, *rest):
    epoch = int(title.split()[1].split("/")[0])
    {}
    return train_epoch(step, scheduler, draws, title, *rest)

engine.training.loop.train_epoch = changed
"""


@pytest.fixture
def altered(monkeypatch, tmp_path):
    """Make the sweep's processes run some code first."""

    def alter(code):
        script = tmp_path / "altered.py"
        script.write_text(
            f"import sys\nsys.path.insert(0, {str(PROJECT)!r})\n{code}\n"
            "import train\nfrom engine.cli import exit_status\nsys.exit(exit_status(train.main))\n"
        )
        monkeypatch.setattr(engine.sweeps.children, "TRAIN", script)

    return alter


def directories(work, group="default"):
    """Return a group's run directories by batch."""
    found = {}
    for path in (work / "results" / "runs" / group).glob("*/.hydra"):
        found[int(path.parent.name.split("-b")[1].split("-")[0])] = path.parent
    return found


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def assert_same_run(left, right):
    (state, rows), (other_state, other_rows) = state_of(left), state_of(right)
    for key in STATE:
        assert_same(state[key], other_state[key])
    assert rows == other_rows


def when(condition, act):
    """Call `act` in another thread once the condition holds."""

    def watch():
        until = time.monotonic() + 120
        while time.monotonic() < until and not condition():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


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


def began(work, *batches):
    """Return True if the runs have each recorded an epoch."""
    found = directories(work)
    files = [found[b] / "metrics.jsonl" for b in batches if b in found]
    return len(files) == len(batches) and all(f.exists() and f.stat().st_size for f in files)


def stop_sweep(workplace, command, altered, sweep, number):
    """Send a signal to a sweep once two of its runs have recorded an epoch."""
    altered(EACH_EPOCH.format("time.sleep(0.2 * (not os.path.exists('quick')))"))
    watch = when(lambda: began(workplace, 32, 64), lambda: os.kill(os.getpid(), number))
    outcome = command("train.py", *sweep, "parallel=2")
    watch.join()
    (workplace / "quick").touch()
    return outcome


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.stress),
    ],
)
def test_a_signal_lets_each_run_save_and_starts_no_other(
    small, workplace, command, altered, number, status
):
    sweep = ("-m", *small, "epochs=20", "batch=32,64,96")
    outcome = stop_sweep(workplace, command, altered, sweep, number)
    assert outcome.status == status, outcome.err
    assert outcome.err.endswith("interrupted; run the same command again to resume from the last "
                                "checkpoint\n")  # fmt: skip
    assert outcome.err.count("interrupted") == 1
    assert outcome.err.count(f"{number.name}: saving, then stopping") == 2
    place = directories(workplace)
    for batch in (32, 64):
        assert summary_of(place[batch])["status"] == "interrupted"
        assert (place[batch] / "checkpoint.pt").exists() and not holder(place[batch])
    assert not (place[96] / "summary.json").exists()
    table = (workplace / "results" / "default" / "table.md").read_text()
    # Neither an interrupted run nor one that never started has a result.
    assert table.count("missing") == 3, table


@pytest.mark.stress
def test_an_interrupted_sweep_resumes_one_at_a_time_with_the_same_bits(
    small, workplace, command, altered
):
    free = [override for override in small if not override.startswith("threads=")]
    sweep = ("-m", *free, "epochs=12", "batch=32,64,96", "deterministic=true")
    assert stop_sweep(workplace, command, altered, sweep, signal.SIGINT).status == 130
    # What is left trains on here, with the threads that the runs have begun with.
    again = command("train.py", *sweep, "parallel=1")
    assert again.status == 0 and again.out.count("resuming  after epoch") == 2
    assert command("train.py", *sweep, "group=alone", "parallel=2").status == 0
    for batch, directory in directories(workplace, "alone").items():
        if batch != 96:
            assert_same_run(directories(workplace)[batch], directory)


def test_a_second_signal_stops_the_runs_at_once(small, workplace, command, altered):
    altered(
        EACH_EPOCH.format("""
    if epoch == 2:
        open(f"hangs-{batch}", "w").close()
        time.sleep(300)
    """)
    )

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGTERM)

    hang = [workplace / "hangs-32", workplace / "hangs-64"]
    watch = when(lambda: all(path.exists() for path in hang), twice)
    started = time.monotonic()
    outcome = command("train.py", "-m", *small, "epochs=3", "batch=32,64", "parallel=2")
    watch.join()
    assert outcome.status == 143 and time.monotonic() - started < 200
    assert outcome.err.count("SIGTERM\n") == 2 and outcome.err.count("killed    ") == 2


@pytest.mark.stress
def test_a_closed_output_stops_the_runs(small, workplace):
    sweep = [sys.executable, str(PROJECT / "train.py"), "-m", *small, "epochs=200", "seed=0,1"]
    with subprocess.Popen(
        [*sweep, "parallel=2"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as sweeping:
        assert sweeping.stdout is not None
        while b"  run  " not in sweeping.stdout.readline():
            pass
        sweeping.stdout.close()
        assert sweeping.wait(120) == 141
    for path in (workplace / "results" / "runs" / "default").iterdir():
        assert not holder(path) and not (path / "error.log").exists()


@pytest.mark.stress
def test_a_sweep_is_killed_and_started_again_until_it_is_whole(small, workplace):
    """The parent is killed; its runs end or finish, and the same command completes the table."""
    sweep = [sys.executable, str(PROJECT / "train.py"), "-m", *small, "epochs=6", "parallel=2"]
    sweep += ["batch=16,32,48,64,96", "deterministic=true"]
    status, kills = None, 0
    while status != 0:
        with open(workplace / "output.txt", "a") as out:
            process = subprocess.Popen(sweep, stdout=out, stderr=out)
        try:
            status = process.wait(10 + 5 * kills)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills, "the sweep must be long enough to be killed"
    rows = rows_of(workplace / "results" / "default" / "table.csv")
    assert len(rows) == 5 and all(row["missing"] == row["failed"] == "0" for row in rows)
    for directory in directories(workplace).values():
        assert len((directory / "metrics.jsonl").read_text().splitlines()) == 6
        alone = [*small, "epochs=6", "deterministic=true", "group=alone"]
        batch = summary_of(directory)["batch"]
        subprocess.run(
            [sys.executable, PROJECT / "train.py", *alone, f"batch={batch}"],
            check=True, capture_output=True,
        )  # fmt: skip
        (got, rows), (expected, whole) = (
            state_of(directory),
            state_of(directories(workplace, "alone")[batch]),
        )
        for key in STATE:
            assert_same(got[key], expected[key])
        assert rows == whole


@pytest.mark.stress
def test_processes_are_killed_at_random_and_nothing_else_is_lost(
    small, workplace, command, altered
):
    altered(
        EACH_EPOCH.format("""
    import random
    # Not the generator that the run seeds.
    if random.SystemRandom().random() < 0.1:
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    )
    sweep = ("-m", *small, "epochs=6", "batch=16,32,48,64,96", "parallel=3")
    for _ in range(20):
        if (outcome := command("train.py", *sweep)).status == 0:
            break
    assert outcome.status == 0
    for directory in directories(workplace).values():
        assert len((directory / "metrics.jsonl").read_text().splitlines()) == 6
