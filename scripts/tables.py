"""Rebuild groups' pages, tables and plots from their runs: `python -m scripts.tables group=NAME`.

With group=A,B it also draws the groups in one plot, results/A+B.png. target_accuracy=85 tells the
time to 85 %, whatever the runs were given. It only reads the runs, so it may be used while a sweep
is under way.
"""

import sys
from dataclasses import dataclass

from engine.cli import Groups, exit_status, read_arguments
from engine.config.schema import Percent
from engine.report.write import compare, load_rows, write_report


@dataclass(frozen=True)
class Arguments(Groups):
    """The groups, and the accuracy in % whose time their reports tell."""

    target_accuracy: Percent | None = None


def main() -> int:
    """Write the tables; return the exit status."""
    arguments = read_arguments(sys.argv[1:], Arguments, __doc__)
    groups = arguments.names
    for group in groups:
        load_rows(group)
    for group in groups:
        print(write_report(group, arguments.target_accuracy))
    if len(groups) > 1:
        print(f"written   {compare(groups)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
