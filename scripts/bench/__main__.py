"""Measure speed, compared with references: `python -m scripts.bench [PART ...]`.

All parts are measured by default. They share the time of --minutes; each candidate gets at least
two rounds, so a slow machine may need longer. Each table is printed and written as soon as it is
measured: to a JSON file for this kind of machine in results/bench, and to the page README.md there.
The parts are:

data        the input pipeline, compared with a DataLoader
epoch       whole training epochs, compared with the reference loop
ladder      the training step at batch 128 to 8192              (--model)
optimizers  one optimizer step, compared with torch's and other packages' optimizers; and one
            training step with each optimizer                   (--model)
profile     the time of a training step by type of operation    (--model, --batch)
rest        the time of an epoch outside of training steps      (--model)
startup     from the command to the end of the first step, and --help
step        one training step with SGD and with LARS            (--model)
"""

import argparse
import contextlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from engine.cli import FlagParser, check_ranks, exit_status
from engine.config.schema import ModelName
from engine.errors import UserError
from scripts.bench import report
from scripts.bench.compare import Earlier
from scripts.bench.progress import Progress

# Each part's most rounds of a candidate, and the options that its function `run` takes. The modules
# import torch, so they are imported once the first line of progress is printed.
PARTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "data": (5, ()),
    "epoch": (5, ()),
    "ladder": (7, ("model",)),
    "optimizers": (40, ("model",)),
    "profile": (5, ("model", "batch")),
    "rest": (7, ("model",)),
    "startup": (7, ()),
    "step": (25, ("model",)),
}


def main() -> int:
    """Run the parts that the command line names, all by default; return the exit status."""
    arguments = read_arguments()
    parts = list(dict.fromkeys(arguments.parts)) or list(PARTS)
    earlier = Earlier(arguments.against, parts) if arguments.against else None
    progress = Progress(arguments.minutes)
    progress.say(f"{', '.join(parts)}: loading torch")
    try:
        from scripts.bench.runner import measure_parts

        measure_parts(
            arguments,
            {part: arguments.rounds or PARTS[part][0] for part in parts},
            {part: options_of(part, arguments) for part in parts},
            progress,
            earlier,
        )
    finally:
        progress.clear()
    return 0


def read_arguments() -> argparse.Namespace:
    """Read and check the command line; raise UserError on a mistake."""
    check_ranks(False)
    parser = FlagParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="time for the whole command; default: 5"
    )
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    parser.add_argument(
        "--rounds", type=int, help="the most timings per candidate; default: depends on the part"
    )
    parser.add_argument("--model", help="the network; default: depends on the part")
    parser.add_argument("--batch", type=int, help="the batch size to profile; default: 128")
    parser.add_argument("--folder", type=Path, default=Path("results/bench"))
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="an earlier results file to compare with"
    )
    arguments = parser.parse_args()
    check_arguments(arguments)
    check_folder(arguments.folder)
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise UserError if an option has a value that is not allowed."""
    models = get_args(ModelName)
    for part in arguments.parts:
        if part not in PARTS:
            raise UserError(f"{part}: must be one of {', '.join(PARTS)}")
    if not (math.isfinite(arguments.minutes) and arguments.minutes > 0):
        raise UserError(f"--minutes={arguments.minutes:g}: must be a number above 0")
    if arguments.rounds is not None and arguments.rounds < 2:
        raise UserError(f"--rounds={arguments.rounds}: must be at least 2")
    if arguments.model is not None and arguments.model not in models:
        raise UserError(f"--model={arguments.model}: must be one of {', '.join(models)}")
    if arguments.batch is not None and arguments.batch < 2:
        raise UserError(f"--batch={arguments.batch}: must be at least 2")
    for name in ("model", "batch"):
        takers = [part for part, (_, options) in PARTS.items() if name in options]
        value = getattr(arguments, name)
        if value is not None and not set(takers) & set(arguments.parts):
            raise UserError(f"--{name}={value}: needs one of the parts {', '.join(takers)}")
    if arguments.device not in (None, "cpu", "cuda"):
        raise UserError(f"--device={arguments.device}: must be cpu or cuda")


def check_folder(folder: Path) -> None:
    """Raise UserError if results cannot be written to a folder; create nothing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        report.read_folder(folder)
    except OSError as error:
        raise UserError(f"--folder={folder}: cannot be written ({error.strerror})") from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def options_of(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the command line's options that a part takes."""
    return {name: getattr(arguments, name) for name in PARTS[part][1]}


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
