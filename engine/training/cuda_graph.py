"""A training step as one CUDA graph: captured after a few steps, replayed for each full batch.

A replay reads and writes fixed addresses. The batch's indices, the epoch's draws and the learning
rates are copied there first. Steps that differ from the captured one run eagerly: the short last
batch of an epoch and steps that log layers. All steps run eagerly if the capture fails.
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
# In the first steps with a shape, libraries choose kernels and allocate workspaces.
WARM_UP_STEPS = 3


def captures(runtime: Runtime) -> bool:
    """Return True if the run's steps are captured: a single rank on a CUDA device."""
    return runtime.device.type == "cuda" and runtime.world_size == 1


def capture(function: Callable[[], T]) -> tuple[Callable[[], None], T]:
    """Capture a function's work on the device; return the replay function and its result.

    The capture computes nothing: the result's tensors have values only after a replay.
    """
    graph = torch.cuda.CUDAGraph()
    # thread_local lets other threads, such as a checkpoint write, make CUDA calls meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class StepGraph(Generic[T]):
    """A step that is captured as a graph after `WARM_UP_STEPS` full batches.

    Args:
        step: takes a whole step on a batch's indices, int64 [B], and an epoch's draws, and returns
            tensors.
        batch: size of a full batch; other batches are not replayed.
        give_up: cleans up after a failed capture.
        starting_up: context that counts its seconds as start-up, not as training.

    """

    def __init__(
        self,
        step: Callable[[Tensor, EpochDraws], T],
        batch: int,
        give_up: Callable[[], None],
        starting_up: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.step = step
        self.batch = batch
        self.give_up = give_up
        self.starting_up = starting_up
        self.warm_up = WARM_UP_STEPS
        self.failed = False
        self.captured: CapturedStep[T] | None = None

    def replay(self, index: Tensor, draws: EpochDraws) -> T | None:
        """Take a step by replay and return its result, or return None if it must run eagerly.

        The result is valid until the next replay.
        """
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
                f"steps run eagerly: no CUDA graph could be captured ({reason})",
                file=sys.stderr,
            )
            return None


class CapturedStep(Generic[T]):
    """A captured graph with its input and output tensors.

    Raises RuntimeError if the step cannot be captured.

    Args:
        step: as in `StepGraph`.
        index: indices of a batch, int64 [B]; all later batches have the same size.
        draws: crops and flips of the epoch.

    """

    def __init__(
        self, step: Callable[[Tensor, EpochDraws], T], index: Tensor, draws: EpochDraws
    ) -> None:
        self.index = index.clone()
        self.copied = draws
        self.draws = EpochDraws(draws.order, draws.crops.clone(), draws.flips.clone())
        self.run, self.result = capture(lambda: step(self.index, self.draws))

    def __call__(self, index: Tensor, draws: EpochDraws) -> T:
        """Replay the step on a batch; the result is valid until the next call."""
        self.index.copy_(index)
        if draws is not self.copied:
            self.copied = draws
            self.draws.crops.copy_(draws.crops)
            self.draws.flips.copy_(draws.flips)
        self.run()
        return self.result


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Make the learning rates tensors on the device, which every replay reads.

    Schedules then write into these tensors. Call this before the first step: torch's fused SGD
    computes in double with a number and in fp32 with a tensor, and a resumed run must equal an
    uninterrupted one. Checkpoints store numbers (`plain_state`), because a graph belongs to one
    process.
    """
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True


def plain_state(optimizer: Optimizer) -> dict[str, object]:
    """Return an optimizer's state_dict as it would be without `make_capturable`."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])
        if "capturable" in group:
            group["capturable"] = False
    return state
