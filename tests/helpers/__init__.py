"""What tests of several folders share: here the least, in the modules below by theme."""

from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
# Of the tree of images that the fixtures `tree` and `drawn_tree` give.
CLASSES = ("cat", "dog", "ship")


class Outcome(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


def files_below(folder: Path) -> set[str]:
    """List every file and folder below, relative."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
