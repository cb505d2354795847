"""Rebuild groups' pages, tables and plots from their runs: `python -m scripts.tables group=NAME`.

Each plot is a PNG and an SVG file. With group=A,B both groups are also drawn in one plot,
results/A+B.png. With target_accuracy=85 the reports show the time to reach 85 %, whatever target
the runs had, and the critical batch size if runs of one optimizer reach it at three batches or
more. The runs are only read, so the command can be used while a sweep runs. A page includes
results/<group>/notes.md, which is written by hand.
"""

import sys

from engine.cli import ReportArguments, exit_status, read_arguments
from engine.report.write import compare, load_rows, write_report


def main() -> int:
    """Write the groups' reports; return the exit status."""
    arguments = read_arguments(sys.argv[1:], ReportArguments, __doc__)
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
