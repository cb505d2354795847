"""Run names must not change: a run's directory is found by its name."""

import dataclasses
import json
from typing import Any

import pytest

from engine.config.compose import make_jobs
from engine.config.schema import Config
from tests.helpers import PROJECT
from tests.helpers.runs import config

# Command lines, and the names of their runs at commit 43477fa; demo has had another recipe since.
NAMES = {
    "": "resnet18-cifar10-sgd-b128-e200-s0-a10fce6b",
    "batch=4096 optimizer=lars": "resnet18-cifar10-lars-b4096-e200-s0-14f67cb6",
    "batch=512 optimizer=sgd seed=3": "resnet18-cifar10-sgd-b512-e200-s3-5be21647",
    "model=resnet8 epochs=15 optimizer=lars batch=8192 seed=1": (
        "resnet8-cifar10-lars-b8192-e15-s1-8a3a8bb6"
    ),
    "model=resnet20 batch=1024 micro_batch=512": "resnet20-cifar10-sgd-b1024-e200-s0-76bcb948",
    "model=resnet32 optimizer=lars": "resnet32-cifar10-lars-b128-e200-s0-0c5fa23a",
    "model=resnet44 precision=bf16": "resnet44-cifar10-sgd-b128-e200-s0-7883df96",
    "model=resnet56 precision=fp32": "resnet56-cifar10-sgd-b128-e200-s0-7e0a75da",
    "model=resnet110 micro_batch=256 batch=256": "resnet110-cifar10-sgd-b256-e200-s0-b7e71e6e",
    "model=resnet34 compile=true": "resnet34-cifar10-sgd-b128-e200-s0-d07dffb6",
    "model=resnet50 deterministic=true": "resnet50-cifar10-sgd-b128-e200-s0-990e75eb",
    "model=resnet50_imagenet_stem epochs=175": (
        "resnet50_imagenet_stem-cifar10-sgd-b128-e175-s0-53a72d7b"
    ),
    "+experiment=attempt1 batch=128": "resnet18-cifar10-sgd-b128-e200-s0-46fd375f",
    "+experiment=attempt1 batch=8192 optimizer=lars": (
        "resnet18-cifar10-lars-b8192-e200-s0-3cc9f365"
    ),
    "+experiment=attempt2 batch=8192": "resnet18-cifar10-sgd-b8192-e200-s0-5cd84b2e",
    "+experiment=attempt2 batch=1024 optimizer=lars optimizer.variant=pytorch-lars": (
        "resnet18-cifar10-lars-b1024-e200-s0-b3d9885b"
    ),
    "+experiment=attempt3 batch=2048 optimizer=lars": (
        "resnet18-cifar10-lars-b2048-e200-s0-9d34fa42"
    ),
    "+experiment=attempt4 batch=256": "resnet18-cifar10-sgd-b256-e200-s0-8cab308a",
    "+experiment=attempt5 batch=4096 optimizer=lars": "resnet8-cifar10-lars-b4096-e45-s0-71f334e5",
    "+experiment=attempt5 batch=8192 optimizer=sgd seed=2": (
        "resnet8-cifar10-sgd-b8192-e45-s2-bff40978"
    ),
    "+experiment=demo batch=512 optimizer=lars": "resnet8-synthetic-lars-b512-e5-s0-5eb33f7f",
    "+experiment=ladder batch=1024 optimizer=sgd": "resnet8-cifar10-sgd-b1024-e15-s0-c27a2237",
    "scheduler=constant scheduler.warmup_steps=100": "resnet18-cifar10-sgd-b128-e200-s0-276a3f75",
    "scheduler=cosine scheduler.final_fraction=0.01": "resnet18-cifar10-sgd-b128-e200-s0-5ded1a7e",
    "scheduler=multistep scheduler.step_size=30 scheduler.gamma=0.2": (
        "resnet18-cifar10-sgd-b128-e200-s0-3f230d79"
    ),
    "scheduler=onecycle optimizer=lars": "resnet18-cifar10-lars-b128-e200-s0-513950c1",
    "scheduler=polynomial scheduler.power=1 scheduler.min_lr=0.001": (
        "resnet18-cifar10-sgd-b128-e200-s0-d0caf28b"
    ),
    "optimizer=lars optimizer.variant=timm optimizer.trust_clip=true batch=4096": (
        "resnet18-cifar10-lars-b4096-e200-s0-bddcc454"
    ),
    "optimizer=lars optimizer.trust_coefficient=0.02 optimizer.eps=1e-8 optimizer.adapt=all": (
        "resnet18-cifar10-lars-b128-e200-s0-7f392921"
    ),
    "optimizer=sgd optimizer.nesterov=true optimizer.bias_lr_scale=0.1 optimizer.decay=weights": (
        "resnet18-cifar10-sgd-b128-e200-s0-e57508f1"
    ),
    "optimizer.lr_scaling=none scheduler.warmup_multiplier=4": (
        "resnet18-cifar10-sgd-b128-e200-s0-7e2b34eb"
    ),
    "data=cifar100 model=resnet20 data.holdout=5000": "resnet20-cifar100-sgd-b128-e200-s0-cb6422aa",
    "data=cifar100 data.root=elsewhere data.cache=/tmp/cache": (
        "resnet18-cifar100-sgd-b128-e200-s0-4351d725"
    ),
    "data=image_folder data.root=pictures": "resnet18-image_folder-sgd-b128-e200-s0-221da7f5",
    "data=image_folder data.root=/data/tree data.train_size=1000 data.test_size=500 batch=64": (
        "resnet18-image_folder-sgd-b64-e200-s0-2e043a3f"
    ),
    "data=synthetic model=resnet8 epochs=2": "resnet8-synthetic-sgd-b128-e2-s0-66b1a65f",
    "data=synthetic ema.decay=0.99 loss.label_smoothing=0.1": (
        "resnet18-synthetic-sgd-b128-e200-s0-8de9a141"
    ),
    "data=synthetic noise_scale=true batch=256 model.ghost_batch=32": (
        "resnet18-synthetic-sgd-b256-e200-s0-dc0c235f"
    ),
    "data=synthetic clip.norm=1.0 clip.value=0.5 model.init=he model.bn_momentum=0.5": (
        "resnet18-synthetic-sgd-b128-e200-s0-27928cfd"
    ),
    "data=synthetic model.zero_init_residual=true eval_every=5 threads=2 device=cpu "
    "group=other resume=false checkpoint_every=10min log_layers_every=10 target_accuracy=70": (
        "resnet18-synthetic-sgd-b128-e200-s0-39421a02"
    ),
}
PUBLISHED = sorted((PROJECT / "results").glob("*/runs.jsonl"))
# The keys that a configuration needs and that do not change a run's name.
ELSEWHERE = {
    "group": "default", "device": "auto", "threads": None, "resume": True, "target_accuracy": None,
    "log_layers_every": None, "plan": False, "data.cache": None,
}  # fmt: skip


def config_of(choices: dict[str, Any]) -> Config:
    """Build a configuration from a run's recorded choices."""
    raw: dict[str, Any] = {}
    for key, value in (ELSEWHERE | choices).items():
        *groups, name = key.split(".")
        place = raw
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return Config.from_hydra(raw)


@pytest.mark.parametrize("line", NAMES)
def test_a_command_gives_the_same_run_name_as_before(line):
    (job,) = make_jobs("train", Config, [line.split()])
    assert job.config.run_name() == NAMES[line]


def test_every_published_run_keeps_its_name():
    lines = [json.loads(line) for path in PUBLISHED for line in path.read_text().splitlines()]
    assert len(lines) == 386
    for line in lines:
        made = config_of(line["choices"])
        assert made.run_name() == line["run"]
        assert made.choices() == line["choices"]


def test_same_choices_name_the_same_run():
    name = config("batch=256").run_name()
    assert config("batch=256", "epochs=200").run_name() == name
    place = ("group=other", "device=cpu", "threads=1", "resume=false", "data.root=elsewhere")
    assert config("batch=256", *place).run_name() == name
    for other in ("seed=1", "optimizer.nesterov=true", "data.train_size=500", "optimizer=lars"):
        assert config("batch=256", other).run_name() != name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_what_ends_a_run_names_it_only_if_it_is_given():
    holdout = "data.holdout=500"
    name = config(holdout).run_name()
    assert (
        config(holdout, "max_steps=null", "eval_every=1", "stop_at_target=false").run_name() == name
    )
    assert config(holdout, "target_accuracy=70").run_name() == name
    stop = [holdout, "stop_at_target=true"]
    ends = [
        [holdout, "max_steps=100"], [holdout, "eval_every=50steps"],
        [*stop, "target_accuracy=70"], [*stop, "target_accuracy=71"],
    ]  # fmt: skip
    assert len({name, *(config(*words).run_name() for words in ends)}) == 5
    choices = config(*ends[2]).choices()
    assert choices["stop_at_target"] is True and choices["target_accuracy"] == 70.0


def test_image_folder_runs_with_different_roots_have_different_names():
    here, there = (config("data=image_folder", f"data.root={root}") for root in "ab")
    assert here.run_name() != there.run_name()


def test_a_key_at_its_default_leaves_run_names_alone():
    made = config()

    @dataclasses.dataclass(frozen=True)
    class Later(Config):
        new_key: str | None = None

    later = Later(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    assert later.choices() == made.choices()
    assert "new_key" in dataclasses.replace(later, new_key="x").choices()
