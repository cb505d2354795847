"""The names that choices give a run."""

import dataclasses

from engine.config.choices import choices, run_name
from engine.config.schema import Config
from tests.helpers.runs import config


def test_same_choices_name_the_same_run():
    name = run_name(config("batch=256"))
    assert run_name(config("batch=256", "epochs=200")) == name
    place = ("group=other", "device=cpu", "threads=1", "resume=false", "data.root=elsewhere")
    assert run_name(config("batch=256", *place)) == name
    for other in ("seed=1", "optimizer.nesterov=true", "data.train_size=500", "optimizer=lars"):
        assert run_name(config("batch=256", other)) != name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_image_folder_runs_are_told_apart_by_their_root():
    here, there = (config("data=image_folder", f"data.root={root}") for root in "ab")
    assert run_name(here) != run_name(there)


def test_a_key_at_its_default_leaves_run_names_alone():
    made = config()

    @dataclasses.dataclass(frozen=True)
    class Later(Config):
        new_key: str | None = None

    later = Later(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    assert choices(later) == choices(made)
    assert "new_key" in choices(dataclasses.replace(later, new_key="x"))
