"""Shows how many of a sweep's runs are done and how long the rest takes.

On a terminal this is a bar below the lines and bars of the runs. In a log it is a line after each
run.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from engine.errors import UserError
from engine.report.rows import records_of
from engine.report.status import seconds_left
from engine.runs.run import Run
from engine.system.terminal import Mode, duration, say, shows_bar, stderr

# Pause between estimates of the time left, which read the runs' directories.
ESTIMATE_SECONDS = 10.0


class SweepProgress:
    """The progress of a sweep.

    Args:
        runs: the sweep's runs, finished ones included.
        at_once: how many of them train at once.
        mode: the key `progress`; "off" shows nothing.

    """

    def __init__(self, runs: Sequence[Run], at_once: int, mode: Mode) -> None:
        self.runs, self.at_once, self.mode = runs, at_once, mode
        self.bar: tqdm[Any] = tqdm(disable=True)
        self.estimated_at, self.done = 0.0, sum(run.finished() for run in runs)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar inside the block if the terminal can; lines are then printed above it."""
        if not shows_bar(self.mode):
            yield
            return
        form = "{desc} |{bar}| {n_fmt}/{total_fmt} runs{postfix}"
        self.bar = tqdm(
            desc="sweep", total=len(self.runs), bar_format=form, leave=False, dynamic_ncols=True,
            file=stderr(),
        )  # fmt: skip
        streams: list[Any] = [_Above(sys.stdout, self), _Above(sys.stderr, self)]
        with (
            self.bar,
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
        ):
            self.estimate()
            try:
                yield
            finally:
                for stream in streams:
                    stream.write_rest()

    def run_ended(self) -> None:
        """Show that a run has ended."""
        if self.mode == "off":
            return
        before = self.done
        done, left = self.estimate()
        if self.bar.disable and before < done < len(self.runs):
            say(f"sweep     {done} of {len(self.runs)} runs done, {left}")

    def estimate_at_times(self) -> None:
        """Update the bar if the last estimate is older than `ESTIMATE_SECONDS`."""
        if time.monotonic() - self.estimated_at > ESTIMATE_SECONDS:
            self.estimate()

    def estimate(self) -> tuple[int, str]:
        """Return how many runs are done and the time left as text, and show them on the bar."""
        self.estimated_at = time.monotonic()
        self.done = done = sum(run.finished() for run in self.runs)
        seconds = self._seconds_left()
        left = "time left not known yet" if seconds is None else f"{duration(seconds)} left"
        self.bar.n = done
        self.bar.set_postfix_str(left)
        return done, left

    def _seconds_left(self) -> float | None:
        names = {(run.config.group, run.name) for run in self.runs}
        total = 0.0
        for group in {group for group, _ in names}:
            try:
                records = records_of(group)
            except UserError:
                return None
            for record in records:
                if (group, record.summary["run"]) in names:
                    seconds = seconds_left(record, records)
                    if seconds is None:
                        return None
                    total += seconds
        return total / self.at_once


class _Above:
    """A stream whose lines are printed above the bars, and bring the sweep's bar up to date.

    tqdm's own wrapper (`tqdm.contrib.DummyTqdmFile`) clears the bars on the stream that it wraps
    only, so lines for stdout would continue the line of a bar on stderr.
    """

    def __init__(self, stream: TextIO, progress: SweepProgress) -> None:
        self._wrapped, self.progress, self.rest = stream, progress, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def write(self, text: str) -> int:
        lines, newline, self.rest = (self.rest + text).rpartition("\n")
        if newline:
            with tqdm.external_write_mode(file=stderr()):
                self._wrapped.write(lines + newline)
                self._wrapped.flush()
            self.progress.estimate_at_times()
        return len(text)

    def write_rest(self) -> None:
        """Print the text after the last line's end."""
        if self.rest:
            self.write("\n")
