"""Signals and time limits that make a run save between two steps, then resume training or stop.

Handled are SIGTERM, SIGINT, SIGHUP (sent when a terminal session ends) and SIGUSR1 (Slurm's warning
before a job's end). While a run trains they only set a flag. After the run has saved, the handler
that was installed before is called: the default one ends the process; a launcher's may requeue the
job. Outside of training these signals end the process at once. Does not import torch.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Slurm sends SIGTERM after its warning SIGUSR1. Both give the same status, which a job script can
# rely on.
EXIT_STATUS = {
    signal.SIGTERM: 143,
    signal.SIGINT: 130,
    signal.SIGHUP: 129,
    signal.SIGUSR1: 143,
}
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
# One request may arrive twice: from the terminal to the process group, and from a parent process.
REPEAT_SECONDS = 1.0


class Stopped(SystemExit):
    """Raised to end the process after a signal.

    Args:
        status: the exit status.

    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Pauses:
    """Decides when a run saves a checkpoint: after a signal, or every N epochs or minutes.

    Args:
        every: epochs as an int, or minutes such as `10min`, counted from now.

    """

    def __init__(self, every: int | str) -> None:
        self.epochs = every if isinstance(every, int) else None
        self.seconds = None if isinstance(every, int) else 60.0 * int(every.removesuffix("min"))
        self.signal: int | None = None
        self.asked_at = 0.0
        self.saved_at = time.monotonic()
        self.before: dict[int, Any] = {}
        self.closing = False

    def due(self) -> bool:
        """Return True if the run must save before its next step."""
        late = self.seconds is not None and time.monotonic() - self.saved_at >= self.seconds
        return late or self.signal is not None

    def due_after(self, epoch: int) -> bool:
        """Return True if the run must save after it has finished this epoch."""
        return self.due() or (self.epochs is not None and epoch % self.epochs == 0)

    def saved(self) -> None:
        """Note that a checkpoint was written; if a signal asked for it, call the earlier handler.

        Raises Stopped if that handler is the system's default.
        """
        self.saved_at = time.monotonic()
        number, self.signal = self.signal, None
        if number is None:
            return
        self.closing = True
        if not callable(handler := self.before[number]):
            raise Stopped(EXIT_STATUS[signal.Signals(number)])
        handler(number, None)
        # The handler returned, so training continues.
        self.closing = False

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the first asks for a save, a later one kills the process at once.

        A warning (`WARNINGS`) never kills, and a signal after a warning counts as the first. A
        signal within `REPEAT_SECONDS` of the first is ignored.
        """
        drop_lost_terminal(number)
        warned = self.signal in WARNINGS and number not in WARNINGS
        if not self.closing and (self.signal is None or warned):
            self.signal, self.asked_at = number, time.monotonic()
            name = signal.Signals(number).name
            _print_to_stderr(f"{name}: saving, then stopping; a second signal stops at once")
        elif number not in WARNINGS and time.monotonic() - self.asked_at > REPEAT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def pausing(every: int | str) -> Iterator[Pauses]:
    """Yield the `Pauses` of a run, which receives signals inside the block.

    Outside of the main thread there are no signals, only time limits. A signal that arrives after
    the last save is passed to the launcher's own handler, if there is one.
    """
    pauses = Pauses(every)
    pauses.before = present_handlers()
    # SIGUSR2 matters only if a launcher installed a handler for it.
    if pauses.before and callable(handler := signal.getsignal(signal.SIGUSR2)):
        pauses.before[signal.SIGUSR2] = handler
    try:
        with handling(pauses.before, pauses.note):
            yield pauses
    finally:
        late = pauses.before.get(pauses.signal or 0)
        if callable(late) and late not in (signal.default_int_handler, leave_early):
            late(pauses.signal, None)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Raise Stopped on a signal between a sweep's runs, so that the sweep writes its report."""
    with handling(present_handlers(), leave):
        yield


@contextlib.contextmanager
def leaving_early() -> Iterator[None]:
    """Make signals end a command that is not training yet, with the same exit status."""
    before = present_handlers()
    plain = (signal.SIG_DFL, signal.default_int_handler)
    with handling({n: h for n, h in before.items() if h in plain}, leave_early):
        yield


def leave(number: int, _frame: FrameType | None) -> None:
    """Raise Stopped with the signal's exit status."""
    drop_lost_terminal(number)
    raise Stopped(EXIT_STATUS[signal.Signals(number)])


def leave_early(number: int, frame: FrameType | None) -> None:
    """Raise Stopped; if a module is being imported, exit without unwinding.

    During an import an exception may print a traceback, or abort the process in native code.
    """
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    if any(getattr(spec, "_initializing", False) for spec in specs):
        _print_to_stderr("interrupted")
        os._exit(EXIT_STATUS[signal.Signals(number)])
    leave(number, frame)


def present_handlers() -> dict[int, Any]:
    """Return the signals to handle with their current handlers, without those that are ignored.

    Returns an empty dictionary outside of the main thread, which alone can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in EXIT_STATUS}
    return {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}


@contextlib.contextmanager
def handling(
    before: dict[int, Any], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Install a handler for the signals in `before`; restore the earlier handlers afterwards."""
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def drop_lost_terminal(number: int) -> None:
    """After SIGHUP, redirect stdout and stderr to os.devnull if their terminal is gone."""
    if number != signal.SIGHUP:
        return
    for name in ("stdout", "stderr"):
        try:
            descriptor = getattr(sys, name).fileno()
        except (OSError, ValueError):
            continue
        try:
            os.write(descriptor, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                # Not only sys.stdout and sys.stderr: progress bars keep the stream they write to.
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def _print_to_stderr(line: str) -> None:
    """Print a line on rank 0, past Python's buffer, which the signal may have interrupted."""
    if os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
