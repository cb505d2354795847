"""A lock on a run's directory, so that only one process trains the run, on any file system.

The lock ends with its process, however the process ends. flock decides between processes, but some
network file systems refuse flock, and others apply it only within one host. The lock file therefore
also names its holder, which updates the file's mtime every `BEAT_SECONDS`. If flock is refused, a
holder on this host counts as alive while its process exists. A holder on another host counts as
alive while the mtime changes.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from engine.errors import UserError

BEAT_SECONDS = 5.0
# A remote holder counts as dead if the lock file's mtime has not changed for this long. Updates may
# be late.
PATIENCE_SECONDS = 20.0
# An mtime this far from this host's clock counts as dead without waiting. The clocks may differ.
STALE_SECONDS = 120.0
# How long a process waits before it checks whether another process wrote its name at the same time.
SETTLE_SECONDS = 0.5
HELD = (errno.EWOULDBLOCK, errno.EACCES)
# In the message of RunBusy, by which a sweep recognizes it in the output of a run's process.
BUSY = "is being trained by"
NAME = re.compile(r"process (\d+) on (\S+)")


class RunBusy(UserError):
    """Another process is training the run."""


def holder(directory: Path) -> str | None:
    """Return the name of the process that trains the run in this directory, or None; never wait."""
    with contextlib.suppress(OSError), open(directory / ".lock", encoding="utf-8") as lock:
        locks = _flock(lock, fcntl.LOCK_SH)
        name = _name(lock)
        if locks is False:
            return name or "another process"
        if _elsewhere(name):
            # A time far in the future means that the clock was set back since.
            age = abs(time.time() - os.fstat(lock.fileno()).st_mtime)
            return name if age < PATIENCE_SECONDS else None
        return name if locks is None and _lives(name) else None
    return None


def holders_here(runs: Path) -> Iterator[int]:
    """Yield the IDs of the processes of this host that hold locks `<runs>/<group>/<run>/.lock`."""
    for path in runs.glob("*/*/.lock"):
        with contextlib.suppress(OSError):
            # The lock file of a run that ended properly is empty.
            if path.stat().st_size == 0:
                continue
        name = holder(path.parent) or ""
        if (match := NAME.fullmatch(name)) is not None and not _elsewhere(name):
            yield int(match[1])


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Callable[[], bool]]:
    """Lock a run's directory inside the block; raise RunBusy if another process holds it.

    Yields a function that returns True if the lock is still held. It returns False once the
    directory was removed, even if it was created again.
    """
    path = directory / ".lock"
    with open(path, "a+", encoding="utf-8") as lock:
        _take(path, lock)
        done = threading.Event()
        threading.Thread(target=_beat, args=(path, done), daemon=True).start()
        try:
            yield lambda: _is_at(path, lock)
        finally:
            done.set()
            # An empty file spares the next process the check whether its holder is alive.
            lock.truncate(0)


def _take(path: Path, lock: IO[str]) -> None:
    # `holder` takes the lock for a moment, which must not be mistaken for a training process.
    for attempt in range(10):
        if (locks := _flock(lock, fcntl.LOCK_EX)) is not False:
            break
        time.sleep(0.02 * attempt)
    name, own = _name(lock), f"process {os.getpid()} on {socket.gethostname()}"
    if locks is False:
        raise _busy(path, name)
    lives = _beats(path) if _elsewhere(name) else locks is None and _lives(name)
    if lives:
        raise _busy(path, f"{name}; if not, remove {path}")
    lock.truncate(0)
    lock.write(f"{own}\n")
    lock.flush()
    if locks is None:
        # Without flock, the last of several simultaneous writers gets the lock.
        time.sleep(SETTLE_SECONDS)
        if (name := _name(lock)) != own:
            raise _busy(path, name)


def _is_at(path: Path, lock: IO[str]) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(lock.fileno()))
    return False


def _busy(path: Path, name: str) -> RunBusy:
    return RunBusy(f"run {path.parent}: {BUSY} {name or 'another process'}")


def _flock(lock: IO[str], kind: int) -> bool | None:
    """Try to lock a file; return False if it is locked, None if the file system has no locks."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if error.errno in HELD else None


def _name(lock: IO[str]) -> str:
    lock.seek(0)
    return " ".join(lock.read().split())


def _elsewhere(name: str) -> bool:
    match = NAME.fullmatch(name)
    return match is not None and match[2] != socket.gethostname()


def _lives(name: str) -> bool:
    """Return True if a process name refers to another, existing process of this host."""
    match = NAME.fullmatch(name)
    if match is None or int(match[1]) == os.getpid():
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _beats(path: Path) -> bool:
    """Wait up to `PATIENCE_SECONDS`; return True if a remote holder updates the file's mtime."""
    first = _touched(path)
    if abs(time.time() - first) > STALE_SECONDS:
        return False
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(BEAT_SECONDS / 5)
        if _touched(path) != first:
            return True
    return False


def _touched(path: Path) -> float:
    # A network file system asks its server for the current mtime only when the file is opened.
    with open(path, encoding="utf-8") as lock:
        return os.fstat(lock.fileno()).st_mtime


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
