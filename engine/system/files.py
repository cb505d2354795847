"""Files that are whole or absent, checked by their SHA-256, and JSON without NaN.

A file is written beside its place, flushed, then renamed. One that ends in the SHA-256 of all
before it shows any damage; torch.load, as any reader of zip archives, looks for the archive's end
and passes over the 40 bytes behind it.
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
    """Let `write` fill a file that takes its name only once it is whole and on the disk.

    `before_renaming` gets the file as it lies there, and may refuse it by raising.
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
    """Write UTF-8 text as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def previous_of(path: Path) -> Path:
    """Return where the file before this one, a checkpoint, is kept."""
    return path.with_suffix(f".prev{path.suffix}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error while a file is written, such as of a full disk, name the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides what stopped it behind an error of its own.
        found = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(found, OSError):
            raise
        if found.filename is None:
            found.filename = str(path)
        raise found from None


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


def checksum_agrees(file: BinaryIO) -> bool | None:
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
        if not checksum_agrees(file):
            raise OSError(errno.EIO, "read back from the disk, it is not what was written", path)


def plain(value: Any) -> Any:
    """Replace what JSON has no word for, NaN and the infinities, by null, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def json_line(row: Mapping[str, Any]) -> str:
    """Write one line of JSON without NaN."""
    return json.dumps(plain(row), allow_nan=False) + "\n"


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines; a last line that is still being written is left out.

    Raises UserError for any other that is damaged: a report without its runs would lose them.
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
            raise UserError(f"{path}: line {number} is no JSON object; mend or remove it")
        yield value


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    # A rename is on the disk only once its directory is; some file systems refuse, and need none.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
