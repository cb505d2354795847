"""A process that trains a few steps on its sweep's word: `python -m engine.sweeps.calibrate`.

Standard input has one line of JSON (`config`, `classes`, `train_examples`), which is answered by
`ready`, then a number of threads per line, each answered by the images per second that the model
trains at. The images are random. It ends with its input, so it never outlives the sweep.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from engine.config.schema import Config
from engine.data import SIDE
from engine.data.dataset import Dataset, Split
from engine.training.plan import make_plan
from engine.training.setup import Setup, runtime_of

SECONDS = 1.5
IMAGES = 1024
# On CUDA a step is captured as a graph after a few, and the first steps choose kernels.
WARM_UP_STEPS = {"cpu": 1}


def make_trainer(config: Config, classes: int, train_examples: int) -> Callable[[int], float]:
    """Return a function that trains for `SECONDS` with some number of threads and returns images/s.

    Args:
        config: the configuration of a run.
        classes: number of classes.
        train_examples: size of the training split, which the schedule needs.

    """
    runtime = runtime_of(config)
    images = torch.randint(0, 256, (max(IMAGES, config.batch), SIDE, SIDE, 3), dtype=torch.uint8)
    split = Split(images, torch.arange(len(images)) % classes)
    names = tuple(map(str, range(classes)))
    data = Dataset(config.data.name, names, train=split, test=split, holdout=None)
    setup = Setup(config, runtime, data, make_plan(config, train_examples))
    state, training = setup.make_state(), setup.make_images()
    step, draws = setup.make_step(state, training), training.draw_epoch(config.seed, 1)
    state.model.train()
    batches = itertools.cycle(
        [b for b in draws.order.split(config.batch) if len(b) == config.batch]
    )

    def take() -> None:
        index = next(batches)
        if step.replay(index, draws) is None:
            step.gradients(index, draws)
            step.update()

    def train(threads: int) -> float:
        torch.set_num_threads(threads)
        for _ in range(WARM_UP_STEPS.get(runtime.device.type, 8)):
            take()
        started, steps = runtime.wall_clock(), 0
        while time.perf_counter() - started < SECONDS:
            take()
            steps += 1
        return steps * config.batch / (runtime.wall_clock() - started)

    return train


def main() -> None:
    """Answer the lines of standard input until it ends."""
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    train = make_trainer(
        Config.from_hydra(asked["config"]), asked["classes"], asked["train_examples"]
    )
    print("ready", flush=True)
    for line in sys.stdin:
        print(train(int(line)), flush=True)


if __name__ == "__main__":
    main()
