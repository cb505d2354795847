"""Writing a checkpoint beside training: on a GPU the write takes as long as an epoch."""

import threading
from collections.abc import Callable


class Saver:
    """A thread that writes one file at a time while training goes on; left only when it has."""

    def __init__(self) -> None:
        """Begin with nothing to write."""
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def __enter__(self) -> "Saver":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the file; what stopped it counts for more than what stopped training."""
        self.wait()

    def start(self, write: Callable[[], None]) -> None:
        """Write, once the file before is written; raise what stopped that one."""
        self.wait()
        self.thread = threading.Thread(target=self._run, args=(write,), name="saver")
        self.thread.start()

    def wait(self) -> None:
        """Wait until nothing is left to write; raise what stopped it."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self.error = error
