"""What a person sees while a run trains: a line after each epoch on stdout, a bar on stderr.

Without a bar, a line every `LINE_SECONDS` shows that a long epoch is alive. Lines are flushed, so
that log files of nohup, Slurm and CI are up to date.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal, TextIO, TypeVar

from tqdm import tqdm

from engine.system.resources import runs_at_once

# By default tqdm shares a semaphore with other processes. Only this process writes to its bars.
tqdm.set_lock(threading.RLock())
LINE_SECONDS, BAR_SECONDS = 30.0, 0.2
Mode = Literal["auto", "bar", "lines", "off"]
Item = TypeVar("Item")


def stderr() -> TextIO:
    """Return the stream for bars: stderr, also while a sweep's bar redirects it."""
    stream: TextIO = getattr(sys.stderr, "_wrapped", sys.stderr)
    return stream


def shows_bar(mode: Mode) -> bool:
    """Return True if bars are shown: by default on a terminal that can redraw a line."""
    able = stderr().isatty() and os.environ.get("TERM") != "dumb"
    return mode == "bar" or (mode == "auto" and able)


def say(text: str) -> None:
    """Print a line above the bars and flush it."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return a time as `hours:minutes:seconds`.

    >>> duration(3725.4)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))


def accuracy_of(row: dict[str, Any]) -> tuple[str, float] | None:
    """Return an epoch's accuracy as (split's name, %): of the test split, else of the hold-out."""
    for split, name in (("test", "test"), ("holdout", "hold-out")):
        if row.get(f"{split}_accuracy") is not None:
            return name, row[f"{split}_accuracy"]
    return None


def epoch_line(row: dict[str, Any], epochs: int, best: bool, seconds_left: float) -> str:
    """Return the line that is printed after an epoch. Other programs read it.

    Args:
        row: the epoch's row of metrics.jsonl.
        epochs: number of epochs of the run.
        best: True if no earlier evaluation reached this accuracy.
        seconds_left: estimated time until the run ends.

    """
    loss = math.nan if row["train_loss"] is None else row["train_loss"]
    parts = [f"epoch {row['epoch']}/{epochs}", f"train loss {loss:.3f}"]
    if measured := accuracy_of(row):
        parts += [f"{measured[0]} accuracy {measured[1]:.2f} %", *["best"] * best]
    parts += [f"rate {row['learning_rate']:.4g}", f"{row['images_per_second']:,.0f} images/s"]
    return "  ".join([*parts, f"{duration(seconds_left)} left"])


class Display:
    """Shows one run's progress on the terminal.

    Args:
        mode: the key `progress`; "off" shows nothing.
        epochs: number of epochs of the run.
        steps: number of optimizer steps of the run.
        history: rows of the epochs done before a resume.
        name: the run's name, which its lines get if other runs train at the same time.
        rank: ranks above 0 show nothing.

    """

    def __init__(
        self,
        mode: Mode = "off",
        epochs: int = 1,
        steps: int = 1,
        history: Sequence[dict[str, Any]] = (),
        name: str = "",
        rank: int = 0,
    ) -> None:
        self.epochs, self.total = epochs, steps
        alone = runs_at_once() == 1
        self.on = mode != "off" and rank == 0
        # The bars of several processes would overwrite each other.
        self.bar = self.on and alone and shows_bar(mode)
        self.prefix = f"{name}  " if name and not alone else ""
        rows = [r for row in history for r in (*row.get("evaluations", ()), row)]
        self.best = max((found[1] for row in rows if (found := accuracy_of(row))), default=-1.0)
        self.title = ""
        self.steps_bar: tqdm[Any] = tqdm(disable=True)
        self.begun: tuple[float, int] | None = None
        self.shown_at = self.steps_began = 0.0

    @contextlib.contextmanager
    def steps(
        self, batches: Sequence[Item], first_step: int, begun_at: int
    ) -> "Iterator[tqdm[Item]]":
        """Yield an epoch's remaining batches; iterating over them moves the bar.

        Args:
            batches: all batches of the epoch.
            first_step: number of optimizer steps of the run before the epoch.
            begun_at: number of batches already done.

        """
        self.steps_began = time.monotonic()
        if self.begun is None:
            self.begun = self.steps_began, first_step + begun_at
        title = f"epoch {first_step // len(batches) + 1}/{self.epochs}"
        if title != self.title:
            # An epoch that an evaluation interrupts has its next line when it would have had it.
            self.title, self.shown_at = title, self.steps_began
        with self._bar(batches[begun_at:], self.title, begun_at) as bar:
            self.steps_bar = bar
            yield bar

    def due(self) -> bool:
        """Return True if it is time for `show`, which may wait for the device."""
        pause = BAR_SECONDS if self.bar else LINE_SECONDS
        return self.on and time.monotonic() - self.shown_at >= pause

    def show(self, step: int, steps: int, images: int, loss: float, accuracy: float) -> None:
        """Show the state inside an epoch.

        Args:
            step: number of steps done of this epoch.
            steps: number of steps of this epoch.
            images: number of images since `steps` began.
            loss: mean loss of the last batch.
            accuracy: training accuracy of the epoch so far, in %.

        """
        self.shown_at = time.monotonic()
        seconds = max(self.shown_at - self.steps_began, 1e-9)
        speed = f"{images / seconds:,.0f}"
        if self.bar:
            self.steps_bar.set_postfix(
                loss=f"{loss:.3f}", accuracy=f"{accuracy:.1f}%", images_per_s=speed
            )
        else:
            parts = [f"step {step}/{steps}", f"train loss {loss:.3f}"]
            self._say(*parts, f"train accuracy {accuracy:.1f} %", f"{speed} images/s")

    def watch(self, starts: Sequence[Item]) -> Iterator[Item]:
        """Yield the batches of an evaluation, showing how many are done."""
        with self._bar(starts, f"{self.title} evaluation".strip(), delay=1.0) as bar:
            for done, start in enumerate(bar):
                if not self.bar and self.due():
                    self.shown_at = time.monotonic()
                    self._say(f"evaluation {done}/{len(starts)}")
                yield start

    def show_evaluation(self, step: int, steps: int, row: dict[str, Any]) -> None:
        """Print an evaluation inside an epoch, if it is time for a line.

        Args:
            step: number of steps done of this epoch.
            steps: number of steps of this epoch.
            row: its losses and accuracies by column of metrics.jsonl.

        """
        measured = accuracy_of(row)
        if measured and not self.bar and self.due():
            self.shown_at = time.monotonic()
            self._say(f"step {step}/{steps}", f"{measured[0]} accuracy {measured[1]:.2f} %")

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Print an epoch's line."""
        if not self.on:
            return
        measured, left = accuracy_of(row), 0.0
        for inner in row.get("evaluations", ()):
            self.best = max(self.best, (accuracy_of(inner) or ("", -1.0))[1])
        best = measured is not None and measured[1] > self.best
        if measured is not None and best:
            self.best = measured[1]
        if self.begun is not None and self.begun[1] < row["step"]:
            began, first = self.begun
            left = (time.monotonic() - began) * (self.total - row["step"]) / (row["step"] - first)
        say(self.prefix + epoch_line(row, self.epochs, best, left))

    def _say(self, *parts: str) -> None:
        say(self.prefix + "  ".join(filter(None, [self.title, *parts])))

    def _bar(
        self, items: Sequence[Item], title: str, begun_at: int = 0, delay: float = 0.0
    ) -> "tqdm[Item]":
        form = "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        return tqdm(
            items, desc=title, initial=begun_at, total=begun_at + len(items), leave=False,
            disable=not self.bar, delay=delay, bar_format=form, dynamic_ncols=True, file=stderr(),
        )  # fmt: skip
