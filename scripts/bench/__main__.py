"""Measure speed, compared with references: `python -m scripts.bench [PART ...]`.

All parts are measured by default. Results are written to results/bench/<device>.json and .md, next
to those of the other parts. The parts are:

data      the input pipeline, compared with a DataLoader
epoch     whole training epochs, compared with the reference loop
ladder    the training step at batch 128 to 8192              (--model)
lars      one optimizer step, compared with torch's SGD and other LARS implementations
profile   the time of a training step by type of operation    (--model, --batch)
rest      the time of an epoch outside of training steps      (--model)
startup   from the command to the end of the first step, and --help
step      one training step with SGD and with LARS            (--model)
"""

import argparse
import inspect
import sys
import tempfile
from pathlib import Path

import torch

from engine.cli import check_ranks, exit_status, refuse_flags
from engine.errors import UserError
from engine.training.build import MODELS
from scripts.bench import data, epoch, ladder, lars, profile, report, rest, startup, step

# Each part's function and default number of rounds. The function takes a device and the rounds, and
# returns a dictionary with `tables`, a list of (title, rows), and other figures.
PARTS = {
    "data": (data.run, 5),
    "epoch": (epoch.run, 5),
    "ladder": (ladder.run, 7),
    "lars": (lars.run, 40),
    "profile": (profile.run, 5),
    "rest": (rest.run, 7),
    "startup": (startup.run, 7),
    "step": (step.run, 25),
}


def main() -> int:
    """Run the parts that the command line names, all by default; return the exit status."""
    arguments = read_arguments()
    device = torch.device(arguments.device)
    for part in arguments.parts or PARTS:
        measure, rounds = PARTS[part]
        options = {name: getattr(arguments, name) for name in options_of(part)}
        result = measure(device, arguments.rounds or rounds, **options)
        print(report.markdown(part, result), flush=True)
        report.write(part, result, arguments.folder, device.type)
    return 0


def read_arguments() -> argparse.Namespace:
    """Read and check the command line; raise UserError on a mistake."""
    check_ranks(False)
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = refuse_flags  # type: ignore[method-assign]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--rounds", type=int, help="timings per candidate; default: depends on the part"
    )
    parser.add_argument("--model", help="the network; default: depends on the part")
    parser.add_argument("--batch", type=int, help="the batch size to profile; default: 128")
    parser.add_argument("--folder", type=Path, default=Path("results/bench"))
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            raise UserError(f"{part}: must be one of {', '.join(PARTS)}")
    if arguments.rounds is not None and arguments.rounds < 2:
        raise UserError(f"--rounds={arguments.rounds}: must be at least 2")
    if arguments.model is not None and arguments.model not in MODELS:
        raise UserError(f"--model={arguments.model}: must be one of {', '.join(MODELS)}")
    if arguments.batch is not None and arguments.batch < 2:
        raise UserError(f"--batch={arguments.batch}: must be at least 2")
    for name in ("model", "batch"):
        takers = [part for part in PARTS if name in options_of(part)]
        value = getattr(arguments, name)
        if value is not None and not set(takers) & set(arguments.parts):
            raise UserError(f"--{name}={value}: needs one of the parts {', '.join(takers)}")
    if arguments.device not in ("cpu", "cuda"):
        raise UserError(f"--device={arguments.device}: must be cpu or cuda")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: this machine has no CUDA device; use --device=cpu")
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=arguments.folder).close()
    except OSError as error:
        raise UserError(
            f"--folder={arguments.folder}: cannot be written ({error.strerror})"
        ) from error
    return arguments


def options_of(part: str) -> list[str]:
    """Return the names of the command-line options that a part takes."""
    taken = inspect.signature(PARTS[part][0]).parameters
    return [name for name in ("model", "batch") if name in taken]


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
