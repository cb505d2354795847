"""Ranks: the processes that torchrun starts to train one run together.

This module knows this process's rank, and does all communication between ranks except batch norm's
(models/batch_norm.py). Without torchrun each function works locally, so callers need no special
case for one process. training/plan.py assigns examples to ranks.
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
# Rank 0 may decode images or write to a slow disk while the others wait. A long timeout does not
# delay the detection of a dead rank: its connections close, and torchrun notices.
PATIENCE_SECONDS = 1800.0


@contextlib.contextmanager
def process_group(longest_wait_seconds: float = 0.0) -> Iterator[None]:
    """Join the process group of torchrun's ranks inside the block; do nothing without torchrun.

    Args:
        longest_wait_seconds: time added to the default timeout, for a rank that keeps the others
            waiting.

    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    # Gloo exchanges CPU tensors and Python objects; NCCL exchanges CUDA tensors.
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
    """Return this process's rank over all machines. Only rank 0 writes and prints."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Return the number of ranks over all machines."""
    return dist.get_world_size() if _several() else 1


def local_rank() -> int:
    """Return this process's rank on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _several() else 0


def ranks_here() -> int:
    """Return the number of ranks on this machine, which share its CPUs."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _several() else 1


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def together(function: Callable[[], T]) -> T:
    """Call a function on every rank; if it raises UserError on one, raise that on all."""
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
    """Call a function on rank 0 only, and return its result on every rank.

    A UserError that it raises is raised on every rank.
    """
    if not _several():
        return function()
    result = [together(function if rank() == 0 else lambda: None)]
    dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def cached_by_first(function: Callable[[], T]) -> T:
    """Call a function that fills a cache on each machine's first rank, then on its other ranks."""
    if not _several():
        return function()
    first = local_rank() == 0
    result = together(function if first else lambda: None)
    return together(lambda: result if first else function())  # type: ignore[return-value]


def check_equal(key: str, value: object) -> None:
    """Raise UserError on every rank if the ranks pass different values."""
    if not _several():
        return
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    others = [place for place, other in enumerate(values) if other != values[0]]
    if others:
        raise key_error(
            key,
            f"rank {others[0]}",
            "its data differ from those of rank 0; give every rank the same data",
        )


def add_over_ranks(*tensors: Tensor) -> None:
    """Replace each tensor in place by its sum over the ranks. Tensors are on the run's device."""
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
    """Return True if the flag is set on any rank."""
    return bool(largest(int(flag)))


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model so that its gradients are averaged over the ranks.

    Buffers are not broadcast, because batch norm's buffers stay equal on all ranks.
    """
    if not _several():
        return model
    with warnings.catch_warnings():
        # torch 2.6 has the option only under this name, which later versions deprecate.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def gradients_averaged(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Return the context of one micro-batch; it averages gradients over ranks only if `last`."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def ended_by_others() -> Iterator[None]:
    """Exit with status 1 and no traceback if the connection to another rank is lost."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        if os.environ.get("RANK") == "0":
            reason = "another rank ended or cannot be reached"
            advice = "run the same command again to resume from the last checkpoint"
            print(f"interrupted: {reason}; {advice}", file=sys.stderr)
        raise SystemExit(1) from None


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo raises a plain RuntimeError whose text contains a path in Gloo's own source.
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
