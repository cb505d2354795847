"""The sentence that opens a group's page, for groups made by hand."""

from engine.report.answer import opening
from engine.report.rows import make_rows
from engine.runs.records import load_records
from tests.helpers.report import page_of, put


def opened():
    """Return the opening sentence of the group."""
    return opening(make_rows(load_records("g")))


def put_seeds(work, accuracies, *overrides, **changes):
    """Write one run for each accuracy."""
    for seed, accuracy in enumerate(accuracies):
        put(work, *overrides, f"seed={seed}", accuracy=accuracy, **changes)


def test_two_optimizers_are_compared_at_the_largest_batch_of_both(workplace):
    means = ((128, 80.0, 80.4), (512, 79.1, 80.0), (1024, 78.8, 79.2), (4096, 61.4, 64.4))
    for batch, sgd, lars in means:
        put_seeds(workplace, (sgd - 0.5, sgd + 0.5), f"batch={batch}")
        put_seeds(workplace, (lars - 0.5, lars + 0.5), f"batch={batch}", "optimizer=lars")
    put(workplace, "batch=8192", "optimizer=lars", accuracy=20.0)
    sentence = (
        "At batch 4096 LARS reaches 64.4 %, 3.0 points more than SGD; "
        "both stay within 1 point of batch 128 up to batch 512."
    )
    assert opened() == sentence
    assert page_of(workplace).startswith(f"# g\n\n{sentence}\n\n## SGD\n")


def test_a_difference_of_single_seeds_or_overlapping_ones_is_named(workplace):
    put(workplace, "batch=128", accuracy=80.0)
    put(workplace, "batch=128", "optimizer=lars", accuracy=80.0)
    assert opened() == "At batch 128 SGD reaches 80.0 %, as much as LARS (one seed each)."
    put(workplace, "batch=128", "optimizer=lars", "seed=1", accuracy=82.0)
    assert opened() == "At batch 128 LARS reaches 81.0 %, 1.0 points more than SGD (SGD: one seed)."
    put(workplace, "batch=128", "seed=1", accuracy=81.0)
    expected = "At batch 128 LARS reaches 81.0 %, 0.5 points more than SGD (their seeds overlap)."
    assert opened() == expected


def test_accuracies_of_a_random_guess_are_named(workplace):
    put(workplace, "batch=128", accuracy=11.5, chance_accuracy=10.0)
    assert opened() == "At batch 128 SGD reaches 11.5 % (SGD is near chance, 10 %; one seed)."
    put(workplace, "batch=128", "optimizer=lars", accuracy=12.0, chance_accuracy=10.0)
    note = "(LARS and SGD are near chance, 10 %; one seed each)"
    assert opened() == f"At batch 128 LARS reaches 12.0 %, 0.5 points more than SGD {note}."
    put(workplace, "batch=128", "optimizer=lars", "seed=1", accuracy=14.0, chance_accuracy=10.0)
    assert "(SGD is near chance, 10 %; SGD: one seed)" in opened()


def test_diverged_runs_are_named(workplace):
    put_seeds(workplace, (79.0, 80.0), "batch=128")
    put_seeds(workplace, (60.0, 61.0), "batch=512")
    put_seeds(workplace, (10.0, 10.0), "batch=512", "optimizer=lars", status="diverged")
    assert opened() == (
        "At batch 512 SGD reaches 60.5 %, 50.5 points more than LARS (LARS diverged in all 2 runs, "
        "which counts as chance); SGD loses more than 1 point between batch 128 and 512."
    )
    put_seeds(workplace, (10.0,), "batch=1024", status="diverged")
    put_seeds(workplace, (10.0,), "batch=1024", "optimizer=lars", status="diverged")
    assert opened().startswith("At batch 1024 every run of SGD and LARS diverged; ")


def test_settings_of_one_optimizer_at_one_batch_are_ranked(workplace):
    for decay, accuracies in ((0.1, (64.0, 64.2)), (0.2, (65.0, 65.4)), (0.3, (60.0,))):
        changes = ("batch=4096", "optimizer=lars", f"optimizer.weight_decay={decay}")
        put_seeds(workplace, accuracies, *changes)
    assert opened() == (
        "At batch 4096 the best of 3 settings of LARS, optimizer.weight_decay=0.2, reaches 65.2 %, "
        "1.1 points more than the next, optimizer.weight_decay=0.1."
    )


def test_the_comparison_names_the_length_and_the_setting_that_it_chose(workplace):
    held_out = ("data.holdout=10", "data.test_size=0", "batch=4096", "epochs=45")
    for rate, accuracy in ((0.1, 70.0), (0.2, 72.0)):
        put(workplace, *held_out, f"optimizer.base_lr={rate}", holdout_accuracy=accuracy)
    put(workplace, *held_out, "optimizer=lars", holdout_accuracy=75.25)
    put(workplace, *held_out[:3], "epochs=90", "optimizer=lars", holdout_accuracy=90.0)
    assert opened() == (
        "At batch 4096 over 45 epochs LARS reaches 75.2 % on held-out images, 3.2 points more than "
        "SGD (the best of 2 settings of SGD: optimizer.base_lr=0.2; one seed each)."
    )


def test_a_group_without_results_or_with_one_run(workplace):
    put(workplace, status="missing")
    assert opened() == "No run of this group has an accuracy yet."
    put(workplace, "batch=256", accuracy=80.0)
    assert opened() == "At batch 256 SGD reaches 80.0 % (one seed)."


def test_three_optimizers_and_one_that_keeps_its_accuracy(workplace):
    for batch, accuracies in ((128, (80.0, 81.0, 79.0)), (256, (79.5, 77.0, 78.5))):
        for name, accuracy in zip(("sgd", "lars", "adamw"), accuracies, strict=True):
            put(workplace, f"optimizer={name}", f"batch={batch}", accuracy=accuracy)
    assert opened() == (
        "At batch 256 SGD reaches 79.5 %, AdamW 78.5 %, LARS 77.0 % (one seed each); "
        "SGD stays within 1 point of batch 128 at every batch, "
        "LARS loses more than 1 point between batch 128 and 256, "
        "AdamW stays within 1 point of batch 128 at every batch."
    )
