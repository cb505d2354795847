"""When a run pauses between two steps: to save, and then to go on or to stop in order.

SIGTERM, SIGINT, SIGHUP, which the end of a terminal's session sends, and SIGUSR1, with which Slurm
warns of a job's end, only set a flag while a run trains; once the run has saved, the handler that
was there before decides: by default it ends the process, a launcher's own may put the job back into
its queue. Before and after they end the process at once. Imports no torch.
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

# A warning is followed by SIGTERM; that it ends with the same status, a job script may rely on.
EXIT_STATUS = {
    signal.SIGTERM: 143,
    signal.SIGINT: 130,
    signal.SIGHUP: 129,
    signal.SIGUSR1: 143,
}
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
# One request may come twice at once: from the terminal to the group, and from a parent.
REPEAT_SECONDS = 1.0


class Stopped(SystemExit):
    """A signal ended the process in order."""

    def __init__(self, status: int) -> None:
        """Leave with this exit status."""
        super().__init__(status)
        self.status = status


class Pauses:
    """What asks a run to pause: a signal, or the minutes of `checkpoint_every`."""

    def __init__(self, every: int | str) -> None:
        """Count from now; every: epochs, or minutes such as `10min`."""
        self.epochs = every if isinstance(every, int) else None
        self.seconds = None if isinstance(every, int) else 60.0 * int(every.removesuffix("min"))
        self.signal: int | None = None
        self.asked_at = 0.0
        self.saved_at = time.monotonic()
        self.before: dict[int, Any] = {}
        self.closing = False

    def due(self) -> bool:
        """Tell whether to save before the next step."""
        late = self.seconds is not None and time.monotonic() - self.saved_at >= self.seconds
        return late or self.signal is not None

    def due_after(self, epoch: int) -> bool:
        """Tell whether to save now that an epoch is finished."""
        return self.due() or (self.epochs is not None and epoch % self.epochs == 0)

    def saved(self) -> None:
        """Count from now again; leave where a signal asked for it."""
        self.saved_at = time.monotonic()
        number, self.signal = self.signal, None
        if number is None:
            return
        self.closing = True
        if not callable(handler := self.before[number]):
            raise Stopped(EXIT_STATUS[signal.Signals(number)])
        handler(number, None)
        # It came back, so the run goes on.
        self.closing = False

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Take in a signal; a second one, warnings apart, ends the process where it stands."""
        drop_lost_terminal(number)
        warned = self.signal in WARNINGS and number not in WARNINGS
        if not self.closing and (self.signal is None or warned):
            self.signal, self.asked_at = number, time.monotonic()
            tell(f"{signal.Signals(number).name}: saves and stops; a second one stops at once")
        elif number not in WARNINGS and time.monotonic() - self.asked_at > REPEAT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def pausing(every: int | str) -> Iterator[Pauses]:
    """Let signals ask for a pause while a run trains; a thread gets none and has only the clock.

    A signal that came too late for the run goes to the handler of whoever started it.
    """
    pauses = Pauses(every)
    pauses.before = present_handlers()
    # One that is no business of ours unless a launcher warns with it.
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
    """Let the same signals end a sweep between its runs, by Stopped, so that it still reports."""
    with handling(present_handlers(), leave):
        yield


@contextlib.contextmanager
def leaving_early() -> Iterator[None]:
    """Let the same signals end a command that trains nothing yet, with the same exit status."""
    before = present_handlers()
    plain = (signal.SIG_DFL, signal.default_int_handler)
    with handling({n: h for n, h in before.items() if h in plain}, leave_early):
        yield


def leave(number: int, _frame: FrameType | None) -> None:
    """Raise Stopped."""
    drop_lost_terminal(number)
    raise Stopped(EXIT_STATUS[signal.Signals(number)])


def leave_early(number: int, frame: FrameType | None) -> None:
    """Raise Stopped; while a module is imported, leave without unwinding.

    An exception there may end in a traceback, or abort the process from an extension's code.
    """
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    if any(getattr(spec, "_initializing", False) for spec in specs):
        tell("interrupted")
        os._exit(EXIT_STATUS[signal.Signals(number)])
    leave(number, frame)


def present_handlers() -> dict[int, Any]:
    """Return the signals to listen to with their handlers: not those that the caller ignores."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in EXIT_STATUS}
    return {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}


@contextlib.contextmanager
def handling(
    before: dict[int, Any], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle signals so for a while."""
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def drop_lost_terminal(number: int) -> None:
    """After SIGHUP, write nowhere what would go to a terminal that is gone and raise an error."""
    if number != signal.SIGHUP:
        return
    for name in ("stdout", "stderr"):
        try:
            os.write(getattr(sys, name).fileno(), b"")
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EIO:
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


def tell(line: str) -> None:
    """Write a line to stderr past Python's buffer, which a signal may have interrupted."""
    if os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
