"""Files that end in the SHA-256 of all before it, so that no damage goes unseen.

torch.load, as any reader of zip archives, looks for the archive's end and passes over the 40 bytes
behind it.
"""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MARK = b"\nsha256\n"
TRAILER = len(MARK) + hashlib.sha256().digest_size


class HashingWriter:
    """A file open for writing that hashes what passes; it can only be appended to."""

    def __init__(self, file: BinaryIO) -> None:
        """Begin with what is written next."""
        self.file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Do nothing: whoever opened the file flushes it once."""


def write_summed(file: BinaryIO, write: Callable[[HashingWriter], object]) -> None:
    """Let `write` fill a file, then add the checksum of what it wrote."""
    writer = HashingWriter(file)
    write(writer)
    file.write(MARK + writer.hash.digest())


def agrees(file: BinaryIO) -> bool | None:
    """Tell whether a file's content agrees with its checksum; None: it does not end in one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TRAILER))
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(MARK):
        return None
    found, left = hashlib.sha256(), size - TRAILER
    while left and (piece := file.read(min(left, 1 << 20))):
        found.update(piece)
        left -= len(piece)
    file.seek(0)
    return MARK + found.digest() == trailer


def check_written(path: Path) -> None:
    """Read a file back from the disk; raise OSError where it is not what was written."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            # Past the system's copy in memory, to what the disk really holds.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not agrees(file):
            raise OSError(errno.EIO, "read back from the disk, it is not what was written", path)
