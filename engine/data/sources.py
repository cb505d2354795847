"""Sources of images: read from a directory, generated or downloaded, then decoded and cached.

A decoded source is a dictionary of classes, and of uint8 images [N, 32, 32, 3] and int64 labels [N]
for each split. It is cached in the source's folder (or in `data.cache`) with a fingerprint of the
files. A changed tree is therefore decoded again, and an unchanged one loads without PIL or
torchvision. folder.py lists the files of a tree, decode.py decodes one file, and dataset.py makes
the splits of a run.
"""

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.config.schema import DataConfig, DownloadedDataConfig
from engine.data import SIDE
from engine.data.decode import decode_image
from engine.data.folder import Found, cannot_be_read, class_names, find_images, walk
from engine.errors import UserError, key_error
from engine.system.distributed import rank
from engine.system.files import write_atomically
from engine.system.resources import available_cpus
from engine.system.text import shown

SPLITS = ("train", "test")
# Change this if the same files are decoded to other pixels, so that older caches are not used.
DECODER = b"2"


@dataclass(frozen=True)
class Known:
    """A data set whose classes and sizes are fixed.

    Attributes:
        classes: number of classes.
        sizes: number of images in the training split and in the test split.
        read: reads one split, given the directory `data.root` and the split's name.
        downloads: calls of torchvision.datasets that download it into `root`; empty if none.
        folder: the folder in `root` that these calls create.

    """

    classes: int
    sizes: tuple[int, int]
    read: Callable[[Path, str], "Decoded"]
    downloads: Sequence[str] = ()
    folder: str = ""


class Decoded(NamedTuple):
    """One decoded split.

    Attributes:
        classes: names of the classes.
        images: uint8 [N, 32, 32, 3].
        labels: int64 [N], indices into `classes`.

    """

    classes: Sequence[str]
    images: Tensor
    labels: Tensor


def read_cifar(kind: str, root: Path, split: str) -> Decoded:
    """Return a split of CIFAR from the files that torchvision downloaded to `root`.

    Args:
        kind: the class of torchvision.datasets: CIFAR10, or CIFAR100 with its fine labels.
        root: the directory.
        split: train or test.

    """
    # Imported here, because a cached data set does not need torchvision.
    from torchvision import datasets

    source = getattr(datasets, kind)(str(root), train=split == "train")
    labels = torch.tensor(source.targets, dtype=torch.int64)
    return Decoded(source.classes, torch.from_numpy(source.data).contiguous(), labels)


def draw_synthetic(root: Path, split: str) -> Decoded:
    """Return a split of the synthetic data set. `root` is not used."""
    from engine.data import synthetic

    is_train = split == "train"
    images, labels = synthetic.make_split(is_train, SYNTHETIC_SIZES[0 if is_train else 1])
    return Decoded(synthetic.CLASSES, torch.from_numpy(images), torch.from_numpy(labels))


SYNTHETIC_SIZES = (50_000, 10_000)
KNOWN = {
    "cifar10": Known(
        10,
        (50_000, 10_000),
        functools.partial(read_cifar, "CIFAR10"),
        ["CIFAR10(root, download=True)"],
        "cifar-10-batches-py",
    ),
    "cifar100": Known(
        100,
        (50_000, 10_000),
        functools.partial(read_cifar, "CIFAR100"),
        ["CIFAR100(root, download=True)"],
        "cifar-100-python",
    ),
    "synthetic": Known(10, SYNTHETIC_SIZES, draw_synthetic),
}
# torchvision checks an archive's MD5, then extracts all of it. Python's filter (3.11.4 or later)
# rejects members whose path or link target is outside of the folder.
DOWNLOAD = """\
import sys, tarfile
from torchvision.datasets import *
if hasattr(tarfile, "data_filter"):
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
root = sys.argv[1]
"""


def read_source(config: DataConfig, keep: bool = True) -> dict[str, Any]:
    """Return the decoded source of a configuration, from its cache if possible.

    Args:
        config: the group `data`.
        keep: whether to write a missing cache.

    Raises:
        UserError: the images cannot be found, downloaded or decoded.

    """
    folder = _directory("data.root", config.root)
    _directory("data.cache", config.cache)
    if config.name in KNOWN:
        known, kept = KNOWN[config.name], folder
        if isinstance(config, DownloadedDataConfig):
            kept = _download(config, known, folder)
        return _cached(config, kept, lambda: _read_known(config.name, known, folder), keep)
    for split in SPLITS:
        if not (folder / split).is_dir():
            allowed = f"{folder / split} is not a directory; needs train/<class>/*, test/<class>/*"
            raise key_error("data.root", config.root, allowed)
    return _cached(config, folder, functools.partial(_decode_folder, folder), keep)


def _directory(key: str, given: str | None) -> Path:
    """Return the path of a directory, which need not exist; raise UserError for a bad path."""
    try:
        folder = Path(given or "").expanduser()
        folder.is_dir()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise key_error(key, given, f"must be a directory ({reason})") from error
    return folder


def blank_source(name: str) -> dict[str, Any]:
    """Return a decoded source of `KNOWN` whose images are all black and share memory."""
    known = KNOWN[name]
    blank: dict[str, Any] = {"classes": [str(label) for label in range(known.classes)]}
    for split, size in zip(SPLITS, known.sizes, strict=True):
        blank[f"{split}_images"] = torch.zeros(1, dtype=torch.uint8).expand(size, SIDE, SIDE, 3)
        blank[f"{split}_labels"] = torch.arange(size) % known.classes
    return blank


def note(text: str) -> None:
    """Print why a command takes long, to a terminal only, so that logs have errors and results."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def _cached(
    config: DataConfig, folder: Path, decode: Callable[[], dict[str, Any]], keep: bool
) -> dict[str, Any]:
    """Return the decoded source from its cache, or decode it and write the cache.

    Args:
        config: the group `data`.
        folder: the folder of the source's files.
        decode: decodes the source.
        keep: whether to write the cache.

    """
    found = _fingerprint(config.name, folder)
    places = [folder / f".decoded-{config.name}.pt"]
    if config.cache is not None:
        key = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
        places.append(Path(config.cache).expanduser() / f"decoded-{config.name}-{key}.pt")
    stale = []
    for place in places:
        decoded = _read_cache(place)
        if decoded.get("fingerprint") not in (found.exact, found.lasting):
            stale.append((decoded.get("lasting"), decoded.get("digest")))
        elif _is_whole(decoded):
            return decoded
    decoded = decode()
    digest = _digest(decoded)
    # Only the inodes differ from an older cache, so this file system does not keep its inodes.
    kept = (found.lasting, digest) in stale
    fingerprint = found.lasting if kept else found.exact
    decoded |= {"fingerprint": fingerprint, "lasting": found.lasting, "digest": digest}
    for place in places if keep else []:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lambda file: torch.save(decoded, file))
            break
        except OSError as error:
            note(f"cannot write a cache in {place.parent} ({error.strerror})")
    return decoded


def _read_cache(place: Path) -> dict[str, Any]:
    """Return the content of a cache file, or an empty dictionary if it is missing or damaged."""
    try:
        return dict(torch.load(place, weights_only=True))
    except Exception:
        # torch.load raises many exception types for damaged files.
        return {}


def _is_whole(decoded: dict[str, Any]) -> bool:
    try:
        return decoded["digest"] == _digest(decoded)
    except Exception:
        return False


def _digest(decoded: dict[str, Any]) -> str:
    """Return the SHA-256 of classes, images and labels, to detect a damaged cache."""
    digest = hashlib.sha256("\0".join(decoded["classes"]).encode())
    for split in SPLITS:
        digest.update(decoded[f"{split}_images"].numpy().data)
        digest.update(decoded[f"{split}_labels"].numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """Digests of the metadata of a source's files.

    A program can set an mtime, as tar, nix and checkouts do, but not a ctime. Inodes detect folders
    that were exchanged, whose files keep their times. On FUSE, FAT and some network file systems,
    inodes may change with each mount, and there is no way to know this beforehand. There the tree
    is decoded a second time. If the images are equal, the cache is from then on compared without
    inodes.

    Attributes:
        exact: digest of names, sizes, mtimes, ctimes and inodes.
        lasting: the same without inodes.

    """

    exact: str
    lasting: str


def _fingerprint(name: str, folder: Path) -> Fingerprint:
    """Return the fingerprint of a source's files, or that of the generator's version."""
    if name == "synthetic":
        from engine.data import synthetic

        return Fingerprint(*[f"synthetic-{synthetic.VERSION}"] * 2)
    lasting = hashlib.sha256(DECODER if name == "image_folder" else b"")
    inodes = hashlib.sha256()
    for top in [folder / split for split in SPLITS] if name == "image_folder" else [folder]:
        try:
            for parent, _, files, _ in walk(str(top)):
                # A folder without files is included, because it may be a class.
                lines = [f"{os.path.relpath(parent, folder)}\0\n"]
                numbers = []
                for file in files:
                    status = os.stat(os.path.join(parent, file))
                    times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"
                    lines.append(f"{file}\0{status.st_size}\0{times}\n")
                    numbers.append(f"{status.st_ino}\n")
                lasting.update(os.fsencode("".join(lines)))
                inodes.update("".join(numbers).encode())
        except OSError as error:
            raise cannot_be_read(folder, error) from error
    inodes.update(lasting.digest())
    return Fingerprint(inodes.hexdigest(), lasting.hexdigest())


def _decode_folder(source: Path) -> dict[str, Any]:
    """Decode all images of a tree, with a thread for each CPU.

    Raises:
        UserError: an image cannot be decoded, or all images of a split are equal.

    """
    found = {split: find_images(source, split) for split in SPLITS}
    decoded: dict[str, Any] = {"classes": class_names(source, list(found.items()))}
    with_frames = {}
    for split, images in found.items():
        note(f"decoding {len(images.images):,} images of {source / split} (once)")
        pixels = torch.empty(len(images.images), SIDE, SIDE, 3, dtype=torch.uint8)
        with_frames[split] = 0
        # Pillow's warnings are about files that raise, or about ignored data.
        with ThreadPoolExecutor(available_cpus()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            paths = [path for path, _ in images.images]
            for place, (image, several) in enumerate(pool.map(decode_image, paths, chunksize=64)):
                pixels[place] = image
                with_frames[split] += several
        if len(pixels) > 1 and all(torch.equal(image, pixels[0]) for image in pixels[1:]):
            allowed = f"{split}: all {len(pixels):,} images are equal; check the path"
            raise key_error("data.root", shown(str(source)), allowed)
        decoded[f"{split}_images"] = pixels
        labels = [label for _, label in images.images]
        decoded[f"{split}_labels"] = torch.tensor(labels, dtype=torch.int64)
    _report_unused(source, found, with_frames)
    return decoded


def _report_unused(source: Path, found: dict[str, Found], with_frames: dict[str, int]) -> None:
    """Print one line about files that are no images and files with several frames, also to logs."""
    parts = []
    for split, images in found.items():
        left_out = [f"left out {images.describe_left_out()}"] if images.left_out else []
        if with_frames[split]:
            left_out.append(f"used only the first frame of {with_frames[split]:,} files")
        if left_out:
            parts.append(f"{split}: {', '.join(left_out)}")
    if parts and rank() == 0:
        print(f"data.root={shown(str(source))}: {'; '.join(parts)}", file=sys.stderr)


def _read_known(name: str, known: Known, root: Path) -> dict[str, Any]:
    """Return both splits of a known data set. torchvision checks the MD5 of each file.

    Raises:
        UserError: a file is missing or damaged.

    """
    if not known.downloads:
        note(f"generating the {name} data set (once)")
    decoded: dict[str, Any] = {}
    for split in SPLITS:
        try:
            read = known.read(root, split)
        except RuntimeError as error:
            allowed = f"its copy of {name} is incomplete or damaged; remove it to download it again"
            raise key_error("data.root", root, allowed) from error
        except ImportError as error:
            allowed = f"reading it needs the package {error.name}: pip install {error.name}"
            raise key_error("data", name, allowed) from error
        assert read.images.shape == (len(read.labels), SIDE, SIDE, 3), read.images.shape
        decoded["classes"] = list(read.classes)
        decoded[f"{split}_images"], decoded[f"{split}_labels"] = read.images, read.labels
    return decoded


def _download(config: DownloadedDataConfig, known: Known, root: Path) -> Path:
    """Return the folder of a source's files; if it is missing, torchvision downloads and checks it.

    The download runs in a separate process, which is killed after `data.download_seconds`, and in a
    temporary folder, so that a failed download leaves nothing behind.

    Raises:
        UserError: the download failed, or `data.root` is not a directory.

    """
    folder = root / known.folder
    if folder.is_dir():
        return folder
    # This includes a broken link, where no folder could be created after the download.
    if os.path.lexists(root) and not root.is_dir():
        raise key_error("data.root", config.root, "must be a directory")
    existing = next(parent for parent in (root, *root.absolute().parents) if parent.is_dir())
    note(f"downloading {config.name} to {root} (once)")
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".download-") as temporary:
            code = "\n".join([DOWNLOAD, *known.downloads])
            command = [sys.executable, "-c", code, temporary]
            limit = config.download_seconds
            try:
                subprocess.run(
                    command, capture_output=True, encoding="utf-8", errors="replace",
                    timeout=limit, check=True,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise _no_download(config, f"not finished within {limit:g} s") from None
            except subprocess.CalledProcessError as error:
                reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise _no_download(config, reason) from None
            root.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(Path(temporary) / known.folder, folder)
            except OSError:
                # Another process may have downloaded it at the same time.
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise _no_download(config, f"{existing}: {error.strerror}") from error
    return folder


def _no_download(config: DownloadedDataConfig, reason: str) -> UserError:
    allowed = (
        f"could not be downloaded ({reason}); use data=synthetic, or data.root=DIR with a copy"
    )
    return key_error("data", config.name, allowed)
