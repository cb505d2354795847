"""Several ranks: the processes that torchrun starts, which train one run together.

Owns who this process is among them and every exchange between them but batch norm's
(models/batch_norm.py). With one process each function does its own work alone, so that its callers
read as if there were no ranks. Which examples are whose is training/plan.py's.
"""

import contextlib
import datetime
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.errors import UserError, key_error
from engine.system.signals import Stopped

T = TypeVar("T")
# Rank 0 may decode pictures or write to a slow disk while the others wait. A rank that dies is
# noticed at once, by its closed connections and by torchrun, so patience costs nothing.
PATIENCE_SECONDS = 1800.0


@contextlib.contextmanager
def process_group(longest_wait_seconds: float = 0.0) -> Iterator[None]:
    """Join the ranks that torchrun started while the block lasts; without torchrun do nothing.

    longest_wait_seconds: how long one rank may keep the others waiting beyond what is usual.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    # Gloo takes the host's own values, and everything on the CPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = datetime.timedelta(seconds=PATIENCE_SECONDS + longest_wait_seconds)
    with ended_by_others():
        dist.init_process_group(backend, timeout=timeout)
        try:
            yield
        except (UserError, Stopped):
            dist.destroy_process_group()
            raise
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's place among all; 0 is the one that writes and prints."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Count the ranks."""
    return dist.get_world_size() if _several() else 1


def local_rank() -> int:
    """Return this process's place on its machine, and so its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _several() else 0


def ranks_here() -> int:
    """Count the ranks on this machine, which share its CPUs."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _several() else 1


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def together(function: Callable[[], T]) -> T:
    """Call a function on every rank; where a user's mistake stops one of them, it stops all."""
    if not _several():
        return function()
    result, error = None, None
    try:
        result = function()
    except UserError as raised:
        error = raised
    errors: list[UserError | None] = [None] * world_size()
    dist.all_gather_object(errors, error)
    for found in filter(None, errors):
        raise found
    return result  # type: ignore[return-value]


def first_does(function: Callable[[], T]) -> T:
    """Call a function on rank 0 alone, and give every rank its result."""
    if not _several():
        return function()
    result = [together(function if rank() == 0 else lambda: None)]
    dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def cached_by_first(function: Callable[[], T]) -> T:
    """Call a function that fills a cache: on each machine's first rank, then on its others."""
    if not _several():
        return function()
    first = local_rank() == 0
    result = together(function if first else lambda: None)
    return together(lambda: result if first else function())  # type: ignore[return-value]


def check_alike(key: str, value: object) -> None:
    """Raise UserError on every rank where the ranks hold different values."""
    if not _several():
        return
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    others = [place for place, other in enumerate(values) if other != values[0]]
    if others:
        raise key_error(key, f"rank {others[0]}", "must hold what rank 0 has; the two differ")


def add_over_ranks(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over the ranks; they are on the run's device."""
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor)


def largest(value: int) -> int:
    """Return the largest of the ranks' values."""
    if not _several():
        return value
    values = torch.tensor([value])
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def any_rank(flag: bool) -> bool:
    """Tell whether the flag is set on any rank."""
    return bool(largest(int(flag)))


def distribute(model: nn.Module) -> nn.Module:
    """Let the ranks' gradients be averaged during the last backward pass of a step.

    Buffers are not broadcast: batch norm's move alike on every rank.
    """
    if not _several():
        return model
    with warnings.catch_warnings():
        # torch 2.6 knows the option by no other name.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def gradients_averaged(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Return the context of a step's passes: only the last one's backward averages over ranks."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def ended_by_others() -> Iterator[None]:
    """Leave as an interrupted run does, without a traceback, where another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        if os.environ.get("RANK") == "0":
            reason = "another rank ended or is out of reach"
            advice = "the same command goes on from the last checkpoint"
            print(f"interrupted: {reason}; {advice}", file=sys.stderr)
        raise SystemExit(1) from None


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo raises a plain RuntimeError that begins with the place in its own source.
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
