"""A tree of images in class folders: what counts as a class and an image, and what is left out.

Classes, images and their order are those of torchvision's ImageFolder, less what is hidden: names
with a leading dot, and the folders that some systems put into every folder.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError, key_error, readable
from engine.system.text import shown

# As torchvision.datasets.folder.IMG_EXTENSIONS; reading a cache needs no torchvision.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Thumbnails, leftovers and wastebaskets of Synology and QNAP, macOS, Windows, Linux.
SYSTEM_FOLDERS = (
    "@eaDir", "#recycle", "@Recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information",
    "lost+found",
)  # fmt: skip
# A line names this many classes or suffixes, and counts the others.
NAMED = 5


@dataclass(frozen=True)
class Found:
    """A split's class folders, its images with the index of their class, and what is left out."""

    classes: list[str]
    images: list[tuple[str, int]]
    left_out: Counter[str]

    def describe_left_out(self) -> str:
        """Count what is left out, by suffix."""
        order = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        return named(f"{count:,} {kind}" for kind, count in order)


def find_images(root: Path, split: str) -> Found:
    """List a split's classes and images; raise UserError where there are none."""
    top, found = str(root / split), Found([], [], Counter())
    by_class: dict[str, list[str]] = {}
    try:
        # As ImageFolder: by folder, then by file.
        for parent, folders, files, hidden in sorted(walk(top)):
            found.left_out["hidden"] += hidden
            if parent == top:
                found.left_out["in no class folder"] += len(files)
                by_class = {name: [] for name in sorted(folders)}
                continue
            images = by_class[os.path.relpath(parent, top).split(os.sep)[0]]
            for file in files:
                if file.lower().endswith(SUFFIXES):
                    images.append(os.path.join(parent, file))
                else:
                    suffix = os.path.splitext(file)[1].lower()
                    found.left_out[shown(suffix) if suffix else "without a suffix"] += 1
    except OSError as error:
        raise cannot_be_read(root, error) from error
    # Unary plus drops what was counted and is 0.
    found = Found(list(by_class), [], +found.left_out)
    for index, images in enumerate(by_class.values()):
        found.images.extend((path, index) for path in images)
    left_out = f"; left out: {found.describe_left_out()}" if found.left_out else ""
    images_are = f"images end in {', '.join(SUFFIXES)}{left_out}"
    if not by_class:
        allowed = f"{split}: Couldn't find any class folder; needs {split}/<class>/*{left_out}"
        raise key_error("data.root", shown(str(root)), allowed)
    if empty := [name for name, images in by_class.items() if not images]:
        allowed = f"{split}: Found no valid file for the classes {named(map(shown, empty))}"
        raise key_error("data.root", shown(str(root)), f"{allowed}; {images_are}")
    return found


def walk(top: str) -> Iterator[tuple[str, list[str], list[str], int]]:
    """Go through a folder: parent, its folders, its files, how many of either are hidden.

    Raises OSError for a folder that cannot be listed.
    """
    for parent, folders, files in os.walk(top, onerror=_raise, followlinks=True):
        count = len(folders) + len(files)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        files = sorted(name for name in files if not name.startswith("."))
        yield parent, folders, files, count - len(folders) - len(files)


def class_names(root: Path, splits: Sequence[tuple[str, Found]]) -> list[str]:
    """Return the names of the classes; raise UserError unless each split has the same.

    A folder whose name is no UTF-8 text is a class like any other, under a readable name.
    """
    (first, ours), *others = splits
    for split, found in others:
        if found.classes != ours.classes:
            allowed = f"{first} and {split} must hold the same class folders"
            differ = differences(first, ours.classes, split, found.classes)
            raise key_error("data.root", shown(str(root)), f"{allowed}; {differ}")
    names = [readable(name) for name in ours.classes]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        allowed = f"{first}: two class folders would be called {named(map(shown, twice))}"
        raise key_error("data.root", shown(str(root)), f"{allowed}; rename one")
    return names


def differences(here: str, ours: Sequence[str], there: str, theirs: Sequence[str]) -> str:
    """Name what either of two lists of classes has and the other lacks."""
    parts = []
    for place, some, others in ((here, ours, theirs), (there, theirs, ours)):
        # Letters with accents have two forms in Unicode, which look the same.
        forms = {unicodedata.normalize("NFC", name) for name in set(others) - set(some)}
        alone = [
            ascii(name) if unicodedata.normalize("NFC", name) in forms else shown(name)
            for name in some
            if name not in set(others)
        ]
        if alone:
            parts.append(f"only {place} has {named(alone)}")
    return ", ".join(parts) or "their order differs"


def named(names: Iterable[str]) -> str:
    """Name the first few, and count the others."""
    listed = list(names)
    more = [f"{len(listed) - NAMED:,} more"] if len(listed) > NAMED else []
    return ", ".join([*listed[:NAMED], *more])


def cannot_be_read(root: Path, error: OSError) -> UserError:
    """Word that a file or folder of a tree cannot be read."""
    allowed = f"{shown(str(error.filename))} cannot be read ({error.strerror})"
    return key_error("data.root", shown(str(root)), allowed)


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def _raise(error: OSError) -> None:
    raise error
