"""Show how far groups' sweeps are: `python -m scripts.status group=NAME,NAME`. It only reads."""

import sys
from dataclasses import dataclass

from engine.cli import exit_status, read_arguments
from engine.progress import describe_progress


@dataclass(frozen=True)
class Arguments:
    """group: the groups whose runs are shown, results/runs/<group>, separated by commas."""

    group: str = "default"


def main() -> int:
    """Print the overviews; return the exit status."""
    groups = read_arguments(Arguments, __doc__).group.split(",")
    print("\n\n".join(map(describe_progress, groups)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
