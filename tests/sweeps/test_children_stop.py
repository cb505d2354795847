"""Sweeps of several processes that are stopped or killed, and started again."""

import os
import signal
import subprocess
import sys
import time

import pytest

from engine.system.lock import holder
from tests.helpers import PROJECT
from tests.helpers.runs import rows_of
from tests.helpers.sweeps import (
    EACH_EPOCH,
    assert_same_run,
    began,
    directories,
    summary_of,
    when,
)


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
        assert_same_run(directory, directories(workplace, "alone")[batch])


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
