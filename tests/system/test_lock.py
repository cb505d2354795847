import errno
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

import engine.system.lock
from engine.system.lock import RunBusy, holder, locked
from tests.helpers import PROJECT

HERE = socket.gethostname()
# Takes the lock, says so or who has it, and keeps it.
HOLD = """
import errno, sys, time
from pathlib import Path
import engine.system.lock
def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
if sys.argv[2] == "refused": engine.system.lock.fcntl.flock = refuse
try:
    with engine.system.lock.locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
except engine.system.lock.RunBusy as error:
    print(error, flush=True)
"""


@pytest.fixture
def refused(monkeypatch):
    """Have a file system without locks, such as some network mounts."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(engine.system.lock.fcntl, "flock", refuse)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(engine.system.lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(engine.system.lock, "PATIENCE_SECONDS", 0.5)


def hold(folder, how="shared"):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, how],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip


@pytest.mark.parametrize("how", ["shared", "refused"])
def test_the_lock_names_its_holder_and_dies_with_it(tmp_path, monkeypatch, how, request):
    if how == "refused":
        request.getfixturevalue("refused")
    with hold(tmp_path, how) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        name = f"process {process.pid} on {HERE}"
        assert holder(tmp_path) == name
        with pytest.raises(RunBusy, match=f"is being trained by {name}"), locked(tmp_path):
            pass
        assert holder(tmp_path) == name, "the refusal has not touched it"
        process.kill()
    assert (tmp_path / ".lock").read_text() == f"{name}\n"
    assert holder(tmp_path) is None
    started = time.monotonic()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {HERE}\n"
    assert time.monotonic() - started < 2
    assert (tmp_path / ".lock").read_text() == ""


def test_of_several_at_once_one_gets_it_where_there_are_no_locks(tmp_path):
    processes = [hold(tmp_path, "refused") for _ in range(3)]
    lines = [process.stdout.readline() for process in processes]
    for process in processes:
        process.kill()
        process.communicate()
    (first,) = [p for p, line in zip(processes, lines, strict=True) if line == "held\n"]
    others = [line for line in lines if line != "held\n"]
    assert len(others) == 2 and all(f"process {first.pid} on {HERE}" in line for line in others)


@pytest.mark.parametrize("how", ["shared", "refused"])
def test_a_holder_on_another_host_counts_while_it_touches_the_file(
    tmp_path, impatient, how, request
):
    # As where flock is kept within each host: here it is granted, or refused.
    if how == "refused":
        request.getfixturevalue("refused")
    path, done = tmp_path / ".lock", threading.Event()
    path.write_text("process 1 on elsewhere\n")
    thread = threading.Thread(target=engine.system.lock._beat, args=(path, done))
    thread.start()
    assert holder(tmp_path) == "process 1 on elsewhere"
    with pytest.raises(RunBusy, match="is being trained by process 1 on elsewhere; if not, remove"):
        with locked(tmp_path):
            pass
    done.set()
    thread.join()
    with locked(tmp_path):
        assert path.read_text() == f"process {os.getpid()} on {HERE}\n"


def test_one_on_another_host_that_is_long_gone_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    path.write_text("process 1 on elsewhere\n")
    before = time.time() - 2 * engine.system.lock.STALE_SECONDS
    os.utime(path, (before, before))
    assert holder(tmp_path) is None
    monkeypatch.setattr(engine.system.lock, "_touched", lambda path: before)
    started = time.monotonic()
    with locked(tmp_path):
        pass
    assert time.monotonic() - started < 2


def test_the_holder_touches_its_file(tmp_path, impatient):
    with locked(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        time.sleep(0.3)
        assert (tmp_path / ".lock").stat().st_mtime > 0


def test_a_name_of_this_very_process_holds_nothing(tmp_path, refused):
    # As the first process of each container is number 1.
    (tmp_path / ".lock").write_text(f"process {os.getpid()} on {HERE}\n")
    with locked(tmp_path):
        pass
