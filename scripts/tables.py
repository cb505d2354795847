"""Rebuild groups' pages, tables and plots from their runs: `python -m scripts.tables group=NAME`.

With group=A,B it also draws the groups in one plot, results/A+B.png. It only reads the runs, so it
may be used while a sweep is under way.
"""

import sys

from engine.cli import exit_status, read_groups
from engine.report import compare, load_rows, write_report


def main() -> int:
    """Write the tables; return the exit status."""
    groups = read_groups(__doc__)
    for group in groups:
        load_rows(group)
    for group in groups:
        print(write_report(group))
    if len(groups) > 1:
        print(f"written   {compare(groups)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
