"""Which classes and images a tree of folders has, and what is printed about other files."""

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


def test_images_and_their_order_are_those_of_image_folder(tree):
    # torchvision's make_dataset sorts by folder, then by file, and ignores the case of suffixes.
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


def test_left_out_files_are_printed_in_one_line_when_a_tree_is_decoded(tree, capfd):
    cat = tree / "train" / "cat"
    for name in ("a.jfif", "b.GIF", "c.gif", "LICENSE", "d.txt", "Thumbs.db"):
        (cat / name).write_bytes(b"x")
    (tree / "train" / "list.csv").touch()
    (tree / "train" / "image.png").touch()
    for name in ("labels.json", "README"):
        (tree / "test" / "dog" / name).touch()
    load(tree)
    assert capfd.readouterr().err == (
        f"data.root={tree}: train: left out 2 .gif, 2 outside class folders, 1 .db, 1 .jfif, "
        "1 .txt, 1 more; test: left out 1 .json, 1 without a suffix\n"
    )
    load(tree)
    assert capfd.readouterr().err == ""


def test_files_with_several_frames_are_printed(tree, capfd):
    path = tree / "train" / "cat" / "0000.png"
    with Image.open(path) as image:
        image.save(path, save_all=True, append_images=[image.rotate(90)])
    load(tree)
    message = "train: used only the first frame of 1 files\n"
    assert capfd.readouterr().err == f"data.root={tree}: {message}"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_equal_images_raises(tree, split):
    for path in (tree / split).rglob("*.png"):
        Image.new("RGB", (32, 32), (9, 9, 9)).save(path)
    with pytest.raises(UserError) as raised:
        load(tree)
    count = {"train": 120, "test": 30}[split]
    message = f"data.root={tree}: {split}: all {count} images are equal"
    assert str(raised.value).startswith(message)
    path = tree / split / "cat" / "0000.png"
    Image.new("RGB", (32, 32), (9, 9, 8)).save(path)
    assert len(load(tree).test) == 30


def test_a_split_of_one_image_is_allowed(tree):
    for split in ("train", "test"):
        shutil.rmtree(tree / split / "dog")
        shutil.rmtree(tree / split / "ship")
    for path in sorted((tree / "test" / "cat").iterdir())[1:]:
        path.unlink()
    assert len(load(tree).test) == 1


def test_16_bit_images_are_loaded_with_their_upper_8_bits(tree):
    levels = np.arange(1024, dtype="<u2").reshape(32, 32) * 64
    deep = Image.frombytes("I;16", (32, 32), levels.tobytes())
    deep.save(tree / "train" / "cat" / "0000.png")
    image = load(tree).train.images[0]
    assert torch.equal(image[..., 0], torch.from_numpy((levels >> 8).astype(np.uint8)))
    assert torch.equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".Trash-1000", *SYSTEM_FOLDERS])
@pytest.mark.parametrize("where", ["train", "test", "train/cat", "train/cat/deeper"])
def test_a_hidden_folder_is_no_class_and_its_images_are_left_out(tree, capfd, where, name):
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
    message = f"data.root={tree}: {where.partition('/')[0]}: left out 4 hidden\n"
    assert capfd.readouterr().err == message


def test_hidden_files_do_not_invalidate_the_cache(tree, monkeypatch):
    load(tree)
    (tree / "train" / ".DS_Store").touch()
    (tree / "train" / "cat" / ".gone.png").symlink_to("nowhere")
    (tree / "train" / "cat" / ".loop").symlink_to(".")
    monkeypatch.setattr(sources, "_decode_folder", lambda _: pytest.fail("decoded again"))
    load(tree)


def test_a_tree_may_be_in_a_hidden_folder(tree, tmp_path):
    (tmp_path / ".data").mkdir()
    moved = tree.rename(tmp_path / ".data" / "tree")
    assert len(load(moved).train) == 120


def test_an_error_about_empty_class_folders_names_them_and_counts_their_files(tree):
    (tree / "train" / "zebra").mkdir()
    (tree / "train" / "zebra" / "a.jfif").touch()
    (tree / "train" / "yak").mkdir()
    with pytest.raises(UserError) as raised:
        load(tree)
    start = f"data.root={tree}: train: Found no valid file for the classes yak, zebra; images end"
    assert str(raised.value).startswith(start)
    assert str(raised.value).endswith("left out: 1 .jfif")


def test_an_empty_class_folder_is_found_although_there_is_a_cache(tree):
    load(tree)
    (tree / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="no valid file for the classes empty"):
        load(tree)


def test_images_without_class_folders_raise(tree):
    for folder in list((tree / "train").iterdir()):
        for path in folder.iterdir():
            path.rename(tree / "train" / f"{folder.name}{path.name}")
        folder.rmdir()
    with pytest.raises(UserError) as raised:
        load(tree)
    assert "train: Couldn't find any class folder; needs train/<class>/*" in str(raised.value)
    assert "left out: 120 outside class folders" in str(raised.value)


@pytest.mark.parametrize("where", ["train/loop", "train/cat/loop"])
def test_a_loop_of_links_raises_in_one_line(tree, where):
    (tree / where).symlink_to("..")
    with pytest.raises(UserError) as raised:
        load(tree)
    text = str(raised.value)
    assert text.startswith(f"data.root={tree}: ") and "\n" not in text
    assert " cannot be read (Too many levels of symbolic links)" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_folder_without_permission_is_named(tree):
    (tree / "train" / "cat").chmod(0)
    with pytest.raises(UserError, match=r"train/cat: cannot be read \(Permission denied\)"):
        load(tree)
    (tree / "train" / "cat").chmod(0o755)


@pytest.mark.parametrize(
    ("only_train", "only_test", "message"),
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
def test_different_class_folders_are_named(tree, only_train, only_test, message):
    for split, names in (("train", only_train), ("test", only_test)):
        for name in names:
            shutil.copytree(tree / split / "cat", tree / split / name)
    with pytest.raises(UserError) as raised:
        load(tree)
    expected = f"data.root={tree}: train and test must have the same class folders{message}"
    assert str(raised.value) == expected
