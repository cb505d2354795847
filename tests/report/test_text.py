from engine.report.write import write_report
from tests.helpers.report import put


def test_the_terminal_shows_an_aligned_table_with_the_best_of_each_column(workplace):
    put(workplace, "batch=128", "seed=0", accuracy=80.0, train_seconds=41.0)
    put(workplace, "batch=128", "seed=1", accuracy=81.0, train_seconds=41.0)
    put(workplace, "batch=4096", "optimizer=lars", accuracy=64.4, train_seconds=8.25)
    put(workplace, "batch=8192", "optimizer=lars", accuracy=10.0, status="diverged")
    heading, rule, *rows = write_report("g").splitlines()[3:8]
    assert heading.split("  ")[0] == "batch" and set(rule) == {"-"}
    assert [" ".join(row.split()) for row in rows] == [
        "128 SGD 0.1 80.50 ± 0.71 * 41.0 s",
        "4096 LARS 0.1 64.40 8.2 s *",
        "8192 LARS 0.1 10.0 (nan) 30.0 s",
    ]
    # A column starts at the same place on every line.
    assert {row.index("0.1 ") for row in rows} == {heading.index("base LR")}


def test_a_diverged_run_is_the_best_of_nothing(workplace):
    put(workplace, "batch=128", accuracy=5.0, train_seconds=41.0)
    put(workplace, "batch=256", accuracy=10.0, status="diverged", train_seconds=1.0)
    *_, completed, diverged = write_report("g").splitlines()[:7]
    assert diverged.startswith("256")
    assert completed.count("*") == 2 and "*" not in diverged


def test_the_terminal_says_in_words_what_the_table_shows(workplace):
    put(workplace, "batch=128", accuracy=80.0)
    put(workplace, "batch=4096", accuracy=61.5)
    put(workplace, "batch=4096", "optimizer=lars", accuracy=64.5)
    assert "\n\nAt batch 4096 LARS reaches 64.5 %, 3.0 points more than SGD" in write_report("g")


def test_the_terminal_names_the_written_files(workplace):
    put(workplace, "batch=128")
    (line,) = [line for line in write_report("g").splitlines() if line.startswith("written")]
    named = line.removeprefix("written   results/g: ").removesuffix(" (each plot also as .svg)")
    written = {path.name for path in (workplace / "results" / "g").iterdir()}
    assert set(named.split()) == {name for name in written if not name.endswith(".svg")}


def test_the_terminal_says_what_to_try_next(workplace):
    put(workplace, "batch=128", accuracy=70.0)
    put(workplace, "batch=256", accuracy=75.0)
    text = write_report("g")
    assert "next      tensorboard --logdir results/runs/g\n" in text
    assert text.endswith("the same command with seed=0,1,2, which adds two seeds to each row")
    assert "val.py" not in text  # No run has a checkpoint.
    for name in ("run-0", "run-1"):
        (workplace / "results" / "runs" / "g" / name / "checkpoint.pt").touch()
    assert "python val.py checkpoint=results/runs/g/run-1\n" in write_report("g")
    put(workplace, "batch=512", status="failed")
    assert write_report("g").endswith("which trains the runs that are missing")


def test_settings_and_notes_on_times_end_a_line(workplace):
    put(workplace, train_seconds=9.0, shared_machine=True)
    put(workplace, "clip.norm=1", train_seconds=10.0)
    lines = [" ".join(line.split()) for line in write_report("g").splitlines()]
    assert "128 SGD 0.1 80.00 * - clip.norm=null; the run shared the machine" in lines
    assert lines[6] == "128 SGD 0.1 80.00 * 10.0 s * clip.norm=1.0"
