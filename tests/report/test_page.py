"""The page of a group: its answer, commands, notes and missing runs."""

import json
import re

import pytest

import engine.report.status
from engine.report.critical import study_of
from engine.report.critical_page import critical_json
from engine.report.page import merge_commands, page
from engine.report.rows import Target, make_rows, target_of
from engine.report.tables import csv_text, markdown
from engine.report.write import read_notes, write_report
from engine.runs.records import load_records, published_runs
from tests.helpers import PROJECT
from tests.helpers.report import EPOCH, page_of, put, table


def test_the_page_answers_and_says_how_it_was_made(workplace):
    for seed, accuracy in enumerate((79.0, 80.0, 81.0)):
        put(workplace, "optimizer=sgd", "batch=128", f"seed={seed}", accuracy=accuracy)
        put(workplace, "optimizer=sgd", "batch=256", f"seed={seed}", accuracy=accuracy - 0.25)
        put(workplace, "optimizer=sgd", "batch=512", f"seed={seed}", accuracy=accuracy - 3)
        put(workplace, "optimizer=lars", "batch=512", f"seed={seed}", accuracy=accuracy - 0.5)
    text = page_of(workplace)
    opening = text.splitlines()[2]
    assert opening == (
        "At batch 512 LARS reaches 79.5 %, 2.5 points more than SGD; "
        "SGD stays within 1 point of batch 128 up to batch 256."
    )
    assert "base line, SGD at batch 128: 80.00 ± 1.00 %" in text
    assert "The target is 79.50 %" in text
    assert "- SGD reaches it up to batch 256." in text and "- LARS reaches it at batch 512." in text
    for name in ("accuracy.png", "time.png", "curves.png"):
        assert f"]({name})" in text and (workplace / "results" / "g" / name).stat().st_size > 0
    # 79.7 % at the third epoch is the first at or above the target; the second was not evaluated.
    assert (
        "| SGD | 256 | 79.75 ± 1.00 | 77.50 | 81.00 (epoch 2) | 3 | 30.0 s | 30.0 s | 1,000 |"
    ) in text
    assert "\npython train.py -m optimizer=sgd batch=128,256,512 seed=0,1,2\n" in text
    for fact in ("- Seeds: 0, 1, 2", "- Hardware: cpu", "- torch: 2", "- Commit: abc",
                 "- Model: resnet18", "- Data: cifar10"):  # fmt: skip
        assert fact in text
    assert "Nothing: every requested run has finished." in text
    # Answer, tables, plot, commands, details.
    order = ("## LARS", "![accuracy]", "## How to repeat it", "## Details", "![curves]")
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_the_baselines_target_is_for_rows_of_the_same_model_and_epochs_only(workplace):
    put(workplace, "optimizer=sgd", "batch=128", accuracy=80.0)
    put(workplace, "optimizer=lars", "batch=128", accuracy=81.0)
    put(workplace, "optimizer=lars", "batch=128", "epochs=300", accuracy=90.0)
    put(workplace, "optimizer=lars", "batch=128", "model=resnet8", accuracy=90.0)
    compared = re.compile(r"^- ((?:SGD|LARS).*) reaches it ", re.MULTILINE)
    ours = "model.name=resnet18 epochs=200"
    assert compared.findall(page_of(workplace)) == [f"SGD {ours}", f"LARS {ours}"]
    write_report("g", 85.0)
    requested = compared.findall((workplace / "results" / "g" / "README.md").read_text())
    assert len(requested) == 4


def test_the_page_names_a_folder_of_images(workplace):
    options = ("data.holdout=30", "data.root=pictures/cifar10-jpeg")
    put(workplace, "data=image_folder", *options, data="image_folder")
    text = page_of(workplace)
    assert "- Data: image_folder data.root=pictures/cifar10-jpeg data.holdout=30\n" in text


def test_the_page_names_the_missing_runs(workplace):
    put(workplace)
    put(workplace, "batch=256", status="failed", error="RuntimeError: it broke")
    for seed in range(25):
        put(workplace, "batch=512", f"seed={seed}", status="missing")
    text = page_of(workplace)
    assert "- `run-1`: failed, RuntimeError: it broke" in text
    assert text.count(": missing\n") + 6 == 25 and "- and 6 more" in text


def test_commands_are_merged_into_one_sweep():
    made = [
        f"python train.py batch={batch} optimizer={optimizer} 'group=a b'"
        for optimizer in ("sgd", "lars")
        for batch in (128, 256)
    ]
    assert merge_commands(made) == [
        "python train.py -m batch=128,256 optimizer=sgd,lars 'group=a b'"
    ]
    assert merge_commands(made[:3]) == [
        "python train.py -m batch=128 optimizer=sgd,lars 'group=a b'",
        "python train.py batch=256 optimizer=sgd 'group=a b'",
    ]
    assert merge_commands([*made, "python train.py seed=1"])[1] == "python train.py seed=1"
    assert merge_commands(made[:1] * 2) == made[:1]


def test_the_page_has_the_command_of_a_run_without_a_summary(workplace):
    put(workplace, "batch=128")
    put(workplace, "batch=256", status="missing")
    folder = workplace / "results" / "runs" / "g" / "run-1" / ".hydra"
    assert "python train.py batch=128\n" in page_of(workplace)
    (folder / "overrides.yaml").write_text("- batch=256\n")
    assert "python train.py -m batch=128,256\n" in page_of(workplace)


def test_the_page_shows_hold_out_accuracies(workplace):
    put(workplace, "data.holdout=10", "seed=0", holdout_accuracy=70.0)
    put(workplace, "data.holdout=10", "seed=1", holdout_accuracy=71.0)
    put(workplace, "batch=256")
    write_report("g")
    page = (workplace / "results" / "g" / "README.md").read_text()
    assert "| Final, % | Training, % | Hold-out, % | Best epoch, % |" in page
    assert "| 80.00 ± 0.00 | 77.50 | 70.50 (70.00, 71.00) | 81.00 (epoch 2) |" in page
    assert "| 256 | 80.00 | 77.50 | - | 81.00 (epoch 2) |" in page


def test_a_group_without_test_accuracies_reports_those_on_the_hold_out_split(workplace):
    only = ("data.holdout=10", "data.test_size=0")
    history = [{"epoch": 1, "step": 8, "test_accuracy": None, **EPOCH, "holdout_accuracy": 70.0}]
    for batch, accuracy in ((128, 70.0), (256, 71.0)):
        found = {"accuracy": None, "holdout_accuracy": accuracy, "history": history}
        put(workplace, f"batch={batch}", *only, best_test_accuracy=None, best_epoch=None, **found)
    put(workplace, "batch=512", *only, status="diverged", accuracy=10.0, holdout_accuracy=None)
    text, rows = table(workplace)
    assert "| 128 | 0.1 | 70.00 (base line) | 30.0 s |" in text
    assert (
        "| 256 | 0.1 | 71.00 | 30.0 s |" in text and "| 512 | 0.1 | 10.0 (nan) | 30.0 s |" in text
    )
    # table.csv has no column for the split, so its accuracies are those of the test split.
    assert {row["accuracy_mean"] for row in rows} == {""}
    page = (workplace / "results" / "g" / "README.md").read_text()
    assert "on held-out training images; no run evaluated the test split" in page
    assert (
        "| Final, % | Training, % | First epoch at 69.50 % |" in page and "| 1 | 10.0 s |" in page
    )
    assert "- SGD reaches it up to batch 256." in page and "Best epoch" not in page
    assert engine.report.status.accuracy(load_records("g")[0]) == "70.00"


def test_a_line_reaches_the_target_only_up_to_a_missing_batch(workplace):
    put(workplace, "batch=128", accuracy=80.0)
    put(workplace, "batch=512", accuracy=79.8)
    put(workplace, "batch=256", "optimizer.base_lr=0.2", accuracy=70.0)
    put(workplace, "batch=256", "optimizer.base_lr=0.3", accuracy=71.0)
    put(workplace, "optimizer=lars", "batch=128", accuracy=60.0)
    put(workplace, "optimizer=lars", "batch=128", "optimizer.base_lr=0.5", accuracy=61.0)
    put(workplace, "optimizer=lars", "batch=256", accuracy=81.0)
    put(workplace, "optimizer=lars", "batch=512", accuracy=81.0)
    page = page_of(workplace)
    assert "- SGD reaches it up to batch 128." in page
    assert "- LARS reaches it from batch 256 to 512." in page
    assert page.count(" reaches it ") == 2 + len(["a row reaches it if"])


def test_commands_are_listed_for_each_commit(workplace):
    put(workplace, "batch=128", commit="aaa")
    put(workplace, "batch=256", commit="aaa")
    page = page_of(workplace)
    assert page.count("at commit aaa:") == page.count("\npython train.py") == 1
    put(workplace, "batch=512", commit="bbb")
    first, second = page_of(workplace).split("at commit aaa:")[1].split("at commit bbb:")
    assert "batch=128,256" in first and "batch=512" in second


def test_commands_name_the_provenance_in_which_they_differ(workplace):
    put(workplace, "batch=128", device="A", precision="bf16", threads=1)
    put(workplace, "batch=256", device="B", precision="fp32", threads=1)
    _, first = page_of(workplace).split(", Hardware A, Precision bf16:\n")
    first, second = first.split(", Hardware B, Precision fp32:\n")
    assert "batch=128" in first and "batch=256" in second


def test_the_page_reports_several_ranks(workplace):
    put(workplace, "batch=128", world_size=1, threads=1)
    assert "Ranks" not in page_of(workplace)
    put(workplace, "batch=256", world_size=8, threads=1)
    page = page_of(workplace)
    assert "\n- Ranks: 1, 8\n" in page
    _, first = page.split(", Ranks 1:\n")
    first, second = first.split(", Ranks 8:\n")
    assert "batch=128" in first and "batch=256" in second


def test_a_lone_batch_reaches_the_target_or_not(workplace):
    put(workplace, "batch=128", accuracy=80.0)
    put(workplace, "optimizer=lars", "batch=512", accuracy=79.6)
    assert "- LARS reaches it at batch 512." in page_of(workplace)
    put(workplace, "optimizer=lars", "batch=512", "seed=1", accuracy=79.0)
    assert "- LARS reaches it at no batch." in page_of(workplace)


def test_the_baseline_gives_the_target_if_runs_were_given_several(workplace):
    put(workplace, "seed=0", target_accuracy=60.0)
    assert "The target is 60.00 %" in page_of(workplace)
    put(workplace, "batch=256", target_accuracy=70.0)
    assert "The target is 79.50 %" in page_of(workplace)


def test_hand_written_notes_are_kept_on_the_page(workplace):
    put(workplace)
    folder = workplace / "results" / "g"
    folder.mkdir()
    (folder / "notes.md").write_text("## Notes\n\nBatch 128 is *small*.\n")
    page = page_of(workplace)
    assert "\n\n## Notes\n\nBatch 128 is *small*.\n\n## Details\n" in page
    assert (folder / "notes.md").read_text() == "## Notes\n\nBatch 128 is *small*.\n"


@pytest.mark.parametrize(
    "group",
    [
        path.parent.name
        for path in sorted(PROJECT.glob("results/*/runs.jsonl"))
        if not (path.parent / "experiment").exists()
    ],
)
def test_a_published_page_is_what_its_runs_give(group, monkeypatch):
    monkeypatch.chdir(PROJECT)
    folder = PROJECT / "results" / group
    rows = make_rows([r for r in load_records(group) if r.summary["run"] in published_runs(group)])
    target, study = target_of(rows), None
    if (folder / "critical.json").exists():
        found = (folder / "critical.json").read_text()
        target = Target(json.loads(found)["target_accuracy"])
        study = study_of(rows, target.accuracy)
        assert found == critical_json(study)
    text = (folder / "README.md").read_text()
    plots = re.findall(r"^!\[[^]]*\]\(([^)]*)\)$", text, re.MULTILINE)
    assert text == page(group, rows, target, plots, read_notes(folder), study)
    assert (folder / "table.md").read_text() == markdown(group, rows)
    assert (folder / "table.csv").read_text() == csv_text(rows, target)
    for name in plots:
        assert (folder / name).exists() and (folder / name).with_suffix(".svg").exists()
