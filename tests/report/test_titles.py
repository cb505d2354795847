"""Names of rows, lines and settings."""

import doctest

import pytest

from engine.report import titles
from engine.report.rows import gather_lines, make_rows
from engine.runs.records import load_records
from tests.helpers.report import put, table


def test_settings_name_what_differs_within_a_cell(workplace):
    put(workplace)
    put(workplace, "optimizer.nesterov=true")
    put(workplace, "optimizer=lars")
    text, rows = table(workplace)
    assert [row["settings"] for row in rows] == [
        "optimizer.nesterov=false", "optimizer.nesterov=true", "",
    ]  # fmt: skip
    assert "| 128 optimizer.nesterov=true |" in text


def test_settings_name_what_differs_between_batches(workplace):
    put(workplace, "batch=128")
    put(workplace, "batch=512", "model.ghost_batch=128", "optimizer.base_lr=0.2")
    put(workplace, "batch=128", "optimizer=lars")
    text, rows = table(workplace)
    assert [row["settings"] for row in rows] == [
        "model.ghost_batch=null", "model.ghost_batch=128", "",
    ]  # fmt: skip
    assert "| 512 | 0.1 |" in text


def test_a_row_that_mixes_commits_is_marked(workplace):
    put(workplace, "seed=0")
    put(workplace, "seed=1", commit="def")
    assert "(mixed commit)" in table(workplace)[1][0]["settings"]


def test_models_of_one_group_have_separate_lines_and_mixed_commits_are_marked(workplace):
    for batch in (128, 256):
        put(workplace, f"batch={batch}", "model=resnet8", accuracy=70.0)
        put(workplace, f"batch={batch}", "model=resnet20", accuracy=80.0)
    put(workplace, "batch=256", "model=resnet20", "seed=1", commit="def")
    text, rows = table(workplace)
    assert "| 128 model.name=resnet8 | 0.1 | 70.00" in text
    assert "| 256 model.name=resnet20 (mixed commit) | 0.1 | 80.00" in text
    assert [row["settings"] for row in rows] == ["", "", "", "(mixed commit)"]
    lines = {row.line("batch") for row in make_rows(load_records("g"))}
    assert lines == {"SGD model.name=resnet8", "SGD model.name=resnet20"}


def test_a_variant_is_named_even_if_it_is_the_default(workplace):
    for variant in ("paper", "timm"):
        put(workplace, "optimizer=lars", f"optimizer.variant={variant}")
    settings = [row["settings"] for row in table(workplace)[1]]
    assert settings == ["optimizer.variant=paper", "optimizer.variant=timm"]


def test_a_row_alone_in_its_cell_lies_on_the_line_of_equal_rows(workplace):
    for batch in (128, 256, 512):
        # A recipe's rate follows the batch.
        put(workplace, "optimizer=lars", f"batch={batch}", f"optimizer.base_lr={batch / 64}")
    put(workplace, "optimizer=lars", "batch=256", "optimizer.base_lr=4", "optimizer.variant=timm")
    put(workplace, "optimizer=lars", "batch=512", "optimizer.base_lr=8", "optimizer.variant=timm")
    put(workplace, "optimizer=lars", "batch=512", "optimizer.base_lr=8", "epochs=3")
    rows = make_rows(load_records("g"))
    assert [row.title for row in rows][:2] == [
        "128 epochs=200", "256 epochs=200 optimizer.variant=paper",
    ]  # fmt: skip
    lines = {
        label: [row.batch for row in found] for label, found in gather_lines(rows, "batch").items()
    }
    assert lines == {
        "LARS epochs=200 optimizer.variant=paper": [128, 256, 512],
        "LARS epochs=200 optimizer.variant=timm": [256, 512],
        "LARS epochs=3 optimizer.variant=paper": [512],
    }
    through_epochs = gather_lines(rows, "epochs")["LARS 512 optimizer.variant=paper"]
    assert [row.epochs for row in through_epochs] == [3, 200]


def test_a_row_of_two_precisions_is_marked(workplace):
    put(workplace, "seed=0", precision="bf16")
    put(workplace, "seed=1", precision="fp32")
    assert table(workplace)[1][0]["settings"] == "(mixed precision)"


def test_a_schedule_is_named_with_its_keys_and_without_those_of_others(workplace):
    for batch, names in (
        (128, ("polynomial", "cosine")),
        (256, ("polynomial", "multistep", "onecycle")),
    ):
        for name in names:
            put(workplace, f"batch={batch}", f"scheduler={name}")
    _, rows = table(workplace)
    named = {(row["batch"], row["settings"]) for row in rows}
    assert ("128", "scheduler.name=cosine") in named
    others = [settings for batch, settings in named if batch == "256" and "multistep" in settings]
    assert others == ["scheduler.gamma=0.1 scheduler.name=multistep scheduler.step_fraction=0.25"]


def test_a_row_of_an_ablation_names_what_it_changes(workplace):
    changes = [
        "ema.decay=0.9",
        "optimizer.nesterov=true",
        "loss.label_smoothing=0.1",
        "clip.norm=2.5",
    ]
    for seed in ("seed=0", "seed=1"):
        for change in ([], *([c] for c in changes), changes[:2]):
            put(workplace, seed, *change)
    _, rows = table(workplace)
    named = [row["settings"] for row in rows]
    assert named == ["(what most rows share)", *changes, " ".join(changes[:2])]
    assert {row["runs"] for row in rows} == {"2"}


def test_the_examples_of_titles_hold():
    failed, tried = doctest.testmod(titles)
    # The number makes the test fail if the examples are not found.
    assert (failed, tried) == (0, 18)


def choices(**changes):
    """Return a row's choices; a double underscore in a name stands for a dot."""
    cell = zip(titles.CELL, ("sgd", 128, "resnet8", "cifar10", 15), strict=True)
    return dict(cell) | {key.replace("__", "."): value for key, value in changes.items()}


def test_a_setting_of_more_than_three_keys_names_those_that_differ_from_most_rows():
    base = choices(a=1, b=1, c=1, d=1)
    three = [base, base | {"a": 2, "b": 2, "c": 2}]
    assert [titles.setting(row, three) for row in three] == ["a=1 b=1 c=1", "a=2 b=2 c=2"]
    # If values are equally common, that of the first row counts as the most common.
    four = [base, base | {"a": 2, "b": 2, "c": 2, "d": 2}]
    assert [titles.setting(row, four) for row in four] == [titles.COMMON, "a=2 b=2 c=2 d=2"]


def test_a_setting_names_defaults_but_no_keys_of_other_schedules():
    plain = choices(scheduler__name="cosine")
    steps = plain | {"scheduler.name": "multistep", "scheduler.gamma": 0.1, "ema.decay": 0.9}
    assert [titles.setting(row, [plain, steps]) for row in (plain, steps)] == [
        "ema.decay=null scheduler.name=cosine",
        "ema.decay=0.9 scheduler.gamma=0.1 scheduler.name=multistep",
    ]


@pytest.mark.parametrize(
    ("other", "named"),
    [("onecycle", "scheduler.name=cosine scheduler.power=2"), ("cosine", "scheduler.power=2")],
)
def test_an_ablation_names_the_schedule_with_its_keys_if_there_are_several(other, named):
    base = choices(a=1, b=1, c=1, scheduler__name="cosine", scheduler__power=1)
    changes = [{"a": 2}, {"b": 2}, {"c": 2}, {"scheduler.name": other}, {"scheduler.power": 2}]
    group = [base, *(base | change for change in changes)]
    assert titles.setting(group[-1], group) == named
    assert titles.setting(group[1], group) == "a=2"


def test_the_line_of_a_lone_row_names_up_to_three_keys_and_no_rate():
    lone = choices(batch=512, a=1, b=1, c=1, d=1, optimizer__base_lr=0.4)
    cell = [lone | {"batch": 128, "optimizer.base_lr": 0.1, "a": a, "b": a, "c": a} for a in (1, 2)]
    cell.append(cell[0] | {"optimizer.base_lr": 0.2})
    assert titles.line_setting(lone, [lone, *cell]) == "a=1 b=1 c=1"
    cell.append(cell[0] | {"d": 2})
    assert titles.line_setting(lone, [lone, *cell]) == ""
    # The setting that most rows of an ablation share adds nothing to the line's name either.
    assert titles.setting(cell[0], [lone, *cell]) == titles.COMMON
    assert titles.line_setting(cell[0], [lone, *cell]) == ""


def test_a_line_has_rows_of_one_optimizer_only():
    lone = choices(batch=512, optimizer__momentum=0.9)
    lars = [lone | {"optimizer.name": "lars", "optimizer.momentum": m} for m in (0.8, 0.9)]
    assert titles.line_setting(lone, [lone, *lars]) == ""


def test_a_cell_names_no_key_of_a_schedule_that_its_settings_name():
    group = [
        choices(scheduler__name="cosine", scheduler__min_lr=0.0, a=1),
        choices(scheduler__name="constant", a=1),
        choices(scheduler__name="cosine", scheduler__min_lr=0.1, a=2, batch=512),
    ]
    named = [titles.cell_setting(row, group) for row in group]
    assert named == ["a=1", "a=1", "a=2 scheduler.min_lr=0.1 scheduler.name=cosine"]


def test_mixed_provenance_of_a_row_is_noted():
    old, new = {"commit": "abc"}, {"commit": "abc", "world_size": 2, "torch": "2", "threads": 1}
    assert titles.mixed_provenance([old, new]) == "(mixed torch, world_size, threads)"
    assert titles.mixed_provenance([old, old]) == titles.mixed_provenance([]) == ""
