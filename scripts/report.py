"""Write groups as one HTML page to open in a browser: `python -m scripts.report group=NAME`.

The page is results/<group>/report.html. It is one file of about 5 MB that needs no network: the
table, which can be sorted and filtered, plots with the values under the pointer, each run's choices
and command, and two runs side by side. group=A,B writes both groups to results/A+B.html. With
target_accuracy=85 the page shows the steps and the time to reach 85 %. The runs are only read, so
the command can be used while a sweep runs. It needs plotly.
"""

import sys

from engine.cli import ReportArguments, exit_status, read_arguments
from engine.report.html import write_html


def main() -> int:
    """Write the page; return the exit status."""
    arguments = read_arguments(sys.argv[1:], ReportArguments, __doc__)
    print(f"written   {write_html(arguments.names, arguments.target_accuracy)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
