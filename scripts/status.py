"""Print the progress of groups' sweeps: `python -m scripts.status group=NAME,NAME`.

It writes no file.
"""

import sys

from engine.cli import Groups, exit_status, read_arguments
from engine.report.status import describe_progress


def main() -> int:
    """Print each group's progress; return the exit status."""
    groups = read_arguments(sys.argv[1:], Groups, __doc__).names
    print("\n\n".join(map(describe_progress, groups)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
