"""Images on disk or from a download, and the cache of the decoded images."""

import os
import subprocess
import sys
import zlib

import pytest
import torch
from PIL import Image

from engine.data import sources
from engine.data.dataset import load_data
from engine.errors import UserError
from tests.helpers import CLASSES
from tests.helpers.runs import cifar10_config, folder_config


def test_a_tree_is_read(tree):
    made = load_data(folder_config(tree))
    assert made.classes == CLASSES
    assert made.train.images.shape == (120, 32, 32, 3) and made.train.images.dtype == torch.uint8
    assert made.train.labels.bincount().tolist() == [40, 40, 40]
    with Image.open(tree / "train" / "dog" / "0007.png") as image:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    assert torch.equal(made.train.images[47], pixels.view(32, 32, 3))


def count_decodes(monkeypatch):
    calls = []
    decode = sources._decode_folder

    def counted(source):
        calls.append(source)
        return decode(source)

    monkeypatch.setattr(sources, "_decode_folder", counted)
    return calls


def test_a_tree_is_decoded_once_and_again_if_it_changes(tree, monkeypatch):
    calls = count_decodes(monkeypatch)
    first = load_data(folder_config(tree))
    load_data.cache_clear()
    second = load_data(folder_config(tree))
    assert len(calls) == 1
    assert torch.equal(first.train.images, second.train.images)
    (tree / "train" / "cat" / "0000.png").unlink()
    load_data.cache_clear()
    assert len(load_data(folder_config(tree)).train) == 119
    assert len(calls) == 2


def put_back(path, content, status):
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def level(tree):
    """Return the tree with equal sizes and mtimes of all files, as after tar --mtime or nix."""
    for path in tree.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
        image.save(path, "BMP")
        os.utime(path, ns=(10**9, 10**9))
    assert len({path.stat().st_size for path in tree.rglob("*.png")}) == 1
    return tree


@pytest.mark.parametrize("how", ["in place", "replaced", "exchanged", "linked", "folders"])
def test_a_changed_image_with_equal_size_and_mtime_is_detected(level, monkeypatch, how):
    calls = count_decodes(monkeypatch)
    first = load_data(folder_config(level)).train.images
    left, right = (level / "train" / name / "0000.png" for name in ("cat", "dog"))
    status = left.stat()
    if how == "in place":
        put_back(left, right.read_bytes(), status)
    elif how == "replaced":
        other = level / "other"
        put_back(other, right.read_bytes(), status)
        other.replace(left)
    elif how == "linked":
        left.unlink()
        left.symlink_to(right)
    else:
        # The files in an exchanged folder keep all their times.
        ends = (left, right) if how == "exchanged" else (left.parent, right.parent)
        ends[0].rename(level / "other")
        ends[1].rename(ends[0])
        (level / "other").rename(ends[1])
    load_data.cache_clear()
    made = load_data(folder_config(level)).train.images
    assert len(calls) == 2
    assert torch.equal(made[0], first[40]) and not torch.equal(first[0], first[40])
    load_data.cache_clear()
    load_data(folder_config(level))
    assert len(calls) == 2


def fixed_times(monkeypatch):
    """Give every file the same ctime, as may happen with a coarse clock or a fast machine."""
    stat = os.stat

    class Status:
        def __init__(self, status):
            self.status = status

        def __getattr__(self, name):
            return 10**9 if name == "st_ctime_ns" else getattr(self.status, name)

    monkeypatch.setattr(sources.os, "stat", lambda path, **more: Status(stat(path, **more)))


def test_exchanged_folders_are_detected_by_their_inodes(level, monkeypatch):
    calls = count_decodes(monkeypatch)
    fixed_times(monkeypatch)
    first = load_data(folder_config(level)).train.images
    left, right = level / "train" / "cat", level / "train" / "dog"
    left.rename(level / "other")
    right.rename(left)
    (level / "other").rename(right)
    load_data.cache_clear()
    assert torch.equal(load_data(folder_config(level)).train.images[0], first[40])
    assert len(calls) == 2


class Moving:
    """Simulate a file system that changes the inode of every file with each mount."""

    def __init__(self, monkeypatch):
        self.mounts = 0
        stat = os.stat

        class Status:
            def __init__(self, status, mounts):
                self.status, self.mounts = status, mounts

            def __getattr__(self, name):
                found = getattr(self.status, name)
                return found + 1000 * self.mounts if name == "st_ino" else found

        def moved(path, **more):
            return Status(stat(path, **more), self.mounts)

        monkeypatch.setattr(sources.os, "stat", moved)


def test_if_inodes_change_a_tree_is_decoded_twice_and_no_more(tree, monkeypatch):
    calls = count_decodes(monkeypatch)
    disk = Moving(monkeypatch)
    for mounts, expected in ((0, 1), (0, 1), (1, 2), (1, 2), (2, 2), (3, 2)):
        disk.mounts = mounts
        load_data.cache_clear()
        load_data(folder_config(tree))
        assert len(calls) == expected
    # A change there is detected by its times.
    path = tree / "train" / "cat" / "0000.png"
    put_back(path, (tree / "train" / "dog" / "0000.png").read_bytes(), path.stat())
    load_data.cache_clear()
    load_data(folder_config(tree))
    assert len(calls) == 3


def test_a_damaged_cache_does_not_exclude_inodes_from_the_comparison(tree, monkeypatch):
    load_data(folder_config(tree))
    cache = tree / ".decoded-image_folder.pt"
    whole = torch.load(cache, weights_only=True)
    torch.save(whole | {"train_images": whole["train_images"] ^ 1}, cache)
    load_data.cache_clear()
    load_data(folder_config(tree))
    assert torch.load(cache, weights_only=True)["fingerprint"] == whole["fingerprint"]


def test_a_copied_tree_is_decoded_once(tree, tmp_path, monkeypatch):
    calls = count_decodes(monkeypatch)
    load_data(folder_config(tree))
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    for _ in range(2):
        load_data.cache_clear()
        load_data(folder_config(copy))
    assert len(calls) == 2


def test_a_cache_of_an_earlier_version_is_decoded_again(tree, monkeypatch):
    calls = count_decodes(monkeypatch)
    load_data(folder_config(tree))
    cache = tree / ".decoded-image_folder.pt"
    whole = torch.load(cache, weights_only=True)
    del whole["lasting"]
    torch.save(whole | {"fingerprint": "0" * 64}, cache)
    load_data.cache_clear()
    load_data(folder_config(tree))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_cache_is_decoded_again(tree, monkeypatch, damage):
    calls = count_decodes(monkeypatch)
    expected = load_data(folder_config(tree))
    cache = tree / ".decoded-image_folder.pt"
    content = bytearray(cache.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"not a cache")
    cache.write_bytes(content)
    load_data.cache_clear()
    assert torch.equal(load_data(folder_config(tree)).train.images, expected.train.images)
    assert len(calls) == 2


def test_the_cache_is_in_data_cache_if_the_tree_is_read_only(tree, tmp_path, monkeypatch):
    calls = count_decodes(monkeypatch)
    write = sources.write_atomically

    def refuse(path, fill):
        if path.parent == tree:
            raise PermissionError(13, "Permission denied")
        write(path, fill)

    monkeypatch.setattr(sources, "write_atomically", refuse)
    for _ in range(2):
        load_data(folder_config(tree, cache=str(tmp_path / "cache")))
        load_data.cache_clear()
    assert len(calls) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_an_image_of_another_size_is_named(tree):
    Image.new("RGB", (28, 28)).save(tree / "train" / "cat" / "0003.png")
    with pytest.raises(UserError, match=r"0003\.png: must be 32x32 pixels, is 28x28"):
        load_data(folder_config(tree))


def test_a_decompression_bomb_is_an_image_of_another_size(tree):
    path = tree / "train" / "cat" / "0003.png"
    header = bytearray(path.read_bytes())
    header[16:24] = (20000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path.write_bytes(header)
    with pytest.raises(UserError, match=r"0003\.png: must be 32x32 pixels, is 20000x20000"):
        load_data(folder_config(tree))


@pytest.mark.parametrize(
    ("root", "message"), [("x" * 300, "File name too long"), ("~nobody-here/x", "home directory")]
)
def test_a_root_that_cannot_be_a_directory_raises(root, message):
    with pytest.raises(UserError, match=f"must be a directory .*{message}"):
        load_data(folder_config(root))


@pytest.mark.parametrize(
    ("cache", "message"), [("x" * 300, "File name too long"), ("~nobody-here/x", "home directory")]
)
def test_a_cache_that_cannot_be_a_directory_raises(tree, cache, message):
    with pytest.raises(UserError, match=f"data.cache=.*: must be a directory .*{message}"):
        load_data(folder_config(tree, cache=cache))


def test_a_truncated_image_is_named(tree):
    path = tree / "test" / "ship" / "0001.png"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"0001\.png: cannot be decoded"):
        load_data(folder_config(tree))
    assert not list(tree.glob(".decoded*"))


def test_gray_images_become_rgb(tree):
    Image.new("L", (32, 32), 77).save(tree / "train" / "cat" / "0000.png")
    assert torch.equal(
        load_data(folder_config(tree)).train.images[0],
        torch.full((32, 32, 3), 77, dtype=torch.uint8),
    )


def test_a_download_that_hangs_raises_in_one_line_and_leaves_no_files(tmp_path, monkeypatch):
    code = "import time; time.sleep(60)"
    run = subprocess.run

    def hang(command, **options):
        return run([sys.executable, "-c", code], **options)

    monkeypatch.setattr(sources.subprocess, "run", hang)
    with pytest.raises(UserError) as raised:
        load_data(cifar10_config(tmp_path / "a" / "b", seconds=0.5))
    assert "not finished within 0.5 s" in str(raised.value)
    assert "data=synthetic" in str(raised.value) and "data.root" in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_nothing_is_downloaded_to_a_broken_link(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to("disk")
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(UserError, match=r"data: must be a directory"):
        load_data(cifar10_config(tmp_path / "data"))


def fake_cifar10(root, monkeypatch):
    """Write a folder in CIFAR-10's format with ten images per file, and set its checksums."""
    import hashlib
    import pickle

    import numpy as np
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    stored = {}

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name):
        stored[name] = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        return write(name, {"data": stored[name], "labels": list(range(10))})

    names = [f"data_batch_{number}" for number in range(1, 6)]
    monkeypatch.setattr(CIFAR10, "train_list", [batch(name) for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    meta = write("batches.meta", {"label_names": [f"class{number}" for number in range(10)]})
    described = {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    monkeypatch.setattr(CIFAR10, "meta", described)
    return stored


def test_cifar10_is_read_through_torchvision(tmp_path, monkeypatch):
    stored = fake_cifar10(tmp_path, monkeypatch)
    made = load_data(cifar10_config(tmp_path))
    assert (len(made.train), len(made.test), made.classes[3]) == (50, 10, "class3")
    expected = torch.from_numpy(stored["data_batch_2"]).view(10, 3, 32, 32).permute(0, 2, 3, 1)
    assert torch.equal(made.train.images[10:20], expected)
    assert made.test.labels.tolist() == list(range(10))


def test_a_damaged_copy_of_cifar10_raises(tmp_path, monkeypatch):
    fake_cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"data\.root=.*: its copy of cifar10 is incomplete"):
        load_data(cifar10_config(tmp_path))


@pytest.mark.parametrize("another", [False, True], ids=["alone", "concurrent"])
def test_a_download_is_complete_or_absent(tmp_path, monkeypatch, another):
    root = tmp_path / "images"
    stored = fake_cifar10(tmp_path / "server", monkeypatch)

    def fetch(command, **_):
        import shutil

        inner = "cifar-10-batches-py"
        shutil.copytree(tmp_path / "server" / inner, f"{command[-1]}/{inner}")
        if another:
            shutil.copytree(tmp_path / "server" / inner, root / inner)

    monkeypatch.setattr(sources.subprocess, "run", fetch)
    made = load_data(cifar10_config(root))
    assert len(made.train) == 10 * (len(stored) - 1)
    assert {path.name for path in root.iterdir()} == {"cifar-10-batches-py"}
    assert not (root / "cifar-10-batches-py" / "cifar-10-batches-py").exists()
