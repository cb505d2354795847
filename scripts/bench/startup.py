"""From a command to the end of its first training step, in fresh processes, and --help.

The data is the generated set, decoded and cached before; the reference loop starts beside it on the
same pictures, with the same network. probe.py tells where the time of train.py goes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from scripts.bench import report
from scripts.bench.probe import LABELS, OWN, PROJECT
from scripts.bench.timing import Candidate, interleave, summarise

TRAIN, REFERENCE, HELP = "train.py", "reference loop", "train.py --help"
TOTAL = "start to the end of the first step"
# Seconds, on two cores.
AIMS = {TRAIN: 6.0, OWN: 1.0, HELP: 2.5}


def run(device: torch.device, rounds: int) -> dict[str, Any]:
    """Time the starts of ResNet-18 at batch 128, interleaved; report medians and spread."""
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
        # The first start draws the pictures and decodes them, and is left out.
        times = interleave(candidates, rounds, device, warmup=1)
    phases = phases[-rounds:]
    # Both tell when their first step was done; what a process does to end is not counted.
    seconds = {
        TRAIN: [sum(phase.values()) for phase in phases],
        REFERENCE: references[-rounds:],
        HELP: times[HELP],
    }
    return {
        "environment": report.environment(device),
        "rounds": rounds,
        "notes": [
            f"Fresh processes, {device.type}, decoded pictures cached; medians of {rounds} rounds. "
            "Imports are charged to what the project imports, with all that imports in turn."
        ],
        "figures": {"seconds": seconds, "phases": phases},
        "tables": [
            (f"{TOTAL}, ResNet-18, batch 128; --help to its end", start_rows(seconds)),
            (f"{TRAIN}: where the time goes", phase_rows(phases)),
        ],
    }


def call(arguments: list[str], folder: Path) -> str:
    """Run Python in a folder as a user would from the project; return what it prints."""
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
    """Start train.py and return the seconds of each phase up to the end of its first step."""
    out = call(["-m", "scripts.bench.probe", repr(time.time()), *arguments], folder)
    spent = json.loads(out.splitlines()[-1])
    return {label: spent.get(label, 0.0) for label in LABELS}


def start_reference(device: torch.device, folder: Path) -> float:
    """Start the reference loop on the pictures that train.py has cached; return its seconds."""
    (cached,) = (folder / ".data" / "synthetic").glob(".decoded-*.pt")
    module = ["-m", "scripts.bench.reference"]
    return float(call([*module, repr(time.time()), str(cached), device.type], folder))


def start_rows(seconds: dict[str, list[float]]) -> list[report.Row]:
    """Make a row of each command, beside its aim."""
    return [
        {"command": name, **_spread(values), "aim s": AIMS.get(name, "")}
        for name, values in seconds.items()
    ]


def phase_rows(phases: list[dict[str, float]]) -> list[report.Row]:
    """Make a row of each phase over the rounds, beside its aim."""
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
