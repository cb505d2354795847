"""Run train.py up to the end of its first optimizer step, and print where the time went as JSON.

    python -m scripts.bench.probe STARTED key=value ...

STARTED is time.time() of who started this process. Time is charged to one label at a time, the
innermost that is under way, so that the labels add up to the whole: `torch` and `other libraries`
are imports, with all that these import in turn; `data`, `building` and `first step` are calls;
what lies outside of all is the project's own. Python's start and its own imports are `interpreter`.
"""

import builtins
import functools
import json
import os
import runpy
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

INTERPRETER, TORCH, LIBRARIES, OWN = "interpreter", "torch", "other libraries", "own code"
DATA, BUILDING, FIRST_STEP = "data", "building", "first step"
LABELS = (INTERPRETER, TORCH, LIBRARIES, OWN, DATA, BUILDING, FIRST_STEP)
PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("engine", "lars", "models", "schedulers", "scripts")
CALLS = {
    "engine.data.dataset": {"load_data": DATA},
    "engine.data.augment": {"Normalization.of": DATA, "TrainingImages": DATA},
    "engine.training.build": {"build_model": BUILDING, "build_optimizer": BUILDING},
    "engine.training.plan": {"build_scheduler": BUILDING},
    "engine.training.loop": {"train_epoch": FIRST_STEP},
}  # fmt: skip


class Clock:
    """Seconds by label, each moment charged to the innermost label under way."""

    def __init__(self, started: float) -> None:
        """Begin at a moment of time.time(), inside the interpreter's start."""
        self.seconds: Counter[str] = Counter()
        self.under_way = [INTERPRETER]
        self.last = started

    def charge(self) -> None:
        """Charge the time since the last moment to the innermost label."""
        now = time.time()
        self.seconds[self.under_way[-1]] += now - self.last
        self.last = now

    def call(self, label: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function under a label."""
        self.charge()
        self.under_way.append(label)
        try:
            return function(*args, **kwargs)
        finally:
            self.charge()
            self.under_way.pop()


def label_of(module: str) -> str:
    """Return what the import of a module is charged to."""
    package = module.partition(".")[0]
    if package in PACKAGES or package in sys.stdlib_module_names:
        return OWN
    # torch's writer for TensorBoard is little more than tensorboard's own modules.
    if package == "torch" and not module.startswith("torch.utils.tensorboard"):
        return TORCH
    return LIBRARIES


def time_imports(clock: Clock, after: Callable[[ModuleType], None]) -> None:
    """Charge every import from now on; `after` sees each of the project's modules once loaded."""
    plain_import = builtins.__import__
    seen = set()

    def timed_import(name: str, *args: Any, **kwargs: Any) -> Any:
        # What a library imports is that library's doing.
        if name in sys.modules or clock.under_way[-1] in (TORCH, LIBRARIES):
            module = plain_import(name, *args, **kwargs)
        else:
            module = clock.call(label_of(name), plain_import, name, *args, **kwargs)
        if name in CALLS and name not in seen:
            seen.add(name)
            after(sys.modules[name])
        return module

    builtins.__import__ = timed_import


def finish(clock: Clock, *_: Any) -> None:
    """Print the seconds by label and leave at once: the step is done."""
    torch = sys.modules["torch"]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    clock.charge()
    print(json.dumps(clock.seconds), flush=True)
    os._exit(0)


def time_calls(clock: Clock, module: ModuleType) -> None:
    """Charge a module's functions to their labels; training ends with its first step."""
    for path, label in CALLS[module.__name__].items():
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, module)
        function = functools.partial(clock.call, label, getattr(owner, name))
        if label == FIRST_STEP:
            hook = sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook
            hook(functools.partial(finish, clock))
        setattr(owner, name, function)


def main() -> None:
    """Run train.py with the arguments that follow the moment of the start."""
    clock = Clock(float(sys.argv[1]))
    clock.charge()
    clock.under_way = [OWN]
    script = PROJECT / "train.py"
    sys.argv = [str(script), *sys.argv[2:]]
    # As `python train.py` has it.
    sys.path[0] = str(PROJECT)
    time_imports(clock, functools.partial(time_calls, clock))
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
