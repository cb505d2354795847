"""Measure speed beside references: `python -m scripts.bench [PART ...]`, all parts by default.

A part is a function from a device and a number of rounds to a dictionary with `tables`, a list of
(title, rows), and whatever figures are worth keeping. Results go to results/bench/<device>.json
and .md, beside those of the other parts.
"""

import argparse
import sys
from pathlib import Path

import torch

from engine.cli import check_ranks, exit_status
from engine.parse import UserError
from scripts.bench import data, epoch, lars, report, step

# Each with the rounds it takes: a step of an optimizer is short, an epoch is not.
PARTS = {
    "data": (data.run, 5),
    "epoch": (epoch.run, 5),
    "lars": (lars.run, 40),
    "step": (step.run, 25),
}


def main() -> int:
    """Run the parts that the command line names; return the exit status."""
    check_ranks(False)
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help="timings of each candidate; default: the part's")
    parser.add_argument("--folder", type=Path, default=Path("results/bench"))
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            raise UserError(f"{part}: must be one of {', '.join(PARTS)}")
    if arguments.rounds is not None and arguments.rounds < 2:
        raise UserError(f"--rounds={arguments.rounds}: must be at least 2")
    if arguments.device not in ("cpu", "cuda"):
        raise UserError(f"--device={arguments.device}: must be cpu or cuda")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: there is no CUDA device here")
    device = torch.device(arguments.device)
    for part in arguments.parts or PARTS:
        measure, rounds = PARTS[part]
        result = measure(device, arguments.rounds or rounds)
        print(report.markdown(part, result))
        report.write(part, result, arguments.folder, device.type)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
