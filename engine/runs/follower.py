"""A run as the ranks other than 0 see it: they keep its history and leave its files to rank 0."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from engine.runs.record import OUT_OF_MEMORY, Run
from engine.system.distributed import rank
from engine.system.resources import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    from engine.data.dataset import Dataset
    from engine.training.evaluate import Evaluated
    from engine.training.loop import TrainedEpoch


class Follower(Run):
    """A run whose directory another rank holds: nothing is read there, and nothing written."""

    def describe(self) -> str:
        """Leave the outcome to rank 0."""
        return ""

    @contextlib.contextmanager
    def open(self, arguments: list[str]) -> Iterator[None]:
        """Tell what stops this rank alone, since rank 0 will only know that it ended."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            key = f"micro_batch={self.config.micro_batch}"
            print(f"error: {key}: on rank {rank()} {OUT_OF_MEMORY}", file=sys.stderr)
            raise SystemExit(2) from None

    def start(self, plan: str, pictures: "Tensor", afresh: bool) -> None:
        """Leave the files to rank 0."""

    def record_epoch(self, row: dict[str, Any], trained: "TrainedEpoch") -> None:
        """Add an epoch to the history."""
        self.history.append(row)

    def record_mistakes(self, data: "Dataset", tested: "Evaluated") -> None:
        """Leave the files to rank 0."""

    def finish(self, status: str, error: str | None = None, chance: float | None = None) -> None:
        """Leave the files to rank 0."""
