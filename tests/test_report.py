import csv
import doctest
import fcntl
import io
import json
import re
import shutil
import sys

import pytest
import yaml
from matplotlib.figure import Figure

import engine.report.plots
import engine.report.status
import engine.report.write
import scripts.status
import scripts.tables
from engine.cli import exit_status
from engine.errors import UserError
from engine.report import titles
from engine.report.page import merge_commands
from engine.report.plots import draw_against, draw_baseline
from engine.report.rows import gather_lines, make_rows
from engine.report.write import write_report
from engine.runs.records import load_records
from tests.test_config import config

EPOCH = {
    "holdout_accuracy": None,
    "train_accuracy": 77.5,
    "train_seconds": 10.0,
    "wall_seconds": 12.0,
}
HISTORY = [
    {"epoch": 1, "test_accuracy": 40.0, **EPOCH},
    {"epoch": 2, "test_accuracy": None, **EPOCH},
    {"epoch": 3, "test_accuracy": 79.7, **EPOCH},
]


def put(work, *overrides, status="completed", accuracy=80.0, history=HISTORY, **changes):
    """Write the files that a run of these choices would leave."""
    made = config(*overrides)
    name = f"run-{len(list(work.glob('results/runs/g/*')))}"
    folder = work / "results" / "runs" / "g" / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(made.to_dict()))
    if status == "missing":
        return
    summary = {
        "status": status, "run": name, "group": "g", "model": made.model.name,
        "data": made.data.name, "optimizer": made.optimizer.name, "batch": made.batch,
        "seed": made.seed, "epochs": made.epochs, "steps": 100, "base_lr": 0.1, "peak_lr": 0.2,
        "test_accuracy": None if status == "failed" else accuracy, "best_test_accuracy": 81.0,
        "best_epoch": 2, "command": "python train.py " + " ".join(overrides),
        "train_seconds": 30.0, "images_per_second": 1000.0, "target_accuracy": None,
        "commit": "abc", "device": "cpu", "torch": "2", "choices": made.choices(),
    } | changes  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))


def table(work):
    text = write_report("g")
    with open(work / "results" / "g" / "table.csv") as file:
        return text, list(csv.DictReader(file))


def test_seeds_are_averaged_with_their_spread(workplace):
    for seed, accuracy in enumerate((79.0, 80.0, 81.0)):
        put(workplace, f"seed={seed}", accuracy=accuracy)
    text, (row,) = table(workplace)
    assert "| 128 | 0.1 | 80.00 ± 1.00 (base line) | 30.0 s |" in text
    assert (row["runs"], row["accuracy_mean"], row["accuracy_std"]) == ("3", "80.0", "1.0")
    assert row["best_accuracy_mean"] == "81.0" and row["settings"] == ""
    # The target is the baseline less half a point, 79.5, first reached after three epochs.
    assert row["seconds_to_target_mean"] == "30.0"


def test_diverged_failed_and_missing_runs_stay_visible(workplace):
    put(workplace, "seed=0")
    put(workplace, "seed=1", status="diverged", accuracy=10.0)
    put(workplace, "seed=2", status="missing")
    put(workplace, "batch=256", status="failed")
    put(workplace, "batch=512", status="missing")
    put(workplace, "batch=1024", status="diverged", accuracy=10.0)
    put(workplace, "batch=2048", status="interrupted", accuracy=50.0)
    text, rows = table(workplace)
    assert "45.00 ± 49.50 (1 of 3 nan, 1 of 3 missing) (base line)" in text
    assert "| 256 | 0.1 | failed | - |" in text
    assert "| 512 | - | missing | - |" in text
    assert "| 1024 | 0.1 | 10.0 (nan) | 30.0 s |" in text
    assert "| 2048 | 0.1 | missing | - |" in text
    counts = [(r["runs"], r["diverged"], r["failed"], r["missing"]) for r in rows]
    assert counts == [
        ("3", "1", "0", "1"), ("1", "0", "1", "0"), ("1", "0", "0", "1"),
        ("1", "1", "0", "0"), ("1", "0", "0", "1"),
    ]  # fmt: skip
    assert rows[0]["accuracy_mean"] == "45.0" and rows[1]["accuracy_mean"] == ""


def test_settings_name_what_else_differs(workplace):
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


def test_of_several_rates_the_baseline_is_one_that_did_not_diverge(workplace):
    for rate in (1.6, 0.4, 0.1):
        diverged = {"status": "diverged", "accuracy": 10.0} if rate == 0.1 else {}
        put(workplace, f"optimizer.base_lr={rate:g}", base_lr=rate, **diverged)
    text, rows = table(workplace)
    assert [row["base_lr"] for row in rows] == ["0.1", "0.4", "1.6"]
    assert "| 0.4 | 80.00 (base line) |" in text and text.count("(base line)") == 1
    # But of several settings none is what the page or its plot holds the others against.
    put(workplace, "optimizer=lars", "batch=256")
    assert "holds" not in page_of(workplace)
    assert baselines_drawn() == []
    write_report("g", 70.0)
    assert "LARS holds at batch 256." in (workplace / "results" / "g" / "README.md").read_text()


def baselines_drawn():
    axes = Figure().subplots()
    draw_baseline(axes, make_rows(load_records("g")))
    return axes.get_legend_handles_labels()[1]


def test_the_base_line_is_drawn(workplace):
    put(workplace)
    put(workplace, "batch=256")
    assert baselines_drawn() == ["base line: SGD 128"]


def test_a_row_that_mixes_commits_is_marked(workplace):
    put(workplace, "seed=0")
    put(workplace, "seed=1", commit="def")
    assert "(mixed commit)" in table(workplace)[1][0]["settings"]


def test_time_to_target_needs_every_seed_to_reach_it(workplace):
    put(workplace, "seed=0", target_accuracy=60.0)
    put(workplace, "seed=1", target_accuracy=60.0, history=HISTORY[:1])
    assert table(workplace)[1][0]["seconds_to_target_mean"] == ""


def test_a_target_may_be_given_after_the_runs(workplace, monkeypatch):
    put(workplace)
    monkeypatch.setattr(sys, "argv", ["tables", "group=g", "target_accuracy=35"])
    assert exit_status(scripts.tables.main) == 0
    with open(workplace / "results" / "g" / "table.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["seconds_to_target_mean"]) == 10.0
    assert "The target is 35.00 %" in (workplace / "results" / "g" / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["tables", "group=g", "target_accuracy=101"])
    assert exit_status(scripts.tables.main) == 2


def test_published_runs_count_where_their_directories_are_not(workplace):
    put(workplace, "seed=0", accuracy=70.0)
    before = write_report("g")
    shutil.rmtree(workplace / "results" / "runs")
    assert write_report("g") == before
    assert load_records("g")[0].history == HISTORY


def test_a_line_that_is_still_being_written_is_left_out(workplace):
    put(workplace, "seed=0")
    path = next(workplace.glob("results/runs/g/*/metrics.jsonl"))
    path.write_text(path.read_text() + '{"epoch": 4, "test_acc')
    assert len(load_records("g")[0].history) == 3


@pytest.mark.parametrize("group", ["g", "../g", "runs"])
def test_a_group_without_runs_is_told(workplace, group):
    with pytest.raises(UserError, match="group="):
        write_report(group)


def test_two_hundred_runs_make_their_report_in_seconds(workplace):
    import time

    for batch in (128, 256, 512, 1024, 2048):
        for optimizer in ("sgd", "lars"):
            for seed in range(20):
                put(workplace, f"batch={batch}", f"optimizer={optimizer}", f"seed={seed}")
    started = time.process_time()
    _, rows = table(workplace)
    assert len(rows) == 10 and len(make_rows(load_records("g"))) == 10
    assert time.process_time() - started < 5
    assert (
        io.StringIO((workplace / "results" / "g" / "runs.jsonl").read_text()).read().count("\n")
        == 200
    )


def page_of(work, group="g"):
    write_report(group)
    return (work / "results" / group / "README.md").read_text()


def test_the_page_answers_and_says_how_it_was_made(workplace):
    for seed, accuracy in enumerate((79.0, 80.0, 81.0)):
        put(workplace, "optimizer=sgd", "batch=128", f"seed={seed}", accuracy=accuracy)
        put(workplace, "optimizer=sgd", "batch=256", f"seed={seed}", accuracy=accuracy - 0.25)
        put(workplace, "optimizer=sgd", "batch=512", f"seed={seed}", accuracy=accuracy - 3)
        put(workplace, "optimizer=lars", "batch=512", f"seed={seed}", accuracy=accuracy - 0.5)
    text = page_of(workplace)
    assert "as the batch grows from 128 to 512, with SGD and with LARS?" in text
    assert "base line, SGD at batch 128: 80.00 ± 1.00 %" in text
    assert "The target is 79.50 %" in text
    assert "- SGD holds up to batch 256." in text and "- LARS holds at batch 512." in text
    for name in ("accuracy.png", "time.png", "curves.png"):
        assert f"]({name})" in text and (workplace / "results" / "g" / name).stat().st_size > 0
    # 79.7 % at the third epoch is the first at or above the target; the second was not evaluated.
    assert (
        "| SGD | 256 | 79.75 ± 1.00 | 77.50 | 81.00 (epoch 2) | epoch 3 | 30.0 s | 30.0 s | 1,000 |"
    ) in text
    assert "python train.py -m optimizer=sgd batch=128,256,512 seed=0,1,2" not in text
    for fact in ("- Seeds: 0, 1, 2", "- Hardware: cpu", "- torch: 2", "- Commit: abc",
                 "- Model: resnet18", "- Data: cifar10"):  # fmt: skip
        assert fact in text
    assert "Nothing: every run that was asked for has an outcome." in text


def test_the_base_line_judges_rows_of_its_own_model_and_length_alone(workplace):
    put(workplace, "optimizer=sgd", "batch=128", accuracy=80.0)
    put(workplace, "optimizer=lars", "batch=128", accuracy=81.0)
    put(workplace, "optimizer=lars", "batch=128", "epochs=300", accuracy=90.0)
    put(workplace, "optimizer=lars", "batch=128", "model=resnet8", accuracy=90.0)
    judged = re.compile(r"^- ((?:SGD|LARS).*) holds ", re.MULTILINE)
    ours = "model.name=resnet18 epochs=200"
    assert judged.findall(page_of(workplace)) == [f"SGD {ours}", f"LARS {ours}"]
    write_report("g", 85.0)
    asked = judged.findall((workplace / "results" / "g" / "README.md").read_text())
    assert len(asked) == 4


def test_the_page_names_a_folder_of_images(workplace):
    held = ("data.holdout=30", "data.root=pictures/cifar10-jpeg")
    put(workplace, "data=image_folder", *held, data="image_folder")
    text = page_of(workplace)
    assert "- Data: image_folder data.root=pictures/cifar10-jpeg data.holdout=30\n" in text


def test_the_page_names_what_is_missing(workplace):
    put(workplace)
    put(workplace, "batch=256", status="failed", error="RuntimeError: it broke")
    for seed in range(25):
        put(workplace, "batch=512", f"seed={seed}", status="missing")
    text = page_of(workplace)
    assert "- `run-1`: failed, RuntimeError: it broke" in text
    assert text.count(": missing\n") + 6 == 25 and "- and 6 more" in text


def test_commands_become_the_sweep_they_came_from():
    made = [
        f"python train.py batch={batch} optimizer={optimizer} 'group=a b'"
        for optimizer in ("sgd", "lars")
        for batch in (128, 256)
    ]
    assert merge_commands(made) == [
        "python train.py -m batch=128,256 optimizer=sgd,lars 'group=a b'"
    ]
    assert merge_commands(made[:3]) == made[:3]
    assert merge_commands([*made, "python train.py seed=1"])[1] == "python train.py seed=1"
    assert merge_commands(made[:1] * 2) == made[:1]


@pytest.mark.parametrize(
    "runs",
    [
        [("batch=128",)],
        [("batch=128", "optimizer=lars"), ("batch=256", "optimizer=lars")],
        [("batch=128", f"optimizer.momentum={m}") for m in (0, 0.1, 0.2, 0.3, 0.4, 0.5)],
    ],
    ids=["one run", "lars alone", "many settings"],
)
@pytest.mark.parametrize("status", ["completed", "diverged", "missing", "failed"])
def test_every_kind_of_group_makes_a_whole_report(workplace, runs, status):
    for overrides in runs:
        history = HISTORY if status == "completed" else []
        put(workplace, *overrides, status=status, accuracy=10.0, history=history)
    text = page_of(workplace)
    assert text.startswith("# g\n") and "![curves](curves.png)" in text


def test_the_time_to_target_has_no_mean_where_a_seed_misses_it(workplace):
    for seed in (0, 1):
        put(workplace, f"seed={seed}")
        put(workplace, "batch=256", f"seed={seed}", history=HISTORY[: 3 - seed])
    rows = make_rows(load_records("g"))
    axes = Figure().subplots()
    draw_against(axes, "batch", gather_lines(rows, "batch"), lambda row: row.times_to(79.5))
    (line,) = axes.lines
    assert list(line.get_xdata()) == [128]
    dots = [tuple(place) for marks in axes.collections for place in marks.get_offsets()]
    assert dots.count((256, 30.0)) == 1 and dots.count((128, 30.0)) == 2


def test_a_group_of_several_lengths_is_drawn_against_its_epochs(workplace):
    for epochs, accuracy in ((15, 60.0), (45, 80.0)):
        for seed in (0, 1):
            put(workplace, f"epochs={epochs}", f"seed={seed}", accuracy=accuracy + seed)
        put(workplace, f"epochs={epochs}", "batch=256", "optimizer=lars", accuracy=accuracy)
    put(workplace, "epochs=90", "batch=512")
    assert "![epochs](epochs.png)" in page_of(workplace)
    lines = gather_lines(make_rows(load_records("g")), "epochs")
    assert {label: [row.epochs for row in rows] for label, rows in lines.items()} == {
        "SGD 128": [15, 45], "LARS 256": [15, 45], "SGD 512": [90],
    }  # fmt: skip
    axes = Figure().subplots()
    draw_against(axes, "epochs", lines, lambda row: row.figures("test_accuracy"))
    drawn = {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in axes.lines}
    assert drawn["SGD 128"] == [(15, 60.5), (45, 80.5)] and axes.get_xlabel() == "Epochs"


def test_a_group_of_one_length_is_not_drawn_against_its_epochs(workplace):
    put(workplace, "batch=128")
    put(workplace, "batch=256")
    assert "epochs.png" not in page_of(workplace)


def test_the_same_runs_give_the_same_files(workplace):
    put(workplace, "seed=0")
    put(workplace, "optimizer=lars", "seed=1")
    write_report("g")
    folder = workplace / "results" / "g"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report("g")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_models_of_one_group_have_lines_of_their_own_and_mixed_commits_are_marked(workplace):
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


def test_a_run_that_left_no_summary_keeps_its_command_on_the_page(workplace):
    put(workplace, "batch=128")
    put(workplace, "batch=256", status="missing")
    folder = workplace / "results" / "runs" / "g" / "run-1" / ".hydra"
    assert "python train.py batch=128\n" in page_of(workplace)
    (folder / "overrides.yaml").write_text("- batch=256\n")
    assert "python train.py -m batch=128,256\n" in page_of(workplace)


@pytest.mark.parametrize("content", ["{}", "[]", '{"status": "completed"}', "3"])
def test_a_foreign_summary_is_no_summary(workplace, content):
    put(workplace)
    (workplace / "results" / "runs" / "g" / "run-0" / "summary.json").write_text(content)
    assert "| 128 | - | missing | - |" in table(workplace)[0].replace(" (base line)", "")


def test_a_variant_is_named_also_where_it_is_the_default(workplace):
    for variant in ("paper", "timm"):
        put(workplace, "optimizer=lars", f"optimizer.variant={variant}")
    settings = [row["settings"] for row in table(workplace)[1]]
    assert settings == ["optimizer.variant=paper", "optimizer.variant=timm"]


def test_a_damaged_published_file_is_told_and_kept(workplace):
    put(workplace, "batch=128")
    table(workplace)
    published = workplace / "results" / "g" / "runs.jsonl"
    damaged = "<<<<<<< ours\n" + published.read_text()
    published.write_text(damaged)
    with pytest.raises(UserError, match=r"results/g/runs\.jsonl: line 1 is no JSON"):
        write_report("g")
    assert published.read_text() == damaged


def test_runs_that_end_while_a_report_is_written_are_in_it(workplace, monkeypatch):
    put(workplace, "batch=128")
    write_plots = engine.report.write.write_plots

    def slow(*arguments):
        if not (workplace / "results" / "runs" / "g" / "run-1").exists():
            put(workplace, "batch=256")
        return write_plots(*arguments)

    monkeypatch.setattr(engine.report.write, "write_plots", slow)
    text, rows = table(workplace)
    assert [row["batch"] for row in rows] == ["128", "256"] and "| 256 |" in text


def test_several_groups_in_one_plot(workplace, monkeypatch, capsys):
    put(workplace)
    (workplace / "results" / "runs" / "g").rename(workplace / "results" / "runs" / "h")
    put(workplace, "optimizer=lars")
    monkeypatch.setattr(sys, "argv", ["tables", "group=g,h"])
    assert exit_status(scripts.tables.main) == 0
    assert "written   results/g+h.png" in capsys.readouterr().out
    assert (workplace / "results" / "g+h.png").stat().st_size > 0


def test_a_plot_of_several_groups_leaves_settings_at_one_batch_out(workplace, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        engine.report.plots,
        "draw_against",
        lambda axes, axis, lines, figures: drawn.append(set(lines)),
    )
    monkeypatch.setattr(engine.report.plots, "save", lambda path, draw, size: draw(Figure()))
    for number in range(5):
        put(workplace, f"optimizer.base_lr=0.{number + 1}")
    rows = engine.report.write.load_rows("g")
    settings = {f"h {label}" for label in gather_lines(rows, "batch")}
    assert len(settings) == 5
    # With no line there would be nothing else to draw.
    engine.report.plots.write_comparison(workplace, {"h": rows})
    for batch in (128, 256):
        put(workplace, "optimizer=lars", f"batch={batch}")
    engine.report.plots.write_comparison(
        workplace, {"g": engine.report.write.load_rows("g"), "h": rows}
    )
    assert drawn[::2] == [settings, {"g LARS"} | settings]


def test_progress_of_a_sweep(workplace, monkeypatch, capsys):
    put(workplace, "batch=128", "epochs=3")
    put(workplace, "batch=256", "epochs=3", status="diverged")
    put(workplace, "batch=512", "epochs=3", status="failed", history=[])
    put(workplace, "batch=1024", "epochs=3", status="missing")
    running = workplace / "results" / "runs" / "g" / "run-3"
    (running / "metrics.jsonl").write_text(json.dumps(HISTORY[0]) + "\n")
    put(workplace, "batch=2048", "epochs=3", status="missing")
    with open(running / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(sys, "argv", ["status", "group=g"])
        assert exit_status(scripts.status.main) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "g: 5 runs: 1 done, 1 diverged, 1 running, 1 failed, 1 left"
    # 12 s an epoch: two epochs are left of the running one, three of each of the two others.
    assert lines[1] == "time left 0:01:36, at 1 run at once"
    states = {line.split()[1]: line.split() for line in lines[4:]}
    assert states["run-0"] == ["done", "run-0", "3/3", "79.70"]
    assert states["run-3"] == ["running", "run-3", "1/3", "40.00", "0:00:24"]
    assert states["run-4"] == ["left", "run-4", "0/3", "-", "0:00:36"]
    assert states["run-2"][0] == "failed" and states["run-1"][3] == "nan"


def test_tables_of_several_groups_are_written_or_none(workplace, monkeypatch, capsys):
    put(workplace, "batch=128", "epochs=3")
    monkeypatch.setattr(sys, "argv", ["tables", "group=g,h"])
    assert exit_status(scripts.tables.main) == 2
    assert "group=h: has no runs" in capsys.readouterr().err
    assert not (workplace / "results" / "g").exists()


def test_progress_of_several_groups(workplace, monkeypatch, capsys):
    put(workplace, "batch=128", "epochs=3")
    shutil.copytree(workplace / "results/runs/g", workplace / "results/runs/h")
    monkeypatch.setattr(sys, "argv", ["status", "group=g,h,g"])
    assert exit_status(scripts.status.main) == 0
    shown = capsys.readouterr().out
    assert shown.count("g: 1 runs: 1 done") == shown.count("h: 1 runs: 1 done") == 1
    monkeypatch.setattr(sys, "argv", ["status", "group=g", "group=h"])
    assert exit_status(scripts.status.main) == 2
    assert capsys.readouterr().err == "error: group=g: group is given more than once\n"


def test_the_noise_scale_is_set_beside_the_batch(workplace):
    rising = [
        row | {"noise_scale": scale} for row, scale in zip(HISTORY, (None, 256, 1024), strict=True)
    ]
    put(workplace, "batch=128", "noise_scale=true", history=rising)
    put(workplace, "batch=2048", "noise_scale=true", history=rising)
    put(workplace, "batch=512")
    folder = workplace / "results" / "g"
    write_report("g")
    page = (folder / "README.md").read_text()
    kept = "| - | 640 | 1,024 | 1 of 3 |"
    assert f"| SGD | 128 {kept} 0.2 | 6.00 | 1.20 | a larger batch still saves steps |" in page
    assert f"| SGD | 2048 {kept} 3.2 | 1.31 | 4.20 | larger steps stop paying |" in page
    assert "![noise](noise.png)" in page and (folder / "noise.png").stat().st_size > 1000


def test_noise_that_is_lost_gives_no_scale(workplace):
    def history(*scales):
        return [row | {"noise_scale": s} for row, s in zip(HISTORY, scales, strict=True)]

    put(workplace, "batch=128", "noise_scale=true", history=history(None, 100.0, 200.0))
    put(workplace, "batch=2048", "noise_scale=true", history=history(-8.0, -2.0, 30.0))
    page = page_of(workplace)
    assert "| SGD | 128 | - | 150 | 200 | 1 of 3 | 0.85 |" in page
    assert "| SGD | 2048 | - | - | 30 | 2 of 3 | - | - | - | - |" in page


def test_a_report_without_noise_scales_says_nothing_of_them(workplace):
    put(workplace)
    (workplace / "results" / "g").mkdir()
    (workplace / "results" / "g" / "noise.png").write_bytes(b"an older report's")
    write_report("g")
    assert "noise" not in (workplace / "results" / "g" / "README.md").read_text().lower()
    assert not (workplace / "results" / "g" / "noise.png").exists()


def test_the_page_shows_what_was_chosen_on(workplace):
    put(workplace, "data.holdout=10", "seed=0", holdout_accuracy=70.0)
    put(workplace, "data.holdout=10", "seed=1", holdout_accuracy=71.0)
    put(workplace, "batch=256")
    write_report("g")
    page = (workplace / "results" / "g" / "README.md").read_text()
    assert "| Final, % | Training, % | Hold-out, % | Best epoch, % |" in page
    assert "| 80.00 ± 0.00 | 77.50 | 70.50 (70.00, 71.00) | 81.00 (epoch 2) |" in page
    assert "| 256 | 80.00 | 77.50 | - | 81.00 (epoch 2) |" in page


def test_a_group_that_leaves_the_test_split_alone_is_told_by_its_hold_out(workplace):
    only = ("data.holdout=10", "data.test_size=0")
    history = [{"epoch": 1, "test_accuracy": None, **EPOCH, "holdout_accuracy": 70.0}]
    for batch, accuracy in ((128, 70.0), (256, 71.0)):
        found = {"accuracy": None, "holdout_accuracy": accuracy, "history": history}
        put(workplace, f"batch={batch}", *only, best_test_accuracy=None, best_epoch=None, **found)
    put(workplace, "batch=512", *only, status="diverged", accuracy=10.0, holdout_accuracy=None)
    text, rows = table(workplace)
    assert "| 128 | 0.1 | 70.00 (base line) | 30.0 s |" in text
    assert (
        "| 256 | 0.1 | 71.00 | 30.0 s |" in text and "| 512 | 0.1 | 10.0 (nan) | 30.0 s |" in text
    )
    # table.csv has no column that says which split a figure is of.
    assert {row["accuracy_mean"] for row in rows} == {""}
    page = (workplace / "results" / "g" / "README.md").read_text()
    assert "on held-out training images; no run evaluated the test split" in page
    assert "| Final, % | Training, % | First at 69.50 % |" in page and "epoch 1 | 10.0 s |" in page
    assert "- SGD holds up to batch 256." in page and "Best epoch" not in page
    assert engine.report.status.accuracy(load_records("g")[0]) == "70.00"


def test_many_settings_at_one_batch_get_a_plot_of_their_own(workplace):
    for number, change in enumerate(("0.1", "0.2", "0.3", "0.4")):
        put(workplace, f"optimizer.base_lr={change}", accuracy=70.0 + number)
    text, _ = table(workplace)
    assert "accuracy.png" in text and "settings.png" not in text
    put(workplace, "optimizer.base_lr=0.5", status="diverged", accuracy=10.0)
    text, _ = table(workplace)
    folder = workplace / "results" / "g"
    assert "settings.png" in text and "accuracy.png" not in text and "time.png" not in text
    assert (folder / "settings.png").exists() and not (folder / "accuracy.png").exists()
    page = (folder / "README.md").read_text()
    assert "![settings](settings.png)" in page and "holds" not in page.replace("a row holds", "")
    # A line of several batches is still drawn against them, beside those that are not.
    for batch in (256, 512):
        put(workplace, "optimizer=lars", f"batch={batch}")
    text, _ = table(workplace)
    assert "accuracy.png" in text and "settings.png" in text


def test_the_setting_that_an_ablation_changes_stays_on_its_line(workplace):
    changes = ("nesterov=true", "momentum=0.8", "dampening=0.1", "weight_decay=0.1")
    for batch in (128, 256, 512):
        put(workplace, f"batch={batch}", accuracy=80.0)
    for number, change in enumerate(changes):
        put(workplace, "batch=512", f"optimizer.{change}", accuracy=70.0 + number)
    put(workplace, "batch=512", "epochs=3", accuracy=81.0)
    text, _ = table(workplace)
    assert all(f"/{name}.png" in text for name in ("accuracy", "settings", "epochs"))
    rows = make_rows(load_records("g"))
    lines, settings = engine.report.plots.part_settings(gather_lines(rows, "batch"))
    assert {label: [row.batch for row in found] for label, found in lines.items()} == {
        "SGD epochs=200": [128, 256, 512]
    }
    assert len(settings) == 6 and [
        row.accuracy() for row in settings if row.setting == titles.COMMON
    ] == [80.0]
    through_epochs = gather_lines(rows, "epochs")
    assert [row.epochs for row in through_epochs["SGD 512"]] == [3, 200]
    assert "- SGD epochs=200 holds up to batch 512." in page_of(workplace)


def test_a_row_alone_in_its_cell_lies_on_the_line_of_equal_rows(workplace):
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


def test_settings_are_ranked_with_what_they_differ_from(workplace):
    for batch in (128, 512):
        put(workplace, f"batch={batch}", accuracy=80.0)
    for momentum in (0.5, 0.6, 0.7, 0.8, 0.95):
        put(workplace, "batch=512", f"optimizer.momentum={momentum}", accuracy=70.0)
    lines, settings = engine.report.plots.part_settings(
        gather_lines(make_rows(load_records("g")), "batch")
    )
    assert [row.batch for row in lines["SGD optimizer.momentum=0.9"]] == [128, 512]
    assert len(lines) == 1 and sorted(row.accuracy() for row in settings)[-1] == 80.0
    assert {row.batch for row in settings} == {512}


def test_a_line_holds_no_further_than_to_a_gap(workplace):
    put(workplace, "batch=128", accuracy=80.0)
    put(workplace, "batch=512", accuracy=79.8)
    put(workplace, "batch=256", "optimizer.base_lr=0.2", accuracy=70.0)
    put(workplace, "batch=256", "optimizer.base_lr=0.3", accuracy=71.0)
    put(workplace, "optimizer=lars", "batch=128", accuracy=60.0)
    put(workplace, "optimizer=lars", "batch=128", "optimizer.base_lr=0.5", accuracy=61.0)
    put(workplace, "optimizer=lars", "batch=256", accuracy=81.0)
    put(workplace, "optimizer=lars", "batch=512", accuracy=81.0)
    page = page_of(workplace)
    assert "- SGD holds up to batch 128." in page
    assert "- LARS holds from batch 256 to 512." in page
    assert page.count(" holds ") == 2 + len(["a row holds if"])


def test_a_target_of_the_baseline_is_for_its_like_alone(workplace):
    put(workplace, "batch=128", "epochs=3", accuracy=79.7)
    put(workplace, "batch=256", "epochs=3", accuracy=79.7)
    put(workplace, "batch=256", "epochs=4", accuracy=79.7)
    _, rows = table(workplace)
    times = {(row["batch"], row["epochs"]): row["seconds_to_target_mean"] for row in rows}
    assert times["256", "4"] == "" and float(times["256", "3"]) > 0
    assert page_of(workplace).count("| epoch 3 |") == 2
    write_report("g", 70.0)
    assert (workplace / "results/g/README.md").read_text().count("| - | - | 30.0 s |") == 0


def test_commands_of_several_commits_are_listed_for_each(workplace):
    put(workplace, "batch=128", commit="aaa")
    put(workplace, "batch=256", commit="aaa")
    page = page_of(workplace)
    assert "Commit aaa:" not in page and page.count("\npython train.py") == 1
    put(workplace, "batch=512", commit="bbb")
    first, second = page_of(workplace).split("Commit aaa:")[1].split("Commit bbb:")
    assert "batch=128,256" in first and "batch=512" in second


def test_commands_name_the_provenance_in_which_they_differ(workplace):
    put(workplace, "batch=128", device="A", precision="bf16", threads=1)
    put(workplace, "batch=256", device="B", precision="fp32", threads=1)
    _, first = page_of(workplace).split("\nHardware A, Precision bf16:\n")
    first, second = first.split("\nHardware B, Precision fp32:\n")
    assert "batch=128" in first and "batch=256" in second


def test_a_row_of_two_precisions_is_marked(workplace):
    put(workplace, "seed=0", precision="bf16")
    put(workplace, "seed=1", precision="fp32")
    assert table(workplace)[1][0]["settings"] == "(mixed precision)"


def test_a_lone_batch_holds_or_not(workplace):
    put(workplace, "batch=128", accuracy=80.0)
    put(workplace, "optimizer=lars", "batch=512", accuracy=79.6)
    assert "- LARS holds at batch 512." in page_of(workplace)
    put(workplace, "optimizer=lars", "batch=512", "seed=1", accuracy=79.0)
    assert "- LARS holds at no batch." in page_of(workplace)


def test_a_diverged_seed_counts_in_the_hold_out_and_not_in_the_times(workplace):
    only = ("data.holdout=10", "optimizer=sgd")
    put(workplace, *only, "seed=0", holdout_accuracy=70.0)
    broken = {"holdout_accuracy": None, "train_seconds": 1.0, "images_per_second": None}
    put(workplace, *only, "seed=1", status="diverged", accuracy=10.0, **broken)
    page = page_of(workplace)
    assert "| 40.00 (70.00, 10.00) |" in page and "| 30.0 s | 1,000 |" in page


def test_a_schedule_is_named_beside_its_keys_and_no_row_has_anothers(workplace):
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


def test_the_examples_of_titles_hold():
    failed, tried = doctest.testmod(titles)
    # The number keeps a module whose examples are not found from passing.
    assert (failed, tried) == (0, 16)


def choices(**changes):
    """Make a row's choices; a double underscore in a name stands for a dot."""
    cell = zip(titles.CELL, ("sgd", 128, "resnet8", "cifar10", 15), strict=True)
    return dict(cell) | {key.replace("__", "."): value for key, value in changes.items()}


def test_a_setting_names_keys_up_to_three_and_of_more_those_that_most_rows_have_otherwise():
    base = choices(a=1, b=1, c=1, d=1)
    three = [base, base | {"a": 2, "b": 2, "c": 2}]
    assert [titles.setting(row, three) for row in three] == ["a=1 b=1 c=1", "a=2 b=2 c=2"]
    # Of values that are equally common the first row's is what most rows share.
    four = [base, base | {"a": 2, "b": 2, "c": 2, "d": 2}]
    assert [titles.setting(row, four) for row in four] == [titles.COMMON, "a=2 b=2 c=2 d=2"]


def test_a_setting_writes_defaults_and_no_key_that_another_schedule_has():
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
def test_an_ablation_names_the_schedule_with_its_keys_where_there_are_several(other, named):
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
    # The setting that an ablation's rows share needs no name either.
    assert titles.setting(cell[0], [lone, *cell]) == titles.COMMON
    assert titles.line_setting(cell[0], [lone, *cell]) == ""


def test_a_line_is_of_one_optimizer():
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


def test_what_not_all_runs_of_a_row_were_made_with_is_noted():
    old, new = {"commit": "abc"}, {"commit": "abc", "world_size": 2, "torch": "2", "threads": 1}
    assert titles.mixed_provenance([old, new]) == "(mixed torch, world_size)"
    assert titles.mixed_provenance([old, old]) == titles.mixed_provenance([]) == ""


def test_runs_that_were_given_several_targets_have_the_baselines(workplace):
    put(workplace, "seed=0", target_accuracy=60.0)
    assert "The target is 60.00 %" in page_of(workplace)
    put(workplace, "batch=256", target_accuracy=70.0)
    assert "The target is 79.50 %" in page_of(workplace)


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
