"""Rebuild a group's tables and plots from its runs: `python -m scripts.tables group=NAME`.

It only reads the runs, so it may be used while a sweep is under way.
"""

import sys
from dataclasses import dataclass

from engine.cli import exit_status, read_arguments
from engine.report import write_report


@dataclass(frozen=True)
class Arguments:
    """group: the group whose tables are rebuilt, results/<group>."""

    group: str = "default"


def main() -> int:
    """Write the tables; return the exit status."""
    arguments = read_arguments(Arguments, __doc__)
    print(write_report(arguments.group))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
