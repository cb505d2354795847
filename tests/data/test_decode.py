"""Decoding a file to 8-bit RGB: every mode and format that Pillow opens, and damaged files.

Pillow's behavior is documented by its source: Image.convert, and the tables of modes in
PngImagePlugin._MODES, TiffImagePlugin.OPEN_INFO and PpmImagePlugin.MODES.
"""

import io
import random
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import pil_loader

from engine.data.decode import decode_image
from engine.errors import UserError
from tests.helpers import PROJECT

# Each value occurs once, so that rows and columns differ.
LEVELS = (np.arange(1024, dtype=np.uint32) * 64 + 37).reshape(32, 32)


def tiff(levels, bits=16, sample_format=None, photometric=1, planes=None, order="<"):
    """Return an uncompressed TIFF, after the TIFF 6.0 specification, sections 3 to 5.

    Args:
        levels: pixels [32, 32] or [32, 32, channels].
        bits: bits per sample: 8, 12, 16 or 32.
        sample_format: 1 for unsigned (also None), 2 for signed, 3 for floating-point numbers.
        photometric: 0 if 0 is white, 1 if 0 is black, 2 for RGB.
        planes: 2 to store each channel separately.
        order: "<" for little-endian, ">" for big-endian.

    """
    levels = levels if levels.ndim == 3 else levels[..., None]
    count = levels.shape[2]
    if bits == 12:
        flat = levels.reshape(-1, 2).astype(np.uint32)
        packed = np.stack(
            [flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], 1
        )
        data = packed.astype(np.uint8).tobytes()
    else:
        kind = {1: "u", 2: "i", 3: "f"}[sample_format or 1]
        stored = levels.transpose(2, 0, 1) if planes == 2 else levels
        data = stored.astype(f"{order}{kind}{bits // 8}").tobytes()
    strips = count if planes == 2 else 1
    offset = 8 + 2 + 12 * 11 + 4
    tail = struct.pack(f"{order}{count}H", *[bits] * count)
    places = struct.pack(f"{order}{strips}I", *(
        offset + len(tail) + 8 * strips + number * (len(data) // strips) for number in range(strips)
    ))  # fmt: skip
    sizes = struct.pack(f"{order}{strips}I", *[len(data) // strips] * strips)
    entries = [(256, 4, 1, 32), (257, 4, 1, 32)]
    entries.append((258, 3, count, offset if count > 2 else bits))
    entries += [(259, 3, 1, 1), (262, 3, 1, photometric)]
    inline = strips == 1
    where = struct.unpack(f"{order}I", places)[0] if inline else offset + len(tail)
    entries.append((273, 4, strips, where))
    entries += [(277, 3, 1, count), (278, 4, 1, 32)]
    size = len(data) if inline else offset + len(tail) + len(places)
    entries.append((279, 4, strips, size))
    entries.append((284, 3, 1, planes or 1))
    entries.append((339, 3, 1, sample_format or 1))
    written = b"".join(
        struct.pack(f"{order}HHI", tag, kind, number)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and number == 1
           else struct.pack(f"{order}I", value))
        for tag, kind, number, value in entries
    )  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    head += struct.pack(f"{order}H", len(entries)) + written + struct.pack(f"{order}I", 0)
    assert len(head) == offset
    return head + tail + places + sizes + data


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_image(mode="I;16"):
    return Image.frombytes("I;16", (32, 32), LEVELS.astype("<u2").tobytes()).convert(mode)


def decoded(tmp_path, content, name="image.png"):
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_image(str(path))[0].numpy()


def gray(levels):
    return np.repeat(levels.astype(np.uint8)[..., None], 3, 2)


def pgm(levels, maximum, plain=False):
    head = f"P{2 if plain else 5}\n32 32\n{maximum}\n".encode()
    if plain:
        return head + b" ".join(b"%d" % value for value in levels.flatten())
    return head + levels.astype(">u2" if maximum > 255 else np.uint8).tobytes()


def rgb16_png():
    """Return a 16-bit RGB PNG, which Pillow cannot write, and its expected pixels."""
    pixels = np.stack([LEVELS, LEVELS[::-1], LEVELS.T], 2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts, (pixels >> 8).astype(np.uint8)


UPPER = gray(LEVELS >> 8)
TEN_BITS = LEVELS >> 6
SCALED = gray(np.round(TEN_BITS / 1023 * 65535).astype(int) >> 8)
RGB16 = np.stack([LEVELS, LEVELS[::-1], LEVELS.T], 2)
DEEP = {
    "16-bit PNG": (lambda: saved(deep_image(), "PNG"), UPPER),
    "16-bit PGM": (lambda: pgm(LEVELS, 65535), UPPER),
    "16-bit plain PGM": (lambda: pgm(LEVELS, 65535, plain=True), UPPER),
    "16-bit TIFF": (lambda: tiff(LEVELS), UPPER),
    "16-bit big-endian TIFF": (lambda: tiff(LEVELS, order=">"), UPPER),
    "16-bit deflated TIFF": (
        lambda: saved(deep_image(), "TIFF", compression="tiff_adobe_deflate"), UPPER,
    ),
    # If 0 is white, Pillow inverts 8 bits but not 16 (TiffImagePlugin.OPEN_INFO).
    "16-bit TIFF, 0 is white": (lambda: tiff(LEVELS, photometric=0), 255 - UPPER),
    # Pillow opens 12 bits as mode I;16 and does not scale them.
    "12-bit TIFF": (lambda: tiff(LEVELS >> 4, bits=12), UPPER),
    "16-bit RGB PNG": (lambda: rgb16_png()[0], rgb16_png()[1]),
    "16-bit RGB TIFF": (lambda: tiff(RGB16, photometric=2), (RGB16 >> 8).astype(np.uint8)),
    "16-bit RGB big-endian TIFF": (
        lambda: tiff(RGB16, photometric=2, order=">"), (RGB16 >> 8).astype(np.uint8),
    ),
    # PpmImagePlugin scales maxima other than 255 and 65535: above 8 bits to 65535.
    "10-bit PGM": (lambda: pgm(TEN_BITS, 1023), SCALED),
    "10-bit plain PGM": (lambda: pgm(TEN_BITS, 1023, plain=True), SCALED),
    "4-bit PGM": (lambda: pgm(LEVELS >> 12, 15), gray(np.round((LEVELS >> 12) / 15 * 255))),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_of_more_than_8_bits_the_upper_8_are_used(tmp_path, name):
    made, expected = DEEP[name]
    assert np.array_equal(decoded(tmp_path, made()), expected)


UNKNOWN_RANGE = {
    "TIFF of mode I with": lambda: tiff(LEVELS, sample_format=2),
    "TIFF of mode L with": lambda: tiff(LEVELS >> 8, bits=8, sample_format=2),
    "TIFF of mode I with signed": lambda: tiff(LEVELS, bits=32),
    "TIFF of mode I with signed, ": lambda: tiff(LEVELS, bits=32, sample_format=2),
    "TIFF of mode F with": lambda: tiff(LEVELS / 65535, bits=32, sample_format=3),
    "PPM of mode F with": lambda: saved(Image.new("F", (32, 32), 0.5), "PPM"),
    "JPEG2000 of mode I;16 with": lambda: saved(deep_image(), "JPEG2000"),
    "SPIDER of mode F with": lambda: saved(Image.new("F", (32, 32), 7), "SPIDER"),
    "has uncompressed planes of 16 bits, which Pillow misreads": lambda: tiff(
        RGB16, photometric=2, planes=2
    ),
    "must be 32x32 pixels, is 31x32": lambda: saved(Image.new("I;16", (31, 32)), "PNG"),
}


@pytest.mark.parametrize("message", UNKNOWN_RANGE)
def test_an_unknown_range_raises_with_name_and_mode(tmp_path, message):
    with pytest.raises(UserError) as raised:
        decoded(tmp_path, UNKNOWN_RANGE[message]())
    assert str(raised.value).startswith(f"data.root={tmp_path}/image.png: ")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def colored(mode):
    """Return an image of a mode, with different bands and a varying alpha."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    if mode == "PA":
        return Image.merge("PA", (image.convert("P"), image.getchannel(0)))
    if mode in ("La", "LA", "RGBa", "RGBA"):
        full = Image.merge("RGBA", (*image.split(), image.getchannel(0)))
        gray_mode = Image.merge("LA", (image.convert("L"), image.getchannel(0)))
        return (gray_mode if mode[0] == "L" else full).convert(mode)
    return image.convert(mode)


# Pillow's modes (Image.MODES) that ImageFolder's loader converts by convert("RGB"), each with a
# format that stores it.
PLAIN = {
    "1": "PNG", "L": "PNG", "P": "PNG", "RGB": "PNG", "RGBA": "PNG", "LA": "PNG", "CMYK": "TIFF",
    "YCbCr": "TIFF", "LAB": "TIFF", "PA": "TIFF",
}  # fmt: skip
NO_FORMAT = {"HSV", "RGBX", "RGBa", "I;16N", "I;16L"}


@pytest.mark.parametrize("mode", PLAIN)
def test_8_bit_modes_equal_those_of_image_folder(tmp_path, mode):
    content = saved(colored(mode), PLAIN[mode])
    made = decoded(tmp_path, content)
    with Image.open(tmp_path / "image.png") as file:
        assert file.mode == mode
    assert np.array_equal(made, np.asarray(pil_loader(tmp_path / "image.png")))
    assert len(np.unique(made)) > 1


def test_every_mode_of_pillow_is_listed():
    deep = {"I", "I;16", "I;16B", "F"}
    assert set(Image.MODES) <= set(PLAIN) | NO_FORMAT | deep | {"La"}


def test_premultiplied_gray_is_divided_by_its_alpha(tmp_path):
    # Pillow cannot convert La to RGB, so ImageFolder cannot load it.
    image = colored("LA")
    buffer = tiff(np.asarray(image).astype(np.uint32), bits=8)
    content = bytearray(buffer)
    at = content.index(struct.pack("<HHI", 284, 3, 1))
    content[at : at + 12] = struct.pack("<HHIHH", 338, 3, 1, 1, 0)
    # BitsPerSample of two samples is stored in the entry.
    at = content.index(struct.pack("<HHI", 258, 3, 2))
    content[at : at + 12] = struct.pack("<HHIHH", 258, 3, 2, 8, 8)
    made = decoded(tmp_path, bytes(content))
    with Image.open(tmp_path / "image.png") as file:
        assert file.mode == "La"
        expected = np.asarray(file.convert("LA"))[..., 0]
    assert np.array_equal(made, gray(expected))


TRANSPARENT = [0, b"\x00\x80\xff", b"\x80" * 256]


@pytest.mark.parametrize("transparency", TRANSPARENT, ids=["one", "some", "all"])
@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparency_is_dropped_as_in_image_folder_and_without_a_warning(
    tmp_path, mode, transparency
):
    if mode != "P":
        transparency = {"L": 7, "RGB": (1, 2, 3)}[mode]
    path = tmp_path / "image.png"
    path.write_bytes(saved(colored(mode), "PNG", transparency=transparency))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = decode_image(str(path))[0].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(made, np.asarray(pil_loader(path)))


def test_exif_orientation_is_ignored_as_in_image_folder(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    made = decoded(tmp_path, saved(colored("RGB"), "JPEG", exif=exif), "image.jpg")
    assert np.array_equal(made, np.asarray(pil_loader(tmp_path / "image.jpg")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "WEBP"])
def test_of_several_frames_the_first_is_used(tmp_path, kind):
    frames = [colored("RGB"), colored("RGB").transpose(Image.Transpose.ROTATE_90)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "image.png"
    path.write_bytes(saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
    made, several = decode_image(str(path))
    assert several and np.array_equal(made.numpy(), np.asarray(pil_loader(path)))
    path.write_bytes(saved(frames[0], kind))
    assert not decode_image(str(path))[1]


def seeds():
    """Return one small file in each format that Pillow may open, whatever the file's suffix."""
    image = colored("RGB")
    made = {
        "PNG": saved(image, "PNG"), "JPEG": saved(image, "JPEG"), "BMP": saved(image, "BMP"),
        "GIF": saved(image, "GIF"), "TIFF": saved(image, "TIFF"), "PPM": saved(image, "PPM"),
        "LZW": saved(image, "TIFF", compression="tiff_lzw"), "WEBP": saved(image, "WEBP"),
        "PNG16": saved(deep_image(), "PNG"), "TIFF16": tiff(LEVELS),
        "P": saved(colored("P"), "PNG"),
        "APNG": saved(image, "PNG", save_all=True, append_images=[image.rotate(90)]),
        "LAB": saved(colored("LAB"), "TIFF"), "CMYK": saved(colored("CMYK"), "JPEG"),
        "PGM": pgm(TEN_BITS, 1023), "text": pgm(TEN_BITS, 1023, plain=True),
    }  # fmt: skip
    Image.init()
    for kind in ("AVIF", "JPEG2000", "ICO", "DDS", "TGA", "PCX", "SGI", "ICNS", "QOI", "BLP"):
        if kind in Image.SAVE:
            try:
                made[kind] = saved(colored("P") if kind == "BLP" else image, kind)
            except (OSError, ValueError):
                continue
    return made


SEEDS = seeds()


@pytest.mark.parametrize("kind", SEEDS)
def test_a_damaged_file_is_decoded_or_raises_in_one_line(tmp_path, capfd, kind):
    rng, path = random.Random(kind), tmp_path / "image.png"
    whole = SEEDS[kind]
    refused = 0
    for number in range(100):
        content = bytearray(whole)
        if number % 3 == 0:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.choice([0, 1, 1, 2, 8, 64]) if number % 3 == 0 else rng.choice([1, 8])):
            # Headers, the first or the last hundred bytes, determine how the rest is decoded.
            place = rng.choice([rng.randrange(100), rng.randrange(1 << 20), -rng.randrange(1, 100)])
            if content:
                content[place % len(content)] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image, _ = decode_image(str(path))
            assert image.shape == (32, 32, 3) and image.dtype == torch.uint8
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"data.root={path}: "), error
            assert "\n" not in str(error) and len(str(error)) < 600
    # libtiff would write to stderr directly.
    assert refused and capfd.readouterr() == ("", "")


def test_pillow_s_log_messages_about_a_damaged_file_are_not_printed(tmp_path):
    # TiffImagePlugin._setup logs the number of samples as an error before it raises.
    content = bytearray(tiff(LEVELS))
    at = content.index(struct.pack("<HHI", 277, 3, 1))
    content[at + 8 : at + 10] = struct.pack("<H", 255)
    (tmp_path / "image.tif").write_bytes(content)
    code = "import sys; from engine.data.decode import decode_image; decode_image(sys.argv[1])"
    made = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image.tif"],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert made.stderr.splitlines()[0].startswith("Traceback")
    assert "engine.errors.UserError" in made.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [struct.error("x"), SyntaxError("x"), EOFError(), RuntimeError("a\nb"), KeyError(3),
     IndexError(), MemoryError(), Image.DecompressionBombError("x"), AssertionError(),
     TypeError("x"),
     OverflowError(), ZeroDivisionError(), RecursionError(), NotImplementedError(),
     UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), AttributeError("x")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_exception_of_a_plugin_becomes_one_line_with_the_file(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError) as raised:
        decode_image(str(tmp_path / "a.png"))
    text = str(raised.value)
    assert text.startswith(f"data.root={tmp_path}/a.png: cannot be decoded (") and "\n" not in text
    assert not text.endswith("()")


def test_keyboard_interrupt_is_not_caught(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", stop)
    (tmp_path / "a.png").touch()
    with pytest.raises(KeyboardInterrupt):
        decode_image(str(tmp_path / "a.png"))
