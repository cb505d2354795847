"""The measurement of one part: its share of the time, its progress and its results."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from scripts.bench.machine import environment
from scripts.bench.progress import Progress
from scripts.bench.report import Figure, Result, Row, Table
from scripts.bench.timing import Candidate, Turns, interleave


class Session:
    """The settings of a part's measurements, and its result so far.

    Args:
        device: the device to measure.
        rounds: largest number of rounds of a candidate.
        seconds: the part's share of the time, counted from now.
        progress: prints what is being measured.
        publish: called with the result and the new table after each table, and with the result and
            None once the part is complete.

    """

    def __init__(
        self,
        device: torch.device,
        rounds: int,
        seconds: float,
        progress: Progress,
        publish: Callable[[Result, Table | None], object] = lambda result, table: None,
    ) -> None:
        self.device, self.rounds = device, rounds
        self.progress, self.publish = progress, publish
        self.end = time.monotonic() + seconds
        self.result: Result = {
            "environment": environment(device), "complete": False, "rounds": rounds, "notes": [],
            "extra": {}, "tables": [],
        }  # fmt: skip

    def say(self, activity: str) -> None:
        """Print what is being done next."""
        self.progress.say(activity)

    def note(self, *texts: str) -> None:
        """Add notes that are printed above the part's tables; they come before the first table."""
        self.result["notes"] += texts

    def extra(self, **figures: Any) -> None:
        """Add figures to the results file that are not in any table."""
        self.result["extra"] |= figures

    def share(self, left: int) -> float:
        """Return the seconds for the next of `left` measurements still to come in the part."""
        return max(0.0, self.end - time.monotonic()) / left

    def measure(
        self, title: str, candidates: dict[str, Candidate], warmup: int = 1, left: int = 1
    ) -> dict[str, list[float]]:
        """Time candidates in turns with `interleave`; return the seconds of each round.

        Args:
            title: what is measured, for the progress.
            candidates: the candidates, by name.
            warmup: largest number of warm-up rounds.
            left: number of measurements still to come in the part, this one included. They share
                the time.

        """

        def watch(name: str, turns: Turns) -> None:
            self.progress.say(f"{title}: {name}", turns.describe(), turns.cost)

        return interleave(candidates, self.rounds, self.device, warmup, self.share(left), watch)

    def table(
        self,
        title: str,
        rows: list[Row],
        figures: dict[str, list[float]],
        *notes: str,
        unit: str = "s",
    ) -> None:
        """Add a table to the result and publish it.

        Args:
            title: names what was measured, so that equal titles can be compared.
            rows: the rows, with the same columns each.
            figures: each candidate's values, of which less is faster.
            notes: what stands above the table, with the number of rounds.
            unit: unit of the figures.

        """
        kept: dict[str, Figure] = dict(figures)
        table: Table = {
            "title": title, "notes": list(notes), "unit": unit, "figures": kept, "rows": rows,
        }  # fmt: skip
        self.result["tables"].append(table)
        self.result["environment"]["load_average"] = os.getloadavg()[0]
        self.publish(self.result, table)

    def finish(self) -> None:
        """Mark the result as complete and publish it."""
        self.result["complete"] = True
        self.publish(self.result, None)
