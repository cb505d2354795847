"""Run train.py up to the end of its first optimizer step, and print the time by phase as JSON.

    python -m scripts.bench.probe STARTED key=value ...

STARTED is time.time() in the parent process when it started this one. Time is charged to the
innermost active label only, so that the labels add up to the total. `torch` and `other libraries`
are imports, including everything that these import. `data`, `building` and `first step` are
function calls. `interpreter` is the start of Python and its own imports. The rest is `own code`.
"""

import builtins
import functools
import json
import os
import runpy
import sys
import time
from collections import defaultdict
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
    """Measures seconds by label. Time is charged to the innermost active label.

    Args:
        started: time.time() when the interpreter was started.

    """

    def __init__(self, started: float) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.under_way = [INTERPRETER]
        self.last = started

    def charge(self) -> None:
        """Charge the time since the last charge to the innermost label."""
        now = time.time()
        self.seconds[self.under_way[-1]] += now - self.last
        self.last = now

    def call(self, label: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function and charge its time to a label; return its result."""
        self.charge()
        self.under_way.append(label)
        try:
            return function(*args, **kwargs)
        finally:
            self.charge()
            self.under_way.pop()


def label_of(module: str) -> str:
    """Return the label to which the import of a module is charged."""
    package = module.partition(".")[0]
    if package in PACKAGES or package in sys.stdlib_module_names:
        return OWN
    # torch.utils.tensorboard mostly imports tensorboard's own modules.
    if package == "torch" and not module.startswith("torch.utils.tensorboard"):
        return TORCH
    return LIBRARIES


def time_imports(clock: Clock, after: Callable[[ModuleType], None]) -> None:
    """Charge every import from now on to its label.

    Args:
        clock: measures the time.
        after: called with each module of `CALLS` once it is loaded.

    """
    plain_import = builtins.__import__
    seen = set()

    def timed_import(name: str, *args: Any, **kwargs: Any) -> Any:
        # Imports made by a library are charged to that library.
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
    """Print the seconds by label and end the process."""
    torch = sys.modules["torch"]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    clock.charge()
    print(json.dumps(clock.seconds), flush=True)
    os._exit(0)


def time_calls(clock: Clock, module: ModuleType) -> None:
    """Charge the calls of a module's functions to their labels; end the process after one step."""
    for path, label in CALLS[module.__name__].items():
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, module)
        function = functools.partial(clock.call, label, getattr(owner, name))
        if label == FIRST_STEP:
            hook = sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook
            hook(functools.partial(finish, clock))
        setattr(owner, name, function)


def main() -> None:
    """Run train.py with the arguments after STARTED."""
    clock = Clock(float(sys.argv[1]))
    clock.charge()
    clock.under_way = [OWN]
    script = PROJECT / "train.py"
    sys.argv = [str(script), *sys.argv[2:]]
    # The same entry as with `python train.py`.
    sys.path[0] = str(PROJECT)
    time_imports(clock, functools.partial(time_calls, clock))
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
