"""Show how far a group's sweep is: `python -m scripts.status group=NAME`. It only reads."""

import sys
from dataclasses import dataclass

from engine.cli import exit_status, read_arguments
from engine.progress import describe_progress


@dataclass(frozen=True)
class Arguments:
    """group: the group whose runs are shown, results/runs/<group>."""

    group: str = "default"


def main() -> int:
    """Print the overview; return the exit status."""
    print(describe_progress(read_arguments(Arguments, __doc__).group))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
