"""Class folders and files with every name that a file system allows, through a whole run."""

import json
import os
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.util.tensor_util import make_ndarray

from engine.data.dataset import load_data
from engine.errors import UserError
from engine.system.text import cell
from tests.helpers.runs import folder_config, only_run

# Names as bytes, and as they are printed.
ODD = {
    b"caf\xe9": r"caf\xe9", b"\xff\xfe": r"\xff\xfe", b"a|b": "a|b", b"new\nline": r"new\nline",
    b"`x` <b>&amp;": "`x` <b>&amp;", b" lead": "' lead'", b"trail ": "'trail '",
    b"\x1b[2Jx": r"\x1b[2Jx", "猫🐈".encode(): "猫🐈", b"a\\b": r"a\b", b"'q'\"": "'q'\"",
}  # fmt: skip


def rename(tree, names):
    """Rename the tree's classes, in sorted order, to names given as bytes."""
    for split in ("train", "test"):
        folders = sorted((tree / split).iterdir())
        for folder, name in zip(folders, names, strict=False):
            os.rename(folder, os.path.join(os.fsencode(tree / split), name))


@pytest.mark.parametrize("name", ODD, ids=ODD.values())
def test_a_class_with_any_name_is_trained_cached_evaluated_and_printed(
    tree, small, workplace, command, name
):
    rename(tree, [name])
    os.rename(
        os.path.join(os.fsencode(tree), b"train", name, b"0000.png"),
        os.path.join(os.fsencode(tree), b"train", name, b"\xe9\n|.png"),
    )
    outcome = command("train.py", *small, "epochs=1", "optimizer.base_lr=1e-30")
    assert (outcome.status, outcome.err) == (0, "")
    directory = only_run(workplace)
    outcome = command("val.py", f"checkpoint={directory}")
    assert outcome.status == 0
    (line,) = [text for text in outcome.out.splitlines() if text.startswith(f"  {ODD[name]} ")]
    assert line.endswith(" %") and "\x1b" not in outcome.out
    outcome = command("val.py", f"checkpoint={directory}", "json=true")
    figures = json.loads(outcome.out)["per_class_accuracy"]
    assert len(figures) == 3
    plain = name.decode("utf-8", "backslashreplace")
    assert plain in figures
    # The learning rate is too small to learn, so all three classes are among the mistakes.
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("worst_mistakes/text_summary")
    table = make_ndarray(event.tensor_proto)[0].decode()
    assert table.count("|") == 5 * len(table.splitlines())
    assert cell(plain) in table
    page = markdown_to_safe_html(table)
    assert page.count("<td>") == 4 * (len(table.splitlines()) - 2)
    assert "<b>" not in page and "<code>" not in page


def test_names_that_are_not_utf8_are_decoded_once_and_printed_in_one_line(tree):
    rename(tree, [b"caf\xe9", b"\xe9"])
    place = os.path.join(os.fsencode(tree), b"train", b"\xe9")
    os.rename(os.path.join(place, b"0001.png"), os.path.join(place, b"\xff.png"))
    made = load_data(folder_config(tree))
    # Classes are sorted by the bytes of their names.
    assert made.classes == (r"caf\xe9", "ship", r"\xe9")
    load_data.cache_clear()
    assert torch.equal(load_data(folder_config(tree)).train.images, made.train.images)
    with open(os.path.join(place, b"\xff.png"), "wb") as file:
        file.write(b"damage")
    load_data.cache_clear()
    with pytest.raises(UserError) as raised:
        load_data(folder_config(tree))
    message = rf"data.root={tree}/train/\xe9/\xff.png: cannot be decoded ("
    assert str(raised.value).startswith(message)
    assert str(raised.value).encode() and "\n" not in str(raised.value)


def test_two_folders_with_the_same_readable_name_raise(tree):
    rename(tree, [b"caf\xe9", rb"caf\xe9"])
    with pytest.raises(UserError) as raised:
        load_data(folder_config(tree))
    message = (
        rf"data.root={tree}: train: two class folders have the readable name caf\xe9; rename one"
    )
    assert str(raised.value) == message


def test_suffixes_with_any_bytes_are_counted_in_one_line(tree, capfd):
    cat = os.path.join(os.fsencode(tree), b"train", b"cat")
    for name in (b"a.\xe9", b"b.x\ny", b"c.\x1b[2J"):
        with open(os.path.join(cat, name), "wb"):
            pass
    load_data(folder_config(tree))
    message = r"left out 1 .\x1b[2j, 1 .\xe9, 1 .x\ny"
    assert capfd.readouterr().err == f"data.root={tree}: train: {message}\n"


@pytest.mark.parametrize("key", ["data.root", "data.cache"])
@pytest.mark.parametrize("quote", ["", '"'], ids=["plain", "quoted"])
def test_a_path_that_is_not_utf8_raises_in_one_line(small, workplace, command, key, quote):
    others = [o for o in small if not o.startswith(f"{key}=")]
    outcome = command("train.py", *others, f"{key}={quote}caf\udce9{quote}")
    message = rf"error: {key}={quote}caf\xe9{quote}: must be UTF-8 text; rename the folder, or make"
    assert outcome.status == 2 and outcome.err.startswith(message) and outcome.err.count("\n") == 1
    assert not list(workplace.iterdir())


def test_a_path_that_is_not_utf8_in_a_file_raises_in_one_line(small, workplace, command):
    (workplace / "experiment").mkdir()
    text = '# @package _global_\ndata:\n  root: "caf\\uDCE9"\n'
    (workplace / "experiment" / "mine.yaml").write_text(text)
    others = [o for o in small if not o.startswith("data.root=")]
    outcome = command("train.py", "--config-dir=.", *others, "+experiment=mine")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith(r"error: data.root=caf\xe9: must be UTF-8 text;")


def test_a_link_to_a_folder_that_is_not_utf8_works(tree, tmp_path):
    other = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.rename(tree, other)
    os.symlink(other, os.fsencode(tree))
    cache = {"cache": str(tmp_path / "cache")}
    assert len(load_data(folder_config(tree, **cache)).train) == 120
    assert os.path.exists(os.path.join(other, b".decoded-image_folder.pt"))


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["run", "sweep"])
def test_a_working_directory_that_is_not_utf8_works(
    tree, small, tmp_path, command, monkeypatch, flags
):
    folder = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"w\xe9"))
    os.mkdir(folder)
    os.rename(tree, os.path.join(folder, "pics"))
    monkeypatch.chdir(folder)
    os.mkdir("deeper")
    monkeypatch.chdir("deeper")
    others = [o for o in small if not o.startswith("data.root=")]
    outcome = command("train.py", *flags, *others, "epochs=1", "data.root=../pics")
    assert outcome.status == 0, outcome.err
    (path,) = (entry for entry in os.scandir("results/runs/default"))
    with open(os.path.join(path.path, "summary.json")) as file:
        assert json.load(file)["choices"]["data.root"].endswith(r"/w\xe9/pics")


@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"]], ids=["run", "sweep", "cfg"])
def test_a_configuration_directory_that_is_not_utf8_raises(tmp_path, command, monkeypatch, flags):
    folder = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"w\xe9"))
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    outcome = command("train.py", *flags, "data=synthetic", "--config-dir=.")
    message = (
        rf"error: --config-dir={tmp_path}/w\xe9: must be UTF-8 text; rename the folder, or make"
    )
    assert outcome.status == 2 and outcome.err.startswith(message) and outcome.err.count("\n") == 1
    assert not os.listdir(folder)
    os.symlink(folder, tmp_path / "link")
    outcome = command("train.py", *flags, "plan=true", f"--config-dir={tmp_path}/link")
    assert outcome.status == 0, outcome.err


def test_an_evaluation_names_the_different_classes(tree, small, workplace, command, tmp_path):
    assert command("train.py", *small, "epochs=1").status == 0
    other = tmp_path / "other"
    shutil.copytree(tree, other)
    rename(other, [b"cat", b"dog", b"a|\xe9"])
    outcome = command("val.py", f"checkpoint={only_run(workplace)}", f"data.root={other}")
    assert outcome.status == 2 and outcome.err == (
        rf"error: data.root={other}: must hold the checkpoint's classes; only it has a|\xe9, only "
        "the checkpoint has ship\n"
    )
