"""What counts as a class and an image in a tree of folders, and what is said of the rest."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from engine.data import sources
from engine.data.dataset import load_data
from engine.data.folder import SUFFIXES, SYSTEM_FOLDERS, find_images
from engine.errors import UserError
from tests.helpers.runs import folder_config


def load(tree, **changes):
    load_data.cache_clear()
    return load_data(folder_config(tree, **changes))


def test_images_and_order_are_those_of_image_folder(tree):
    # torchvision's folder.make_dataset goes by folder, then by file; its suffixes are in any case.
    for name in ("a b", "a", "a/b", "ab"):
        (tree / "train" / "dog" / name).mkdir()
        for number in range(3):
            image = tree / "train" / "dog" / f"000{number}.png"
            shutil.copy(image, tree / "train" / "dog" / name / f"{number}.PnG")
    (tree / "train" / "cat" / "link").symlink_to(tree / "train" / "dog" / "a")
    found, theirs = find_images(tree, "train"), ImageFolder(str(tree / "train"))
    assert found.classes == theirs.classes and found.images == theirs.samples
    assert len(found.images) == 120 + 12 + 6 and not found.left_out
    assert SUFFIXES == IMG_EXTENSIONS


def test_what_is_left_out_is_said_in_one_line_when_it_is_decoded(tree, capfd):
    cat = tree / "train" / "cat"
    for name in ("a.jfif", "b.GIF", "c.gif", "LICENSE", "d.txt", "Thumbs.db"):
        (cat / name).write_bytes(b"x")
    (tree / "train" / "list.csv").touch()
    (tree / "train" / "image.png").touch()
    for name in ("labels.json", "README"):
        (tree / "test" / "dog" / name).touch()
    load(tree)
    assert capfd.readouterr().err == (
        f"data.root={tree}: train: left out 2 .gif, 2 in no class folder, 1 .db, 1 .jfif, 1 .txt, "
        "1 more; test: left out 1 .json, 1 without a suffix\n"
    )
    load(tree)
    assert capfd.readouterr().err == ""


def test_several_frames_are_said(tree, capfd):
    path = tree / "train" / "cat" / "0000.png"
    with Image.open(path) as image:
        image.save(path, save_all=True, append_images=[image.rotate(90)])
    load(tree)
    told = "train: 1 files hold several frames, the first is used\n"
    assert capfd.readouterr().err == f"data.root={tree}: {told}"


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_are_all_the_same_are_refused(tree, split):
    for path in (tree / split).rglob("*.png"):
        Image.new("RGB", (32, 32), (9, 9, 9)).save(path)
    with pytest.raises(UserError) as raised:
        load(tree)
    count = {"train": 120, "test": 30}[split]
    told = f"data.root={tree}: {split}: its {count} images are all the same"
    assert str(raised.value).startswith(told)
    path = tree / split / "cat" / "0000.png"
    Image.new("RGB", (32, 32), (9, 9, 8)).save(path)
    assert len(load(tree).test) == 30


def test_a_split_of_one_image_is_not_all_the_same(tree):
    for split in ("train", "test"):
        shutil.rmtree(tree / split / "dog")
        shutil.rmtree(tree / split / "ship")
    for path in sorted((tree / "test" / "cat").iterdir())[1:]:
        path.unlink()
    assert len(load(tree).test) == 1


def test_deep_images_reach_the_run(tree):
    levels = np.arange(1024, dtype="<u2").reshape(32, 32) * 64
    deep = Image.frombytes("I;16", (32, 32), levels.tobytes())
    deep.save(tree / "train" / "cat" / "0000.png")
    image = load(tree).train.images[0]
    assert torch.equal(image[..., 0], torch.from_numpy((levels >> 8).astype(np.uint8)))
    assert torch.equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".Trash-1000", *SYSTEM_FOLDERS])
@pytest.mark.parametrize("where", ["train", "test", "train/cat", "train/cat/deeper"])
def test_a_hidden_folder_is_no_class_and_holds_no_images(tree, capfd, where, name):
    expected = load(tree)
    folder = tree / where / name / "cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (48, 48)).save(folder / "thumbnail.png")
    (tree / ".decoded-image_folder.pt").unlink()
    made = load(tree)
    assert made.classes == expected.classes
    assert torch.equal(made.train.images, expected.train.images)
    split = where.partition("/")[0]
    assert capfd.readouterr().err == f"data.root={tree}: {split}: left out 1 hidden\n"


@pytest.mark.parametrize("where", ["train", "train/cat", "test/ship"])
def test_hidden_files_are_left_out_and_counted(tree, capfd, where):
    for name in ("._0000.png", ".DS_Store", ".hidden.png", ".png"):
        (tree / where / name).write_bytes(b"\0\5\x16\7")
    assert (len(load(tree).train), len(load(tree).test)) == (120, 30)
    told = f"data.root={tree}: {where.partition('/')[0]}: left out 4 hidden\n"
    assert capfd.readouterr().err == told


def test_what_is_hidden_is_not_looked_at_again(tree, monkeypatch):
    load(tree)
    (tree / "train" / ".DS_Store").touch()
    (tree / "train" / "cat" / ".gone.png").symlink_to("nowhere")
    (tree / "train" / "cat" / ".loop").symlink_to(".")
    monkeypatch.setattr(sources, "_decode_folder", lambda _: pytest.fail("decoded again"))
    load(tree)


def test_a_tree_below_a_hidden_folder_is_a_tree(tree, tmp_path):
    (tmp_path / ".data").mkdir()
    moved = tree.rename(tmp_path / ".data" / "tree")
    assert len(load(moved).train) == 120


def test_an_empty_class_folder_is_named_with_what_it_holds(tree):
    (tree / "train" / "zebra").mkdir()
    (tree / "train" / "zebra" / "a.jfif").touch()
    (tree / "train" / "yak").mkdir()
    with pytest.raises(UserError) as raised:
        load(tree)
    told = f"data.root={tree}: train: Found no valid file for the classes yak, zebra; images end in"
    assert str(raised.value).startswith(told)
    assert str(raised.value).endswith("left out: 1 .jfif")


def test_an_empty_class_folder_is_seen_after_a_cache_was_written(tree):
    load(tree)
    (tree / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="no valid file for the classes empty"):
        load(tree)


def test_images_without_class_folders_are_refused(tree):
    for folder in list((tree / "train").iterdir()):
        for path in folder.iterdir():
            path.rename(tree / "train" / f"{folder.name}{path.name}")
        folder.rmdir()
    with pytest.raises(UserError) as raised:
        load(tree)
    assert "train: Couldn't find any class folder; needs train/<class>/*" in str(raised.value)
    assert "left out: 120 in no class folder" in str(raised.value)


@pytest.mark.parametrize("where", ["train/loop", "train/cat/loop"])
def test_a_loop_of_links_is_one_line(tree, where):
    (tree / where).symlink_to("..")
    with pytest.raises(UserError) as raised:
        load(tree)
    text = str(raised.value)
    assert text.startswith(f"data.root={tree}: ") and "\n" not in text
    assert " cannot be read (Too many levels of symbolic links)" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_listed_is_named(tree):
    (tree / "train" / "cat").chmod(0)
    with pytest.raises(UserError, match=r"train/cat: cannot be read \(Permission denied\)"):
        load(tree)
    (tree / "train" / "cat").chmod(0o755)


@pytest.mark.parametrize(
    ("only_train", "only_test", "told"),
    [
        (["boat"], [], "; only train has boat"),
        ([], ["boat"], "; only test has boat"),
        (["a", "b"], ["c"], "; only train has a, b, only test has c"),
        (list("abcdefgh"), [], "; only train has a, b, c, d, e, 3 more"),
        (["a\nb"], ["a|b"], "; only train has a\\nb, only test has a|b"),
        (["Cat"], [" cat"], "; only train has Cat, only test has ' cat'"),
        (["caf\u00e9"], ["cafe\u0301"], "; only train has 'caf\\xe9', only test has 'cafe\\u0301'"),
    ],
)
def test_class_folders_that_differ_are_named(tree, only_train, only_test, told):
    for split, names in (("train", only_train), ("test", only_test)):
        for name in names:
            shutil.copytree(tree / split / "cat", tree / split / name)
    with pytest.raises(UserError) as raised:
        load(tree)
    expected = f"data.root={tree}: train and test must hold the same class folders{told}"
    assert str(raised.value) == expected
