"""Find a learning rate with a range test: one short run whose rate grows at every step.

    python -m scripts.lr_range optimizer=lars batch=4096 model=resnet20

Takes the keys of train.py. Prints the optimizer.base_lr whose peak rate, under the chosen
optimizer.lr_scaling, is the rate at which the loss is lowest. Under Muon it also prints the
optimizer.inner_lr that was raised with it. Its own keys:

    range.low      the first rate; null: the configured peak / 1000        [null]
    range.high     the last rate; null: the configured peak x 100          [null]
    range.steps    optimizer steps from low to high                        [100]
    range.most     stop if the running loss is this many times its minimum [4]

The default group is lr_range. The plot <run>.png and the numbers <run>.json are written to
results/<group>. The test split is not used, and no checkpoint is written.
"""

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from engine.cli import exit_status, read_command_line, read_own_keys
from engine.config.optimizers import MuonConfig
from engine.config.parse import Range
from engine.config.schema import Config, Positive
from engine.errors import UserError, key_error

if TYPE_CHECKING:
    from engine.sweeps.lr_range import RangeTest

# A curve with fewer points does not show where the loss falls.
FEWEST_STEPS = 10


@dataclass(frozen=True)
class Arguments:
    """The range test's own keys."""

    low: Positive | None = None
    high: Positive | None = None
    steps: Annotated[int, Range(low=20)] = 100
    most: Annotated[float, Range(low=1, low_open=True)] = 4.0


def main() -> int:
    """Run the range test, write and print its result; return the exit status."""
    given = sys.argv[1:]
    if {"--help", "-h"} & set(given):
        print((__doc__ or "").strip())
        return 0
    arguments = read_own_keys(given, "range", Arguments)
    asked = [g for g in given if not g.startswith(("range.", "group="))]
    # An experiment's group is for its own results, so it is overridden.
    group = next((g for g in given if g.startswith("group=")), "group=lr_range")
    command = read_command_line([group, *asked], "train", Config)
    if command.answer is not None or command.multirun:
        raise UserError("scripts.lr_range: tests one configuration at a time; see --help")
    config = command.jobs[0].config
    if config.plan:
        raise key_error("plan", True, "scripts.lr_range has no dry run")
    search(config, arguments, shlex.join(["python", "-m", "scripts.lr_range", *given]))
    return 0


def search(config: Config, arguments: Arguments, command: str) -> None:
    """Run the range test of one configuration, and write and print its result.

    Raises UserError if the rates are too high or too low to show where the loss falls.

    Args:
        config: the configuration.
        arguments: the range test's own keys.
        command: the command, which is written with the result.

    """
    from engine.sweeps.lr_range import growing_rates, run_range_test
    from engine.system.runtime import facts
    from engine.training.setup import prepare

    setup = prepare(config)
    low = setup.plan.peak_lr / 1000 if arguments.low is None else arguments.low
    high = setup.plan.peak_lr * 100 if arguments.high is None else arguments.high
    if high <= low:
        raise key_error("range.high", high, f"must be above range.low={low:g}")
    rates = growing_rates(low, high, arguments.steps)
    step = setup.make_step(setup.make_state(), setup.make_images())
    made = run_range_test(step, config.seed, rates, arguments.most)
    if len(made.rates) < FEWEST_STEPS:
        allowed = f"must be lower: after {len(made.rates)} steps {made.stopped}"
        raise key_error("range.low", low, allowed)
    peak = made.suggested()
    if peak is None:
        allowed = f"must be higher: the loss never falls above range.low={low:g}"
        raise key_error("range.high", high, allowed)
    print(suggest(config, made, peak, {"command": command} | facts(setup.runtime)))


def suggest(config: Config, made: "RangeTest", peak: float, facts: dict[str, Any]) -> str:
    """Write the plot and the numbers; return the text to print.

    The last line has the overrides to use. Raises UserError if the files cannot be written.

    Args:
        config: the configuration.
        made: the result of the range test.
        peak: the suggested peak rate.
        facts: the command and the facts recorded with a result.

    """
    from engine.runs.records import RESULTS, cannot_write, check_inside
    from engine.sweeps.lr_range import write_range
    from engine.training.plan import base_lr_for

    base_lr = float(f"{base_lr_for(config, peak):.3g}")
    scaling = config.optimizer.lr_scaling
    override = f"optimizer.base_lr={base_lr:g}"
    if isinstance(config.optimizer, MuonConfig):
        # The test raised both rates together.
        inner_lr = base_lr * config.optimizer.inner_lr_scale
        override += f" optimizer.inner_lr={inner_lr:.3g}"
    found = {
        "suggested_base_lr": base_lr,
        "suggested_peak_lr": peak,
        "lr_scaling": scaling,
        "model": config.model.name,
        "data": config.data.name,
        "optimizer": config.optimizer.label,
        "batch": config.batch,
        "seed": config.seed,
    } | facts
    folder = RESULTS / config.group
    check_inside(config.group)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_range(folder / config.run_name(), made, found)
    except OSError as error:
        raise cannot_write(folder, error) from error
    steepest = made.rates[made.steepest() or 0]
    lines = [
        f"tried     {made.rates[0]:.3g} to {made.rates[-1]:.3g} in {len(made.rates)} steps: "
        f"{made.stopped}",
        f"loss      falls fastest at {steepest:.3g}, is lowest at {peak:.3g}",
        *(
            ["          and is still falling there: try a higher range.high"]
            * made.falls_to_the_end()
        ),
        *(f"written   {path}" for path in paths),
        f"a peak of {peak:.3g} at batch {config.batch}, optimizer.lr_scaling={scaling}:",
        override,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(exit_status(main, resumes=False))
