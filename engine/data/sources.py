"""Where images come from: found, drawn or downloaded, decoded once, kept in a cache.

Every source ends as a dictionary of classes, uint8 images [N, 32, 32, 3] and int64 labels [N] for
each split. It is cached beside its files (or in `data.cache`) under a fingerprint of those files,
so that a changed tree is decoded again and an unchanged one opens in a moment, without PIL or
torchvision. Which files a tree's images are is folder.py's, one file's pixels are decode.py's, and
dividing what was read is dataset.py's.
"""

import functools
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
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
# Changes where the same files are decoded to other pixels, so that no older cache is used.
DECODER = b"2"


@dataclass(frozen=True)
class Known:
    """A data set that is the same everywhere.

    classes: how many it has.
    sizes: images of the training and of the test split.
    read: reads one split from the data set's directory.
    downloads: calls of torchvision.datasets that download it into `root`, none if nothing does.
    folder: the folder in `root` that these calls make.
    """

    classes: int
    sizes: tuple[int, int]
    read: Callable[[Path, str], "Decoded"]
    downloads: Sequence[str] = ()
    folder: str = ""


class Decoded(NamedTuple):
    """One split: the names of its classes, uint8 images [N, 32, 32, 3], int64 labels [N]."""

    classes: Sequence[str]
    images: Tensor
    labels: Tensor


def read_cifar10(root: Path, split: str) -> Decoded:
    """Read CIFAR-10 from torchvision's copy."""
    return from_torchvision(datasets().CIFAR10(str(root), train=split == "train"))


def read_cifar100(root: Path, split: str) -> Decoded:
    """Read CIFAR-100, with its fine labels, from torchvision's copy."""
    return from_torchvision(datasets().CIFAR100(str(root), train=split == "train"))


def from_torchvision(source: Any) -> Decoded:
    """Take images and labels from a data set of torchvision's that keeps them as CIFAR-10 does."""
    labels = torch.tensor(source.targets, dtype=torch.int64)
    return Decoded(source.classes, torch.from_numpy(source.data).contiguous(), labels)


def datasets() -> ModuleType:
    """Import torchvision's data sets, which a cached data set does without."""
    return importlib.import_module("torchvision.datasets")


def draw_synthetic(root: Path, split: str) -> Decoded:
    """Draw the synthetic data set; nothing is read from `root`."""
    from engine.data import synthetic

    is_train = split == "train"
    images, labels = synthetic.make_split(is_train, SYNTHETIC_SIZES[0 if is_train else 1])
    return Decoded(synthetic.CLASSES, torch.from_numpy(images), torch.from_numpy(labels))


SYNTHETIC_SIZES = (50_000, 10_000)
KNOWN = {
    "cifar10": Known(
        10, (50_000, 10_000), read_cifar10, ["CIFAR10(root, download=True)"], "cifar-10-batches-py"
    ),
    "cifar100": Known(
        100, (50_000, 10_000), read_cifar100, ["CIFAR100(root, download=True)"], "cifar-100-python"
    ),
    "synthetic": Known(10, SYNTHETIC_SIZES, draw_synthetic),
}
# torchvision checks an archive's MD5 and then unpacks whatever is in it. The filter, Python's own
# since 3.12 and 3.11.4, refuses members that lie outside of the folder or link there.
DOWNLOAD = """\
import sys, tarfile
from torchvision.datasets import *
if hasattr(tarfile, "data_filter"):
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
root = sys.argv[1]
"""


def read_source(config: DataConfig, keep: bool = True) -> dict[str, Any]:
    """Return a source's classes and splits; raise UserError where they cannot be had.

    keep: write the decoded images to the cache, unless they are there.
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
    """Return the path of a directory, there or not; raise UserError where it can be none."""
    try:
        folder = Path(given or "").expanduser()
        folder.is_dir()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise key_error(key, given, f"must be a directory ({reason})") from error
    return folder


def blank_source(name: str) -> dict[str, Any]:
    """Return a source of `KNOWN` with all its labels, and one blank image in every place."""
    known = KNOWN[name]
    blank: dict[str, Any] = {"classes": [str(label) for label in range(known.classes)]}
    for split, size in zip(SPLITS, known.sizes, strict=True):
        blank[f"{split}_images"] = torch.zeros(1, dtype=torch.uint8).expand(size, SIDE, SIDE, 3)
        blank[f"{split}_labels"] = torch.arange(size) % known.classes
    return blank


def note(text: str) -> None:
    """Tell a person at a terminal why it takes a while; logs keep to errors and results."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def _cached(
    config: DataConfig, folder: Path, decode: Callable[[], dict[str, Any]], keep: bool
) -> dict[str, Any]:
    """Return the decoded source from its cache, or decode it and write the cache."""
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
    # Other inodes, nothing else, and the same images: this file system does not keep its inodes.
    kept = (found.lasting, digest) in stale
    fingerprint = found.lasting if kept else found.exact
    decoded |= {"fingerprint": fingerprint, "lasting": found.lasting, "digest": digest}
    for place in places if keep else []:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lambda file: torch.save(decoded, file))
            break
        except OSError as error:
            note(f"{place.parent} takes no cache ({error.strerror})")
    return decoded


def _read_cache(place: Path) -> dict[str, Any]:
    """Return a cache's content; nothing where it is absent or damaged."""
    try:
        return dict(torch.load(place, weights_only=True))
    except Exception:
        # A damaged archive fails in as many ways as it can be damaged.
        return {}


def _is_whole(decoded: dict[str, Any]) -> bool:
    try:
        return decoded["digest"] == _digest(decoded)
    except Exception:
        return False


def _digest(decoded: dict[str, Any]) -> str:
    """Digest the images and labels, so that a damaged cache is not trained on."""
    digest = hashlib.sha256("\0".join(decoded["classes"]).encode())
    for split in SPLITS:
        digest.update(decoded[f"{split}_images"].numpy().data)
        digest.update(decoded[f"{split}_labels"].numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """What is seen of a source's files without reading them.

    exact: names, sizes, times of the last change to content (mtime) and to anything (ctime), and
    inodes; lasting: all but the inodes.

    A program may put back an mtime, and tar, nix and checkouts do; none can set a ctime. Inodes see
    folders that have changed places, whose files keep their times. On FUSE, FAT and some network
    file systems they may be others after each mount, and nothing says so beforehand. There the
    tree is decoded once more, to the same images, and from then on a cache counts without inodes.
    """

    exact: str
    lasting: str


def _fingerprint(name: str, folder: Path) -> Fingerprint:
    """Digest what is seen of a source's files, or take the generator's version."""
    if name == "synthetic":
        from engine.data import synthetic

        return Fingerprint(*[f"synthetic-{synthetic.VERSION}"] * 2)
    lasting = hashlib.sha256(DECODER if name == "image_folder" else b"")
    inodes = hashlib.sha256()
    for top in [folder / split for split in SPLITS] if name == "image_folder" else [folder]:
        try:
            for parent, _, files, _ in walk(str(top)):
                # A folder counts also without files: it may be a class.
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
    """Decode a tree with a thread for each CPU; every image is checked."""
    found = {split: find_images(source, split) for split in SPLITS}
    decoded: dict[str, Any] = {"classes": class_names(source, list(found.items()))}
    framed = {}
    for split, images in found.items():
        note(f"decoding {len(images.images):,} images of {source / split} (once)")
        pixels = torch.empty(len(images.images), SIDE, SIDE, 3, dtype=torch.uint8)
        framed[split] = 0
        # What Pillow warns of is refused or of no account, and a refusal is one line.
        with ThreadPoolExecutor(available_cpus()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            paths = [path for path, _ in images.images]
            for place, (image, several) in enumerate(pool.map(decode_image, paths, chunksize=64)):
                pixels[place] = image
                framed[split] += several
        if len(pixels) > 1 and all(torch.equal(image, pixels[0]) for image in pixels[1:]):
            allowed = f"{split}: its {len(pixels):,} images are all the same; is it the right tree?"
            raise key_error("data.root", shown(str(source)), allowed)
        decoded[f"{split}_images"] = pixels
        labels = [label for _, label in images.images]
        decoded[f"{split}_labels"] = torch.tensor(labels, dtype=torch.int64)
    _say_what_is_not_used(source, found, framed)
    return decoded


def _say_what_is_not_used(source: Path, found: dict[str, Found], framed: dict[str, int]) -> None:
    """Say in one line, logs included, which files are no images and which are used in part."""
    parts = []
    for split, images in found.items():
        left_out = [f"left out {images.describe_left_out()}"] if images.left_out else []
        if framed[split]:
            left_out.append(f"{framed[split]:,} files hold several frames, the first is used")
        if left_out:
            parts.append(f"{split}: {', '.join(left_out)}")
    if parts and rank() == 0:
        print(f"data.root={shown(str(source))}: {'; '.join(parts)}", file=sys.stderr)


def _read_known(name: str, known: Known, root: Path) -> dict[str, Any]:
    """Read both splits of a known data set.

    torchvision checks the MD5 of each file before it opens it.
    """
    if not known.downloads:
        note(f"drawing the {name} data set (once)")
    decoded: dict[str, Any] = {}
    for split in SPLITS:
        try:
            read = known.read(root, split)
        except RuntimeError as error:
            allowed = f"its copy of {name} is incomplete or damaged; remove it to download it again"
            raise key_error("data.root", root, allowed) from error
        assert read.images.shape == (len(read.labels), SIDE, SIDE, 3), read.images.shape
        decoded["classes"] = list(read.classes)
        decoded[f"{split}_images"], decoded[f"{split}_labels"] = read.images, read.labels
    return decoded


def _download(config: DownloadedDataConfig, known: Known, root: Path) -> Path:
    """Return the folder of a source's files, downloaded and verified by torchvision if absent.

    The download runs in a process of its own, so that a server which neither answers nor refuses
    costs `data.download_seconds` and no more, and in a folder of its own, so that a failed one
    leaves nothing behind.
    """
    folder = root / known.folder
    if folder.is_dir():
        return folder
    # Also a link that leads nowhere: no folder could be made there once the download is done.
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
                raise _no_download(config, f"not done within {limit:g} s") from None
            except subprocess.CalledProcessError as error:
                reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise _no_download(config, reason) from None
            root.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(Path(temporary) / known.folder, folder)
            except OSError:
                # Another process has been as fast.
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
