"""Own the generated data set: ten classes of 32x32 RGB pictures drawn by rule from a seed.

A class is a shape (five) with a texture inside it (two). The rest is drawn without regard to the
class: place, size, angle, the period and slant of the texture, a background with a texture of its
own, clutter before and behind the shape, noise, and the colours, save that the shape's leans a
little towards a class colour. Classes survive a left-right flip and a shift of a few pixels.

Pictures are drawn in fixed blocks, each from its own random stream, and the pixel path keeps to
operations IEEE 754 rounds exactly (no sin, pow, matrix product or sum over an axis), so the bytes
are the same on any machine and for any number of threads. Storing the pictures, normalising them,
augmenting them and batching them are left to the caller.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from engine.data import SIDE

# Raise whenever any drawn byte changes: callers put it in the fingerprint of what they store.
VERSION = 2

SHAPES = ("disc", "ring", "square", "triangle", "cross")
TEXTURES = ("striped", "checked")
CLASSES: tuple[str, ...] = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)

BLOCK = 500  # a multiple of ten, small enough that a plane of float32 stays in cache

Array = npt.NDArray[np.floating]  # float32 throughout

# Class colours in [-1, 1]: one per class, spread over the corners and edges of the RGB cube.
_LEAN = np.array(
    [
        [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1],
        [-1, 1, 1], [1, 0, -1], [0, -1, 1], [-1, 1, 0], [0, 0, 0],
    ],
    dtype=np.float32,
)  # fmt: skip

_AXIS = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
_X, _Y = _AXIS[None, None, :], _AXIS[None, :, None]


class _Dice:
    """The draws of one block, from raw bits: the one random stream NumPy promises to keep."""

    def __init__(self, train: bool, block: int, seed: int) -> None:
        stream = np.random.SeedSequence(seed, spawn_key=(int(train), block))
        self._bits = np.random.PCG64(stream)

    def uniform(self, *shape: int) -> Array:
        """Draw from [0, 1) in steps of 2**-24, which float32 holds exactly."""
        raw = self._bits.random_raw(math.prod(shape)) >> 40
        return (raw.astype(np.float32) * 2.0**-24).reshape(shape)

    def between(self, low: float, high: float) -> Array:
        """Draw one number per picture from [low, high), shape [block, 1, 1]."""
        return low + (high - low) * self.uniform(BLOCK, 1, 1)

    def colour(self) -> Array:
        """Draw one RGB colour per picture in [0, 1), shape [3, block, 1, 1]."""
        return self.uniform(3, BLOCK, 1, 1)

    def chance(self) -> npt.NDArray[np.bool_]:
        """Toss one coin per picture, shape [block, 1, 1]."""
        return self.uniform(BLOCK, 1, 1) < 0.5

    def bytes(self) -> Array:
        """Draw one whole number in [0, 255] per pixel, shape [block, 32, 32]."""
        raw = self._bits.random_raw(BLOCK * SIDE * SIDE // 8).astype("<u8")
        return raw.view(np.uint8).astype(np.float32).reshape(BLOCK, SIDE, SIDE)


def _turned(dice: _Dice, reach: float, slant: float = 1) -> tuple[Array, Array]:
    """Return pixel coordinates about a random point within `reach` of the middle, turned.

    The turn is at most twice the angle whose tangent is `slant`, so 1 allows every direction.
    """
    t = dice.between(-slant, slant)
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    x, y = _X - dice.between(-reach, reach), _Y - dice.between(-reach, reach)
    return c * x + s * y, c * y - s * x


def _outside(shape: str, x: Array, y: Array) -> Array:
    """Return how far outside `shape` each point lies; sizes give the shapes about equal area."""
    if shape == "disc":
        return np.sqrt(x * x + y * y) - 0.85
    if shape == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.75) - 0.26
    x, y = np.abs(x), y if shape == "triangle" else np.abs(y)
    if shape == "square":
        return np.maximum(x, y) - 0.75
    if shape == "triangle":
        return np.maximum(0.866 * x - 0.5 * y, y) - 0.6
    cross: Array = np.maximum(np.minimum(x, y) - 0.36, np.maximum(x, y) - 1)
    return cross


def _wave(along: Array, period: Array, phase: Array) -> Array:
    """Return a wave in [-1, 1] with flat tops and straight flanks."""
    cycles = along / period + phase
    cycles -= np.floor(cycles)
    wave: Array = np.clip(8 * np.abs(cycles - 0.5) - 2, -1, 1)
    return wave


def _texture(dice: _Dice, checked: npt.NDArray[np.bool_]) -> Array:
    """Return stripes, or checks where `checked` [block, 1, 1] says so, in [-1, 1]."""
    u, v = _turned(dice, 0)
    period = dice.between(4, 7)
    first = _wave(u, period, dice.between(0, 1))
    second = _wave(v, period, dice.between(0, 1))
    return first * np.where(checked, second, np.float32(1))


def _spot(dice: _Dice) -> Array:
    """Return how much of each pixel a small, slanted, rounded bar of clutter covers."""
    x, y = _turned(dice, 15)
    x /= dice.between(1, 3)
    return np.clip(dice.between(1.5, 3) - np.sqrt(x * x + y * y), 0, 1)


def _blend(image: Array, colour: Array, cover: Array) -> None:
    """Lay `colour` over `picture` [3, block, 32, 32] in place, as far as `cover` goes."""
    for plane, tone in zip(image, colour, strict=True):
        plane += (tone - plane) * cover


def _background(dice: _Dice, middle: Array) -> Array:
    """Draw a colour ramp about `middle` under a faint texture, then clutter: [3, block, 32, 32]."""
    ramp = _turned(dice, 0)[0] / 45
    texture = _texture(dice, dice.chance()) * dice.between(0, 0.1)
    image = np.empty((3, BLOCK, SIDE, SIDE), dtype=np.float32)
    for plane, tone, slope in zip(image, middle, dice.colour(), strict=True):
        plane[:] = tone + (slope - 0.5) * ramp + texture
    for _ in range(3):
        _blend(image, dice.colour(), _spot(dice))
    return image


def _draw_block(train: bool, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one block: images uint8 [block, 32, 32, 3] and labels int64 [block]."""
    dice = _Dice(train, block, seed)
    # Each run of ten pictures holds every class once, in random order, so that neither the first
    # n pictures nor every k-th picture are skewed.
    order = np.argsort(dice.uniform(BLOCK // 10, 10), axis=1, kind="stable")
    labels = order.astype(np.int64).reshape(-1)

    middle = 0.3 + 0.4 * dice.colour()
    image = _background(dice, middle)
    x, y = _turned(dice, 5, 0.25)
    size = dice.between(9, 13)
    x, y = x / size, y / size
    outside = np.empty_like(x)
    for index, shape in enumerate(SHAPES):
        chosen = labels // len(TEXTURES) == index
        outside[chosen] = _outside(shape, x[chosen], y[chosen])
    cover = np.clip(0.5 - outside * size, 0, 1)

    texture = _texture(dice, (labels % len(TEXTURES) == 1)[:, None, None])
    lean = 0.08 * _LEAN[labels].T[:, :, None, None]
    sign = np.where(dice.chance(), np.float32(-1), np.float32(1))
    tone = middle + sign * dice.between(0.2, 0.4) + 0.4 * (dice.colour() - 0.5) + lean
    tone = np.clip(tone, 0.15, 0.85)  # leaves the texture room on either side
    depth = dice.between(0.12, 0.35) * (dice.colour() - 0.5) * 2
    for plane, base, swing in zip(image, tone, depth, strict=True):
        plane += (base + swing * texture - plane) * cover
    _blend(image, dice.colour(), _spot(dice))
    return _finish(dice, image), labels


def _finish(dice: _Dice, image: Array) -> np.ndarray:
    """Add noise and round to bytes: uint8 [block, 32, 32, 3]."""
    images = np.empty((BLOCK, SIDE, SIDE, 3), dtype=np.uint8)
    strength = dice.between(0.05, 0.25)  # the greatest noise, as a share of full brightness
    for channel, plane in enumerate(image):
        noise = strength * (dice.bytes() - dice.bytes())
        images[..., channel] = np.clip(255 * plane + noise + 0.5, 0, 255)
    return images


def make_split(train: bool, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` pictures: images uint8 [size, 32, 32, 3] and labels int64 [size].

    Picture i depends on `train`, `seed` and i alone, so a smaller split opens a larger one.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    images = np.empty((size, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.empty(size, dtype=np.int64)

    def fill(block: int) -> None:
        start = block * BLOCK
        drawn, classes = _draw_block(train, block, seed)
        images[start : start + BLOCK] = drawn[: size - start]
        labels[start : start + BLOCK] = classes[: size - start]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # The loop is what raises an error met in a thread.
        for _ in pool.map(fill, range(-(-size // BLOCK))):
            pass
    return images, labels
