"""Decode an image file to 32x32 pixels of 8-bit RGB.

The pixels equal those of torchvision's ImageFolder: the first frame, without alpha, EXIF
orientation and color profiles. Files with more than 8 bits are the exception, because Pillow's
`convert("RGB")` clips them at 255. If the pixels range from 0 to 65535, the upper 8 bits are used,
as Pillow does for 16-bit RGB. If the range is unknown, the file is an error.
"""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.data import SIDE
from engine.errors import UserError, key_error
from engine.system.text import shown

# Pillow scales these formats to 0 to 65535, in whichever of these modes its version opens them. It
# also scales a PGM with another maximum. The depth of a TIFF varies, see `_tiff_depth`.
DEEP_FORMATS = ("PNG", "PPM")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# TIFF tags, and values of PHOTOMETRIC, SAMPLE_FORMAT, COMPRESSION and PLANES.
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 259, 262, 284, 339
WHITE_IS_ZERO, UNSIGNED, UNCOMPRESSED, SEPARATE = 0, 1, 1, 2
# Maximum length of a library's error message, which may quote the file.
LONGEST_REASON = 200
_stderr = threading.Lock()
# Pillow's plugins also raise the errors that they log, and an error must be one line.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_image(path: str) -> tuple[Tensor, bool]:
    """Decode a file to uint8 [32, 32, 3].

    Returns:
        The pixels, and whether the file has more frames than the one that is used.

    Raises:
        UserError: the file is not a 32x32 image. The message names the file.

    """
    from PIL import Image

    # The size is checked before decoding, so a decompression bomb is just an image of wrong size.
    Image.MAX_IMAGE_PIXELS = None
    try:
        _check_kind(path)
        with Image.open(path) as file:
            _check_size(path, file)
            several = _has_frames(path, file)
            with _quiet() if file.format == "TIFF" else contextlib.nullcontext():
                pixels = _to_pixels(path, file)
    except UserError:
        raise
    except Exception as error:
        # Pillow's plugins raise many exception types for damaged files.
        text = " ".join(str(error).split()) or type(error).__name__
        reason = shown(text[:LONGEST_REASON])
        raise key_error("data.root", shown(path), f"cannot be decoded ({reason})") from error
    return pixels, several


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Redirect stderr to /dev/null: libtiff writes the errors there that Pillow raises anyway."""
    with _stderr:
        try:
            kept = os.dup(2)
        except OSError:
            # Stderr is closed.
            yield
            return
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _check_kind(path: str) -> None:
    """Raise UserError unless a path is a regular file: reading a pipe may block forever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        allowed = "is a pipe, a socket or a device; an image must be a regular file"
        raise key_error("data.root", shown(path), allowed)


def _check_size(path: str, image: Any) -> None:
    if image.size != (SIDE, SIDE):
        width, height = image.size
        allowed = f"must be {SIDE}x{SIDE} pixels, is {width}x{height}"
        raise key_error("data.root", shown(path), allowed)


def _has_frames(path: str, file: Any) -> bool:
    """Return True if a file has several frames. Damage after the first frame is not an error."""
    if file.format not in ("GIF", "TIFF"):
        return getattr(file, "n_frames", 1) > 1
    from PIL import Image

    # These two read the whole file to count frames.
    with contextlib.suppress(Exception), Image.open(path) as counted:
        return getattr(counted, "n_frames", 1) > 1
    return False


def _to_pixels(path: str, file: Any) -> Tensor:
    depth, inverted = 16, False
    if file.format == "TIFF":
        depth, inverted = _tiff_depth(path, file)
    if file.mode in (*DEEP_MODES, "F"):
        if file.format not in (*DEEP_FORMATS, "TIFF") or file.mode == "F":
            raise _no_range(path, file)
        gray = torch.frombuffer(bytearray(file.convert("I").tobytes()), dtype=torch.int32)
        gray = (gray.view(SIDE, SIDE, 1) >> (depth - 8)).clamp(0, 255).to(torch.uint8)
        return (255 - gray if inverted else gray).expand(SIDE, SIDE, 3)
    file.load()
    # Pillow would convert the transparent color to RGB, too, and may warn or fail.
    file.info.pop("transparency", None)
    # Pillow converts gray with premultiplied alpha (La) to RGB only via LA.
    image = (file.convert("LA") if file.mode == "La" else file).convert("RGB")
    _check_size(path, image)
    pixels = bytearray(image.tobytes())
    return torch.frombuffer(pixels, dtype=torch.uint8).view(SIDE, SIDE, 3)


def _tiff_depth(path: str, file: Any) -> tuple[int, bool]:
    """Return the bits per sample of a TIFF and whether 0 is white.

    Raises:
        UserError: Pillow would decode wrong values.

    """
    tags = file.tag_v2
    depth, formats = (
        values if isinstance(values := tags.get(tag, 1), tuple) else (values,)
        for tag in (BITS_PER_SAMPLE, SAMPLE_FORMAT)
    )
    # Pillow opens signed 8-bit gray as unsigned, and unsigned 32 bits in the signed mode `I`.
    if set(formats) != {UNSIGNED} or max(depth) > 16:
        raise _no_range(path, file)
    planar = tags.get(PLANES) == SEPARATE and tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED
    if max(depth) > 8 and len(depth) > 1 and planar:
        # Pillow reads each of these planes as 8-bit values.
        allowed = f"has uncompressed planes of {max(depth)} bits, which Pillow misreads"
        raise key_error("data.root", shown(path), f"{allowed}; save it with 8 bits")
    return max(depth), tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _no_range(path: str, file: Any) -> UserError:
    allowed = (
        f"{file.format} of mode {file.mode} with signed, floating-point or unscaled numbers has "
        "an unknown range from black to white; save it with 8 bits"
    )
    return key_error("data.root", shown(path), allowed)
