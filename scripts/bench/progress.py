"""Prints on stderr what is being measured. Does not import torch, so the first line is early."""

import contextlib
import os
import sys
import time

# A line in a log is repeated after these seconds if nothing new began; a terminal's sooner.
LOG_SECONDS, TERMINAL_SECONDS = 30.0, 0.2
# Shorter work is not announced each time: printing would take the CPU from what is timed.
BRIEF_SECONDS = 0.2


class Progress:
    """Prints the present work and the time left: a line rewritten in place, or lines of a log.

    Args:
        minutes: the time for the whole command, counted from now.

    """

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.on_terminal = sys.stderr.isatty()
        self.place = ""
        self.announced: set[tuple[str, str]] = set()
        self.printed_at = 0.0
        self.line_open = False

    def left(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def say(self, activity: str, detail: str = "", seconds: float = BRIEF_SECONDS) -> None:
        """Print what is being done.

        A log has a line for each new activity, and the same line again after `LOG_SECONDS`.

        Args:
            activity: what begins.
            detail: more about it, such as the round.
            seconds: how long it is going to take. Brief work is announced once, then rarely.

        """
        waited = time.monotonic() - self.printed_at
        if self.on_terminal:
            due = seconds >= BRIEF_SECONDS or waited >= TERMINAL_SECONDS
        else:
            due = (self.place, activity) not in self.announced or waited >= LOG_SECONDS
        if due:
            self.announced.add((self.place, activity))
            left = int(self.left())
            clock = f"{left // 60}:{left % 60:02} left" if left else "no time left"
            # What matters most comes first, since a narrow terminal cuts the end off.
            self._print(", ".join(filter(None, [clock, self.place, detail, activity])))

    def clear(self) -> None:
        """Erase the line on the terminal, so that something else can be printed."""
        if self.line_open:
            self.line_open = False
            self._write("\r\x1b[K")

    def _print(self, text: str) -> None:
        self.printed_at = time.monotonic()
        if self.on_terminal:
            self.line_open = True
            # A longer line would wrap, and only its last row could be rewritten.
            self._write(f"\r\x1b[K{text[: _columns() - 1]}")
        else:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        # The measurement matters more than the line about it.
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _columns() -> int:
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80
