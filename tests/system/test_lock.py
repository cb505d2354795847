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
# Takes the lock and keeps it, or prints which process has it.
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
    """Simulate a file system without locks, such as some network mounts."""

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
def test_the_lock_names_its_holder_and_ends_with_it(tmp_path, monkeypatch, how, request):
    if how == "refused":
        request.getfixturevalue("refused")
    with hold(tmp_path, how) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        name = f"process {process.pid} on {HERE}"
        assert holder(tmp_path) == name
        with pytest.raises(RunBusy, match=f"is being trained by {name}"), locked(tmp_path):
            pass
        assert holder(tmp_path) == name, "a refused process must not change the lock file"
        process.kill()
    assert (tmp_path / ".lock").read_text() == f"{name}\n"
    assert holder(tmp_path) is None
    started = time.monotonic()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {HERE}\n"
    assert time.monotonic() - started < 2
    assert (tmp_path / ".lock").read_text() == ""


def test_without_locks_one_of_several_simultaneous_processes_gets_it(tmp_path):
    processes = [hold(tmp_path, "refused") for _ in range(3)]
    lines = [process.stdout.readline() for process in processes]
    for process in processes:
        process.kill()
        process.communicate()
    (first,) = [p for p, line in zip(processes, lines, strict=True) if line == "held\n"]
    others = [line for line in lines if line != "held\n"]
    assert len(others) == 2 and all(f"process {first.pid} on {HERE}" in line for line in others)


@pytest.mark.parametrize("how", ["shared", "refused"])
def test_a_remote_holder_counts_while_it_updates_the_mtime(tmp_path, impatient, how, request):
    # A file system may apply flock only within each host: then it is granted here. Or it refuses.
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


def test_a_remote_holder_that_ended_long_ago_is_not_waited_for(tmp_path, monkeypatch):
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


def test_the_holder_updates_its_files_mtime(tmp_path, impatient):
    with locked(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        time.sleep(0.3)
        assert (tmp_path / ".lock").stat().st_mtime > 0


def test_a_lock_file_with_this_process_id_is_stale(tmp_path, refused):
    # The first process of every container has the id 1.
    (tmp_path / ".lock").write_text(f"process {os.getpid()} on {HERE}\n")
    with locked(tmp_path):
        pass
