"""Directory trees of images in class folders: which classes and images they contain.

Classes, images and their order are those of torchvision's ImageFolder, without hidden names: those
with a leading dot, and the folders that some systems create in every folder.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError, key_error, readable
from engine.system.text import shown

# Equal to torchvision.datasets.folder.IMG_EXTENSIONS, so that reading a cache needs no torchvision.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Thumbnail, recovery and trash folders of Synology, QNAP, macOS, Windows and Linux.
SYSTEM_FOLDERS = (
    "@eaDir", "#recycle", "@Recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information",
    "lost+found",
)  # fmt: skip
# A message names this many classes or suffixes, and counts the others.
NAMED = 5


@dataclass(frozen=True)
class Found:
    """The content of one split.

    Attributes:
        classes: names of the class folders, sorted.
        images: (path, index of the class) of each image.
        left_out: number of other files, by lower-case suffix or reason.

    """

    classes: list[str]
    images: list[tuple[str, int]]
    left_out: Counter[str]

    def describe_left_out(self) -> str:
        """Return the counts of `left_out` as text, the largest first."""
        order = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        return named(f"{count:,} {reason}" for reason, count in order)


def find_images(root: Path, split: str) -> Found:
    """Return a split's classes and images.

    Args:
        root: the tree.
        split: its folder, "train" or "test".

    Raises:
        UserError: there is no class folder, a class has no image, or a folder cannot be read.

    """
    top, found = str(root / split), Found([], [], Counter())
    by_class: dict[str, list[str]] = {}
    try:
        # ImageFolder's order: by folder, then by file.
        for parent, folders, files, hidden in sorted(walk(top)):
            found.left_out["hidden"] += hidden
            if parent == top:
                found.left_out["outside class folders"] += len(files)
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
    # Unary plus drops zero counts.
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
    """Yield (parent, folders, files, number of hidden names) for each folder, following links.

    Hidden names are in neither list. OSError is raised if a folder cannot be listed.
    """
    for parent, folders, files in os.walk(top, onerror=_raise, followlinks=True):
        count = len(folders) + len(files)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        files = sorted(name for name in files if not name.startswith("."))
        yield parent, folders, files, count - len(folders) - len(files)


def class_names(root: Path, splits: Sequence[tuple[str, Found]]) -> list[str]:
    """Return the names of the classes, which each split must have.

    If the name of a folder is not valid UTF-8, the class has a readable name with escapes.

    Args:
        root: the tree, for error messages.
        splits: (name, content) of each split.

    Raises:
        UserError: the splits differ, or two classes have the same readable name.

    """
    (first, ours), *others = splits
    for split, found in others:
        if found.classes != ours.classes:
            allowed = f"{first} and {split} must have the same class folders"
            differ = differences(first, ours.classes, split, found.classes)
            raise key_error("data.root", shown(str(root)), f"{allowed}; {differ}")
    names = [readable(name) for name in ours.classes]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        allowed = f"{first}: two class folders have the readable name {named(map(shown, twice))}"
        raise key_error("data.root", shown(str(root)), f"{allowed}; rename one")
    return names


def differences(here: str, ours: Sequence[str], there: str, theirs: Sequence[str]) -> str:
    """Return text about the classes that only one of two lists has.

    Args:
        here: what to call the first list.
        ours: its classes.
        there: what to call the second list.
        theirs: its classes.

    """
    parts = []
    for place, some, others in ((here, ours, theirs), (there, theirs, ours)):
        # An accented letter has two Unicode forms that look the same; escapes show the difference.
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
    """Return the first `NAMED` names, and the number of others, as text."""
    listed = list(names)
    more = [f"{len(listed) - NAMED:,} more"] if len(listed) > NAMED else []
    return ", ".join([*listed[:NAMED], *more])


def cannot_be_read(root: Path, error: OSError) -> UserError:
    """Return the UserError for a file or folder of a tree that cannot be read."""
    allowed = f"{shown(str(error.filename))} cannot be read ({error.strerror})"
    return key_error("data.root", shown(str(root)), allowed)


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def _raise(error: OSError) -> None:
    raise error
