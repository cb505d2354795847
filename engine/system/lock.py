"""One process a run: a lock that is gone with its process, however it ended, on any file system.

The system's flock decides among the processes that it reaches. Some network file systems refuse it,
others keep it within one host. So the file also names its holder, who touches it every
`BEAT_SECONDS`: a name on this host counts as long as that process lives, where flock cannot tell,
and one on another host as long as the file's time moves.
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
# Beats may be late; then so long without one is death, by a file time that is seen to stand still.
PATIENCE_SECONDS = 20.0
# The same by this host's clock, which may differ from the file's: no need to watch.
STALE_SECONDS = 120.0
SETTLE_SECONDS = 0.5
HELD = (errno.EWOULDBLOCK, errno.EACCES)
NAME = re.compile(r"process (\d+) on (\S+)")


class RunBusy(UserError):
    """The run is being trained by another process."""


def holder(directory: Path) -> str | None:
    """Name the process that trains the run in this directory now, or None; a look, no wait."""
    with contextlib.suppress(OSError), open(directory / ".lock", encoding="utf-8") as lock:
        locks = _flock(lock, fcntl.LOCK_SH)
        name = _name(lock)
        if locks is False:
            return name or "another process"
        if _elsewhere(name):
            # A time far ahead is of a clock that was put back since.
            age = abs(time.time() - os.fstat(lock.fileno()).st_mtime)
            return name if age < PATIENCE_SECONDS else None
        return name if locks is None and _lives(name) else None
    return None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Callable[[], bool]]:
    """Hold a run's directory; raise RunBusy, naming the other, where another process does.

    Yields what tells whether it is still held: not where it was removed, or made anew since.
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
            # So nobody has to find out whether a holder that left in order still lives.
            lock.truncate(0)


def _take(path: Path, lock: IO[str]) -> None:
    # `holder` looks by taking the lock for a moment, which must not pass for a training.
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
        # Of several that come at once, the last to write has it.
        time.sleep(SETTLE_SECONDS)
        if (name := _name(lock)) != own:
            raise _busy(path, name)


def _is_at(path: Path, lock: IO[str]) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(lock.fileno()))
    return False


def _busy(path: Path, name: str) -> RunBusy:
    return RunBusy(f"run {path.parent}: is being trained by {name or 'another process'}")


def _flock(lock: IO[str], kind: int) -> bool | None:
    """Try to lock; None where the file system knows no locks."""
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
    """Tell whether the process of that name, one of this host, is there and not this one."""
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
    """Watch whether a holder on another host touches the file."""
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
    # Only what is opened anew is asked of a file server again.
    with open(path, encoding="utf-8") as lock:
        return os.fstat(lock.fileno()).st_mtime


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
