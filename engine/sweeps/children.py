"""Trains a sweep's runs in separate processes, several at once.

Each process is the command that the run's page prints, `python train.py ...`, so it resumes, saves
and fails as that command does. It runs in a separate session, so that it receives Ctrl-C once,
from the sweep. Its lines are printed with the run's name before them.
"""

import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO

from engine.config.compose import CONF, Job
from engine.runs.run import Run
from engine.system.lock import BUSY, holder
from engine.system.resources import RUNS_AT_ONCE
from engine.system.signals import (
    EXIT_STATUS,
    Stopped,
    drop_lost_terminal,
    handling,
    present_handlers,
)

TRAIN = CONF.parent / "train.py"
# How long a process that has ended may go unnoticed if another process keeps its output open.
POLL_SECONDS = 0.2
# Lines of stderr that are kept for a failed run's error.log.
KEPT_LINES = 1000
# What these lines say is printed by the sweep itself once the process has ended.
HIDDEN = ("error: ", "interrupted")
TRACEBACK = "Traceback (most recent call last)"
# The exit statuses of a run that a signal or a closed output stopped: it saved and can resume.
INTERRUPTED = (*EXIT_STATUS.values(), 141)


def train_in_processes(
    runs: Sequence[tuple[Run, Job]], at_once: int, ended: Callable[[], None] = lambda: None
) -> None:
    """Train the runs in the given order, each in a process, at most `at_once` at a time.

    Signals are forwarded to the processes. After the first one no process is started, and once all
    have ended, Stopped is raised. A run that another process trains is left out.

    Args:
        runs: the runs and their jobs.
        at_once: the largest number of processes at a time.
        ended: called after each process has ended.

    """
    waiting, children = list(reversed(runs)), list[Child]()
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        drop_lost_terminal(number)
        received.append(number)
        for child in list(children):
            child.process.send_signal(number)

    with handling(present_handlers(), forward), selectors.DefaultSelector() as selector:
        try:
            while children or (waiting and not received):
                while waiting and not received and len(children) < at_once:
                    run, job = waiting.pop()
                    if is_done_or_held(run):
                        continue
                    child = Child(run, job, min(at_once, len(runs)))
                    children.append(child)
                    for stream in child.streams:
                        selector.register(stream, selectors.EVENT_READ, child)
                    # A signal may have arrived before the process was in the list.
                    if received:
                        child.process.send_signal(received[0])
                for key, _ in selector.select(POLL_SECONDS):
                    if key.data.relay(key.fileobj) == b"":
                        selector.unregister(key.fileobj)
                for child in [c for c in children if c.process.poll() is not None]:
                    child.close(selector)
                    children.remove(child)
                    child.report(stopping=bool(received))
                    ended()
        finally:
            # Reached with children only if the sweep itself fails, as when its output is closed.
            for child in children:
                child.process.send_signal(signal.SIGTERM)
            for child in children:
                child.process.communicate()
    if received:
        raise Stopped(EXIT_STATUS[signal.Signals(received[0])])


def is_done_or_held(run: Run) -> bool:
    """Return True if another process trains the run, or has finished it meanwhile."""
    if name := holder(run.directory):
        print(f"waiting   run {run.directory}: {BUSY} {name}", file=sys.stderr)
        return True
    if run.config.resume and run.finished():
        print(f"finished  {run.name}: {run.outcome()}", flush=True)
        return True
    return False


class Child:
    """A process that trains one run."""

    def __init__(self, run: Run, job: Job, at_once: int) -> None:
        self.run, self.job = run, job
        self.errors: deque[str] = deque(maxlen=KEPT_LINES)
        self.in_traceback = False
        self.process = subprocess.Popen(
            [sys.executable, str(TRAIN), *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, RUNS_AT_ONCE: str(at_once), "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.streams = (self.process.stdout, self.process.stderr)
        self.rests = dict.fromkeys(self.streams, b"")
        for stream in self.streams:
            os.set_blocking(stream.fileno(), False)

    def relay(self, stream: IO[bytes]) -> bytes | None:
        """Print the complete lines that a stream holds; return the data, None if there is none.

        Returns b"" at the end of the stream.
        """
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return None
        *lines, rest = (self.rests[stream] + data).split(b"\n")
        # A progress bar draws each state over the last one, so only the last is kept.
        self.rests[stream] = rest[rest.rfind(b"\r", 0, len(rest) - 1) + 1 :]
        for line in lines:
            self.show(line, stream)
        return data

    def show(self, data: bytes, stream: IO[bytes]) -> None:
        """Print a line with the run's name; a traceback is kept for the log instead."""
        line = data.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
        is_error = stream is self.streams[1]
        if is_error:
            self.errors.append(line)
            self.in_traceback = self.in_traceback or line.startswith(TRACEBACK)
            if self.in_traceback or line.startswith(HIDDEN):
                return
        file = sys.stderr if is_error else sys.stdout
        name = self.run.name
        print(line if line.startswith(name) else f"{name}  {line}", file=file, flush=True)

    def close(self, selector: selectors.BaseSelector) -> None:
        """Print what the streams of an ended process still hold, and close them."""
        for stream in self.streams:
            if stream in selector.get_map():
                selector.unregister(stream)
            while self.relay(stream):
                pass
            if self.rests[stream]:
                self.show(self.rests[stream], stream)
            stream.close()

    def report(self, stopping: bool) -> None:
        """Print why an ended process did not finish its run, and record a failure.

        Args:
            stopping: True if the sweep received a signal to stop.

        """
        status, name = self.process.returncode, self.run.name
        reason = next((line for line in reversed(self.errors) if line.strip()), "")
        if status == 0:
            return
        if status < 0:
            print(f"killed    {name}: {signal.Signals(-status).name}", file=sys.stderr)
        elif BUSY in reason:
            print(f"waiting   {reason.removeprefix('error: ')}", file=sys.stderr)
        elif not (stopping or status in INTERRUPTED):
            self.record_failure(reason or f"exit status {status}")
        elif status not in INTERRUPTED or not stopping:
            print(f"stopped   {name}: {reason or f'exit status {status}'}", file=sys.stderr)

    def record_failure(self, reason: str) -> None:
        """Record what the process printed as the run's failure, and print the reason."""
        run, message = self.run, reason.removeprefix("error: ")
        reason = f"UserError: {message}" if reason.startswith("error: ") else reason
        run.record_failure("\n".join([*self.errors, ""]), reason, self.job.arguments)
        print(f"failed    {run.name}: {message}; see {run.log}", file=sys.stderr, flush=True)
