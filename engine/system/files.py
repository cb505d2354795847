"""Atomic writes, SHA-256 checksums, and JSON without NaN.

A file is written under a temporary name in the same directory, flushed to disk, then renamed. A
checkpoint ends with a trailer of 40 bytes: a marker and the SHA-256 of all bytes before it, so any
damage is detected. torch.load ignores the trailer, because a reader of zip archives searches for
the end of the archive.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import UserError

MARK = b"\nsha256\n"
TRAILER = len(MARK) + hashlib.sha256().digest_size


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    before_renaming: Callable[[Path], object] = lambda temporary: None,
) -> None:
    """Write a file that gets its name only once it is complete and on disk.

    Args:
        path: the final name.
        write: writes the content to an open binary file.
        before_renaming: receives the temporary path. If it raises, the file is removed and an
            existing file at `path` stays.

    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        before_renaming(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text with `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def previous_of(path: Path) -> Path:
    """Return the path of the previous version of a checkpoint: `x.pt` gives `x.prev.pt`."""
    return path.with_suffix(f".prev{path.suffix}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError that is raised while the file is written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a separate RuntimeError while it handles the OSError.
        found = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(found, OSError):
            raise
        if found.filename is None:
            found.filename = str(path)
        raise found from None


class HashingWriter:
    """A writable file object that computes the SHA-256 of all data written. It cannot seek."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write the data, add it to the hash, and return the number of bytes written."""
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Do nothing: the caller that opened the file flushes it once."""


def write_summed(file: BinaryIO, write: Callable[[HashingWriter], object]) -> None:
    """Write a file's content with `write`, then append its checksum."""
    writer = HashingWriter(file)
    write(writer)
    file.write(MARK + writer.hash.digest())


def checksum_agrees(file: BinaryIO) -> bool | None:
    """Return True if a file's content matches its checksum, None if it has no checksum."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TRAILER))
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(MARK):
        return None
    found, remaining = hashlib.sha256(), size - TRAILER
    while remaining and (piece := file.read(min(remaining, 1 << 20))):
        found.update(piece)
        remaining -= len(piece)
    file.seek(0)
    return MARK + found.digest() == trailer


def check_written(path: Path) -> None:
    """Read a file back from disk; raise OSError if its checksum does not match."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            # Drop the page cache, so that the data is read from the disk itself.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not checksum_agrees(file):
            raise OSError(
                errno.EIO, "the file read back from disk differs from what was written", path
            )


def plain(value: Any) -> Any:
    """Replace NaN and infinities by None at any depth, since JSON cannot express them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def json_line(row: Mapping[str, Any]) -> str:
    """Return one line of JSON, with null in place of NaN and infinities."""
    return json.dumps(plain(row), allow_nan=False) + "\n"


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects in a file of JSON lines; yield nothing if it cannot be read.

    An incomplete last line is skipped, since a process may still be writing it. Raises UserError
    for any other line that is not a JSON object, so that a report does not silently lose runs.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                return
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; fix or remove it")
        yield value


def _umask() -> int:
    # The umask can only be read by setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    # A rename is on disk only once the directory is synced. Some file systems refuse to sync a
    # directory, and do not need it.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
