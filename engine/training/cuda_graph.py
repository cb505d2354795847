"""A training step as one CUDA graph: captured after a few steps, replayed for each full batch.

What a replay reads and writes lies at fixed addresses: the batch's indices, the epoch's draws and
the learning rates are copied there first. Steps that differ, an epoch's short last one and those
whose layers are logged, are taken launch by launch, as are all where no graph can be captured.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.data.augment import EpochDraws
from engine.system.runtime import Runtime

T = TypeVar("T")
# Libraries choose their kernels and ask for workspaces in the first steps of a shape.
WARM_UP_STEPS = 3


def captures(runtime: Runtime) -> bool:
    """Tell whether a run's steps are captured: on one CUDA device."""
    return runtime.device.type == "cuda" and runtime.world_size == 1


def capture(function: Callable[[], T]) -> tuple[Callable[[], None], T]:
    """Capture what a function does on the device; return what does it again, and its result.

    The result's tensors hold their values after a replay; while captured, nothing is computed.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads of the process may do as they like meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class StepGraph(Generic[T]):
    """The graph of a step, once there is one."""

    def __init__(
        self,
        step: Callable[[Tensor, EpochDraws], T],
        batch: int,
        give_up: Callable[[], None],
        starting_up: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Wait for the first full batches before capturing.

        step: takes a whole step on a batch's indices, int64 [B], and an epoch's draws; what it
        returns are tensors. give_up: undoes what a capture that failed has left behind.
        starting_up: a context that counts its seconds as start-up instead of training.
        """
        self.step = step
        self.batch = batch
        self.give_up = give_up
        self.starting_up = starting_up
        self.warm_up = WARM_UP_STEPS
        self.failed = False
        self.captured: CapturedStep[T] | None = None

    def replay(self, index: Tensor, draws: EpochDraws) -> T | None:
        """Take a step; return what it returns, valid until the next, or None where it cannot be."""
        if self.failed or len(index) != self.batch:
            return None
        if self.warm_up > 0:
            self.warm_up -= 1
            return None
        if self.captured is None:
            with self.starting_up():
                self.captured = self.capture(index, draws)
        return None if self.captured is None else self.captured(index, draws)

    def capture(self, index: Tensor, draws: EpochDraws) -> "CapturedStep[T] | None":
        """Capture a step on a batch like this one; print why and return None if that fails."""
        try:
            return CapturedStep(self.step, index, draws)
        except RuntimeError as error:
            self.failed = True
            self.give_up()
            reason = " ".join(str(error).split())
            print(
                f"steps are taken launch by launch: no CUDA graph could be captured ({reason})",
                file=sys.stderr,
            )
            return None


class CapturedStep(Generic[T]):
    """A graph, and what it reads and writes."""

    def __init__(
        self, step: Callable[[Tensor, EpochDraws], T], index: Tensor, draws: EpochDraws
    ) -> None:
        """Capture a step on a batch like this one; raise RuntimeError where that cannot be."""
        self.index = index.clone()
        self.copied = draws
        self.draws = EpochDraws(draws.order, draws.crops.clone(), draws.flips.clone())
        self.run, self.result = capture(lambda: step(self.index, self.draws))

    def __call__(self, index: Tensor, draws: EpochDraws) -> T:
        """Take a step; its result holds until the next."""
        self.index.copy_(index)
        if draws is not self.copied:
            self.copied = draws
            self.draws.crops.copy_(draws.crops)
            self.draws.flips.copy_(draws.flips)
        self.run()
        return self.result


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Put the rates where a graph reads them anew at each replay; schedules then write them there.

    Before the first step: torch's fused SGD computes with a number in double, with a tensor in
    fp32, and a resumed run is to go on as the one that was left alone. A checkpoint holds them as
    numbers: graphs are this process's own.
    """
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True


def plain_state(optimizer: Optimizer) -> dict[str, object]:
    """Return an optimizer's state as it would be without a graph."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])
        if "capturable" in group:
            group["capturable"] = False
    return state
