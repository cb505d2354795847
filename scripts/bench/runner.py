"""Measures the parts that the command line asks for, prints their tables and writes them."""

import argparse
import importlib
import sys
from collections.abc import Mapping
from typing import Any

import torch

from engine.errors import UserError
from engine.system.runtime import start_runtime
from scripts.bench import report
from scripts.bench.compare import Earlier
from scripts.bench.machine import environment
from scripts.bench.progress import Progress
from scripts.bench.report import Result, Table
from scripts.bench.session import Session


def measure_parts(
    arguments: argparse.Namespace,
    rounds: Mapping[str, int],
    options: Mapping[str, dict[str, Any]],
    progress: Progress,
    earlier: Earlier | None,
) -> None:
    """Measure parts one after the other; each gets an equal share of the time that is left.

    Raises UserError if the device is not available.

    Args:
        arguments: the command line.
        rounds: largest number of rounds of a candidate, by part, in the order of measurement.
        options: keyword arguments of each part's function, by part.
        progress: prints what is being measured.
        earlier: results to compare with; None compares with none.

    """
    device = choose_device(arguments.device)
    # Every part has the same threads and settings, also those that do not train.
    start_runtime(device.type, "auto", None, False, 0)
    if earlier and (warning := earlier.warning(environment(device))):
        progress.clear()
        print(warning, file=sys.stderr, flush=True)
    for place, part in enumerate(rounds):
        progress.place = f"{part} (part {place + 1} of {len(rounds)})"
        progress.say("starting")
        seconds = progress.left() / (len(rounds) - place)
        publisher = Publisher(part, arguments, progress, earlier)
        session = Session(device, rounds[part], seconds, progress, publisher.publish)
        try:
            importlib.import_module(f"scripts.bench.{part}").run(session, **options[part])
            session.finish()
        finally:
            publisher.report_partial(session.result)


class Publisher:
    """Prints and writes a part's tables as they come.

    Args:
        part: name of the part.
        arguments: the command line.
        progress: its line is erased before something is printed.
        earlier: results to compare with; None compares with none.

    """

    def __init__(
        self,
        part: str,
        arguments: argparse.Namespace,
        progress: Progress,
        earlier: Earlier | None,
    ) -> None:
        self.part, self.folder = part, arguments.folder
        self.progress, self.earlier = progress, earlier

    def publish(self, result: Result, table: Table | None) -> None:
        """Write the result; print a new table and its comparison."""
        report.write(self.part, result, self.folder)
        self.progress.clear()
        if table is not None:
            if len(result["tables"]) == 1:
                print(report.heading(self.part, result | {"complete": True}), end="\n\n")
            print(report.table_text(table), end="\n\n", flush=True)
            if self.earlier:
                print(self.earlier.compare(self.part, table), end="\n\n", flush=True)
        elif self.earlier and (text := self.earlier.left_out(self.part, result)):
            print(text, end="\n\n", flush=True)

    def report_partial(self, result: Result) -> None:
        """If the part was stopped, print on stderr how many of its tables are finished."""
        if result["complete"]:
            return
        self.progress.clear()
        count = len(result["tables"])
        path = report.path_of(result["environment"], self.folder)
        kept = f"{count} finished, in {path}" if count else "none finished"
        print(f"{self.part}: stopped; its tables: {kept}", file=sys.stderr, flush=True)


def choose_device(name: str | None) -> torch.device:
    """Return the named device, CUDA by default if there is one; raise UserError if it is absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: this machine has no CUDA device; use --device=cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
