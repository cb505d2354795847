"""One image file to 32x32 pixels of 8-bit RGB, or a line that says why not.

Pixels are those of torchvision's ImageFolder (the first frame, alpha dropped, EXIF's orientation
and colour profiles ignored), but for files of more than 8 bits. There Pillow's `convert("RGB")`
clips at 255. A format whose pixels span 0 to 65535 gives its upper 8 bits here, as Pillow itself
does for 16-bit RGB. Numbers of no known range are refused.
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

# Formats that Pillow scales to 0 to 65535, whichever of these modes its version opens them in.
# A PGM of another maximum is scaled by it; TIFF is more than one format, so `_tiff_depth` looks.
DEEP_FORMATS = ("PNG", "PPM")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# TIFF's tags, and what they say.
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 259, 262, 284, 339
WHITE_IS_ZERO, UNSIGNED, UNCOMPRESSED, APART = 0, 1, 1, 2
# A reason from a library may quote the file.
LONGEST_REASON = 200
_stderr = threading.Lock()
# What its plugins log as an error they raise too, and a refusal is one line.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_image(path: str) -> tuple[Tensor, bool]:
    """Decode a file to uint8 [32, 32, 3], and whether it has frames that are not used.

    Raises UserError, which names the file, where it is no such image.
    """
    from PIL import Image

    # Its size is looked at before anything is decoded, so that a bomb is only a wrong size.
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
        # A damaged file leaves Pillow's plugins in as many ways as it can be damaged.
        text = " ".join(str(error).split()) or type(error).__name__
        reason = shown(text[:LONGEST_REASON])
        raise key_error("data.root", shown(path), f"cannot be decoded ({reason})") from error
    return pixels, several


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the process' stderr from libtiff, which writes there itself what Pillow then raises."""
    with _stderr:
        try:
            kept = os.dup(2)
        except OSError:
            # It is closed, so nobody reads it.
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
    """Raise UserError unless a path leads to a regular file: reading a pipe may wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        allowed = "is a pipe, a socket or a device; an image must be a regular file"
        raise key_error("data.root", shown(path), allowed)


def _check_size(path: str, image: Any) -> None:
    if image.size != (SIDE, SIDE):
        width, height = image.size
        allowed = f"must be {SIDE}x{SIDE} pixels, is {width}x{height}"
        raise key_error("data.root", shown(path), allowed)


def _has_frames(path: str, file: Any) -> bool:
    """Find whether a file has several frames; what is damaged behind the first is not used."""
    if file.format not in ("GIF", "TIFF"):
        return getattr(file, "n_frames", 1) > 1
    from PIL import Image

    # These two go through the file to count.
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
        grey = torch.frombuffer(bytearray(file.convert("I").tobytes()), dtype=torch.int32)
        grey = (grey.view(SIDE, SIDE, 1) >> (depth - 8)).clamp(0, 255).to(torch.uint8)
        return (255 - grey if inverted else grey).expand(SIDE, SIDE, 3)
    file.load()
    # Pillow would look for the colour that is transparent in RGB, and warn or fail over it.
    file.info.pop("transparency", None)
    # There is no way from grey with premultiplied alpha to RGB but through plain alpha.
    image = (file.convert("LA") if file.mode == "La" else file).convert("RGB")
    _check_size(path, image)
    pixels = bytearray(image.tobytes())
    return torch.frombuffer(pixels, dtype=torch.uint8).view(SIDE, SIDE, 3)


def _tiff_depth(path: str, file: Any) -> tuple[int, bool]:
    """Return a TIFF's bits per sample, and whether 0 is white; refuse what Pillow reads wrongly."""
    tags = file.tag_v2
    depth, formats = (
        values if isinstance(values := tags.get(tag, 1), tuple) else (values,)
        for tag in (BITS_PER_SAMPLE, SAMPLE_FORMAT)
    )
    # Pillow opens signed 8-bit grey as unsigned, and has no mode for unsigned 32 bits but `I`.
    if set(formats) != {UNSIGNED} or max(depth) > 16:
        raise _no_range(path, file)
    apart = tags.get(PLANES) == APART and tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED
    if max(depth) > 8 and len(depth) > 1 and apart:
        # Pillow unpacks each of these planes as if it had 8 bits.
        allowed = f"has uncompressed planes of {max(depth)} bits, which Pillow misreads"
        raise key_error("data.root", shown(path), f"{allowed}; save it with 8 bits")
    return max(depth), tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _no_range(path: str, file: Any) -> UserError:
    allowed = (
        f"{file.format} of mode {file.mode} with signed, floating-point or unscaled numbers has "
        "no known range from black to white; save it with 8 bits"
    )
    return key_error("data.root", shown(path), allowed)
