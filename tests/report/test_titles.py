"""What a row is called: what sets it apart from its rivals."""

from engine.report.plots import gather_lengths, gather_lines
from engine.report.rows import make_rows
from engine.runs.records import load_records
from tests.helpers.report import put, table


def test_settings_name_what_else_differs(workplace):
    put(workplace)
    put(workplace, "optimizer.nesterov=true")
    put(workplace, "optimizer=lars")
    text, rows = table(workplace)
    assert [row["settings"] for row in rows] == [
        "optimizer.nesterov=false", "optimizer.nesterov=true", "",
    ]  # fmt: skip
    assert "| 128 optimizer.nesterov=true |" in text


def test_settings_name_what_sets_other_batches_apart(workplace):
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


def test_models_of_one_group_and_mixed_commits_keep_their_lines_apart(workplace):
    for batch in (128, 256):
        put(workplace, f"batch={batch}", "model=resnet8", accuracy=70.0)
        put(workplace, f"batch={batch}", "model=resnet20", accuracy=80.0)
    put(workplace, "batch=256", "model=resnet20", "seed=1", commit="def")
    text, rows = table(workplace)
    assert "| 128 model.name=resnet8 | 0.1 | 70.00" in text
    assert "| 256 model.name=resnet20 (mixed commit) | 0.1 | 80.00" in text
    assert [row["settings"] for row in rows] == ["", "", "", "(mixed commit)"]
    lines = {row.line for row in make_rows(load_records("g"))}
    assert lines == {"SGD model.name=resnet8", "SGD model.name=resnet20"}


def test_a_variant_is_named_also_where_it_is_the_default(workplace):
    for variant in ("paper", "timm"):
        put(workplace, "optimizer=lars", f"optimizer.variant={variant}")
    settings = [row["settings"] for row in table(workplace)[1]]
    assert settings == ["optimizer.variant=paper", "optimizer.variant=timm"]


def test_a_row_without_rivals_lies_on_the_line_of_its_like(workplace):
    for batch in (128, 256, 512):
        # A recipe's rate follows the batch, and one batch may have had others.
        put(workplace, "optimizer=lars", f"batch={batch}", f"optimizer.base_lr={batch / 64}")
    put(workplace, "optimizer=lars", "batch=256", "optimizer.base_lr=4", "optimizer.variant=timm")
    put(workplace, "optimizer=lars", "batch=512", "optimizer.base_lr=8", "optimizer.variant=timm")
    put(workplace, "optimizer=lars", "batch=512", "optimizer.base_lr=8", "epochs=3")
    rows = make_rows(load_records("g"))
    assert [row.title for row in rows][:2] == [
        "128 epochs=200", "256 epochs=200 optimizer.variant=paper",
    ]  # fmt: skip
    lines = {label: [row.batch for row in found] for label, found in gather_lines(rows).items()}
    assert lines == {
        "LARS epochs=200 optimizer.variant=paper": [128, 256, 512],
        "LARS epochs=200 optimizer.variant=timm": [256, 512],
        "LARS epochs=3 optimizer.variant=paper": [512],
    }
    (lengths,) = gather_lengths(rows).values()
    assert [row.epochs for row in lengths] == [3, 200]


def test_a_row_of_two_precisions_is_marked(workplace):
    put(workplace, "seed=0", precision="bf16")
    put(workplace, "seed=1", precision="fp32")
    assert table(workplace)[1][0]["settings"] == "(mixed precision)"


def test_a_schedule_is_named_beside_its_keys_and_no_row_has_anothers(workplace):
    for batch, names in (
        (128, ("polynomial", "cosine")),
        (256, ("polynomial", "multistep", "onecycle")),
    ):
        for name in names:
            put(workplace, f"batch={batch}", f"scheduler={name}")
    _, rows = table(workplace)
    told = {(row["batch"], row["settings"]) for row in rows}
    assert ("128", "scheduler.name=cosine") in told
    others = [settings for batch, settings in told if batch == "256" and "multistep" in settings]
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
    told = [row["settings"] for row in rows]
    assert told == ["(what most rows share)", *changes, " ".join(changes[:2])]
    assert {row["runs"] for row in rows} == {"2"}
