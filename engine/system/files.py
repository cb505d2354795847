"""Files that are whole or absent: written beside their place, flushed, then renamed."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


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
