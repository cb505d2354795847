"""Helpers that tests in several folders share. The modules below are grouped by theme."""

from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
# The classes in the image trees of the fixtures `tree` and `drawn_tree`.
CLASSES = ("cat", "dog", "ship")


class Outcome(NamedTuple):
    """A command's exit status, stdout and stderr."""

    status: int
    out: str
    err: str


def files_below(folder: Path) -> set[str]:
    """Return the relative path of every file and folder below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
