"""The time from a command to the end of its first training step, and of --help, in new processes.

The data is the synthetic data set, decoded and cached before. The reference loop uses the same
images and network. probe.py measures the phases of train.py.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from scripts.bench import report
from scripts.bench.probe import LABELS, OWN, PROJECT
from scripts.bench.session import Session
from scripts.bench.timing import Candidate, describe_rounds, summarise

TRAIN, REFERENCE, HELP = "train.py", "reference loop", "train.py --help"
TOTAL = "start to the end of the first step"
# Seconds, on two cores.
AIMS = {TRAIN: 6.0, OWN: 1.0, HELP: 2.5}


def run(session: Session) -> None:
    """Time the starts of ResNet-18 at batch 128, interleaved."""
    device = session.device
    phases: list[dict[str, float]] = []
    references: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        arguments = ["data=synthetic", f"device={device.type}", "resume=false"]
        candidates = {
            TRAIN: Candidate(lambda: phases.append(start_training(arguments, place))),
            REFERENCE: Candidate(lambda: references.append(start_reference(device, place))),
            HELP: Candidate(lambda: call(["train.py", "--help"], place)),
        }
        # The first start generates and decodes the images, so it is a warm-up.
        times = session.measure("starts", candidates)
    phases = phases[-len(times[TRAIN]) :]
    # Both print the time at the end of their first step, so the end of the process is not counted.
    seconds = {
        TRAIN: [sum(phase.values()) for phase in phases],
        REFERENCE: references[-len(times[REFERENCE]) :],
        HELP: times[HELP],
    }
    session.note(
        f"New processes, {device.type}, decoded images cached. The import of a library includes "
        "everything that it imports."
    )
    session.table(
        f"{TOTAL}, ResNet-18, batch 128; --help to its end",
        start_rows(seconds),
        seconds,
        describe_rounds(times, session.rounds),
    )
    session.table(
        f"{TRAIN}: where the time goes",
        phase_rows(phases),
        {label: [phase[label] for phase in phases] for label in LABELS},
        describe_rounds({TRAIN: times[TRAIN]}, session.rounds),
    )


def call(arguments: list[str], folder: Path) -> str:
    """Run Python in a folder; return its stdout. Raises RuntimeError if it fails.

    Args:
        arguments: a script of the project or `-m` and a module, then its arguments.
        folder: the working directory.

    """
    if arguments[0] != "-m":
        arguments = [str(PROJECT / arguments[0]), *arguments[1:]]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def start_training(arguments: list[str], folder: Path) -> dict[str, float]:
    """Start train.py; return the seconds of each phase up to the end of its first step."""
    out = call(["-m", "scripts.bench.probe", repr(time.time()), *arguments], folder)
    spent = json.loads(out.splitlines()[-1])
    return {label: spent.get(label, 0.0) for label in LABELS}


def start_reference(device: torch.device, folder: Path) -> float:
    """Start the reference loop on the images that train.py has cached; return its seconds."""
    (cached,) = (folder / ".data" / "synthetic").glob(".decoded-*.pt")
    module = ["-m", "scripts.bench.reference"]
    return float(call([*module, repr(time.time()), str(cached), device.type], folder))


def start_rows(seconds: dict[str, list[float]]) -> list[report.Row]:
    """Return the table row of each command, with its aim."""
    return [
        {"command": name, **_spread(values), "aim s": AIMS.get(name, "")}
        for name, values in seconds.items()
    ]


def phase_rows(phases: list[dict[str, float]]) -> list[report.Row]:
    """Return the table row of each phase over the rounds, with its aim."""
    whole = statistics.median(sum(phase.values()) for phase in phases)
    rows = []
    for label in LABELS:
        values = [phase[label] for phase in phases]
        share = f"{statistics.median(values) / whole:.1%}"
        rows.append(
            {
                "phase": label,
                **_spread(values),
                "of the whole": share,
                "aim s": AIMS.get(label, ""),
            }
        )
    return rows


def _spread(values: list[float]) -> report.Row:
    figures = summarise(values)
    return {
        "median s": figures["median_ms"] / 1000,
        "middle half s": f"{figures['q1_ms'] / 1000:.2f} to {figures['q3_ms'] / 1000:.2f}",
    }
