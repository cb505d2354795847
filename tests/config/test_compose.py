"""A sweep's jobs are composed together; each must be what it is when composed alone."""

import itertools
import random

import pytest

from engine.config import compose
from engine.config.compose import make_jobs, read_overrides
from engine.config.schema import Config
from engine.errors import UserError

FILES = {
    "optimizer": ["sgd", "lars", "adamw", "lamb"],
    "model": ["resnet8", "resnet18"],
    "scheduler": ["polynomial", "onecycle", "multistep", "tvlars"],
    "data": ["synthetic", "cifar10"],
    "+experiment": ["attempt2", "attempt5", "demo"],
}
VALUES = {
    "batch": ["128", "4096"],
    "seed": ["0", "3"],
    "epochs": ["45", "90"],
    "optimizer.weight_decay": ["0", "1e-3"],
    "optimizer.base_lr": ["0.3", "${times_k:1e-5}"],
    "clip.norm": ["1.5", "null"],
    "group": ["g", "007"],
    "++model.bn_momentum": ["0.9"],
    "data.root": ["'a b'", "x/y"],
}


def test_jobs_composed_together_equal_those_composed_alone():
    dice = random.Random(0)
    lists = []
    for _ in range(60):
        keys = dice.sample([*FILES, *VALUES], dice.randint(1, 6))
        lists.append([f"{key}={dice.choice((FILES | VALUES)[key])}" for key in keys])
    lists += [[*first, *second] for first, second in itertools.pairwise(lists[:10])]

    def outcome(make):
        try:
            return [(job.config, job.arguments) for job in make()]
        except UserError as error:
            return str(error)

    alone = [outcome(lambda o=o: make_jobs("train", Config, [o])) for o in lists]
    valid = [o for o, found in zip(lists, alone, strict=True) if not isinstance(found, str)]
    assert len(valid) > 20
    together = outcome(lambda: make_jobs("train", Config, valid))
    assert together == [found[0] for found in alone if not isinstance(found, str)]
    with pytest.raises(UserError):
        make_jobs("train", Config, [o for o in lists if o not in valid])


@pytest.mark.parametrize(
    "wrong", ["batch=128,x", "bach=1,2", "clip.norm=1,-1", "optimizer.momentum=0.9,{a:1}"]
)
def test_a_wrong_value_in_a_sweep_gets_the_message_of_a_single_run(wrong):
    key, _, values = wrong.partition("=")
    bad = values.partition(",")[2] if key != "bach" else "1"
    with pytest.raises(UserError) as alone:
        read_overrides("train", Config, [f"{key}={bad}"], sweep=False)
    with pytest.raises(UserError) as swept:
        read_overrides("train", Config, [wrong], sweep=True)
    assert str(swept.value) == str(alone.value)


def test_the_files_of_a_sweep_are_composed_once(monkeypatch):
    composed = []
    original = compose.compose

    def counted(name, overrides, **options):
        composed.append(list(overrides))
        return original(name, overrides, **options)

    monkeypatch.setattr(compose, "compose", counted)
    given = ["batch=128,256,512", "seed=0,1,2,3", "optimizer=sgd,lars"]
    assert len(read_overrides("train", Config, given, sweep=True)) == 24
    assert composed == [["optimizer=sgd"], ["optimizer=lars"]]
