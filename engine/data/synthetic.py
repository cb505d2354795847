"""Generate the synthetic data set: ten classes of 32x32 RGB images, a function of a seed.

A class is one of five shapes with one of two textures. The rest is random and independent of the
class: position, size, angle, period and slant of the texture, a background with a separate texture,
clutter in front of and behind the shape, noise, and the colors. Only the color of the shape is
slightly biased towards a color of the class. A left-right flip or a shift by a few pixels does not
change the class.

Images are drawn in fixed blocks, each with a separate random stream. Pixels are computed only by
operations that IEEE 754 rounds exactly (no sin, pow, matrix product or sum over an axis). The bytes
are therefore the same on every machine and for any number of threads.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from engine.data import SIDE

# Raise this if any byte of an image changes. It is the fingerprint of a cached data set.
VERSION = 2

SHAPES = ("disc", "ring", "square", "triangle", "cross")
TEXTURES = ("striped", "checked")
CLASSES: tuple[str, ...] = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)

BLOCK = 500  # a multiple of ten, small enough that a plane of float32 stays in cache

Array = npt.NDArray[np.floating]  # float32 throughout

# One color per class in [-1, 1], at corners, edges and the center of the RGB cube.
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
    """The random numbers of one block, from the raw bits whose stream NumPy keeps stable."""

    def __init__(self, train: bool, block: int, seed: int) -> None:
        stream = np.random.SeedSequence(seed, spawn_key=(int(train), block))
        self._bits = np.random.PCG64(stream)

    def uniform(self, *shape: int) -> Array:
        """Draw from [0, 1) in steps of 2**-24, which are exact in float32."""
        raw = self._bits.random_raw(math.prod(shape)) >> 40
        return (raw.astype(np.float32) * 2.0**-24).reshape(shape)

    def between(self, low: float, high: float) -> Array:
        """Draw one number per image from [low, high), of shape [block, 1, 1]."""
        return low + (high - low) * self.uniform(BLOCK, 1, 1)

    def color(self) -> Array:
        """Draw one RGB color per image in [0, 1), of shape [3, block, 1, 1]."""
        return self.uniform(3, BLOCK, 1, 1)

    def chance(self) -> npt.NDArray[np.bool_]:
        """Draw one bool per image, True with probability 1/2, of shape [block, 1, 1]."""
        return self.uniform(BLOCK, 1, 1) < 0.5

    def bytes(self) -> Array:
        """Draw one integer in [0, 255] per pixel, of shape [block, 32, 32]."""
        raw = self._bits.random_raw(BLOCK * SIDE * SIDE // 8).astype("<u8")
        return raw.view(np.uint8).astype(np.float32).reshape(BLOCK, SIDE, SIDE)


def _turned(dice: _Dice, reach: float, slant: float = 1) -> tuple[Array, Array]:
    """Return randomly rotated pixel coordinates x and y, relative to a random center.

    Args:
        dice: the random numbers.
        reach: maximum distance of the center from the middle of the image on each axis, in pixels.
        slant: the rotation is at most 2 * atan(slant), so 1 allows 90 degrees either way.

    """
    t = dice.between(-slant, slant)
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    x, y = _X - dice.between(-reach, reach), _Y - dice.between(-reach, reach)
    return c * x + s * y, c * y - s * x


def _outside(shape: str, x: Array, y: Array) -> Array:
    """Return how far outside of `shape` each point is. The shapes have about equal areas."""
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
    """Return a trapezoidal wave in [-1, 1]."""
    cycles = along / period + phase
    cycles -= np.floor(cycles)
    wave: Array = np.clip(8 * np.abs(cycles - 0.5) - 2, -1, 1)
    return wave


def _texture(dice: _Dice, checked: npt.NDArray[np.bool_]) -> Array:
    """Return a texture in [-1, 1]: a checkerboard if `checked` [block, 1, 1], else stripes."""
    u, v = _turned(dice, 0)
    period = dice.between(4, 7)
    first = _wave(u, period, dice.between(0, 1))
    second = _wave(v, period, dice.between(0, 1))
    return first * np.where(checked, second, np.float32(1))


def _spot(dice: _Dice) -> Array:
    """Return the fraction of each pixel that a small, rotated, rounded bar of clutter covers."""
    x, y = _turned(dice, 15)
    x /= dice.between(1, 3)
    return np.clip(dice.between(1.5, 3) - np.sqrt(x * x + y * y), 0, 1)


def _blend(image: Array, color: Array, cover: Array) -> None:
    """Blend `color` into `image` [3, block, 32, 32] in place, with opacity `cover`."""
    for plane, tone in zip(image, color, strict=True):
        plane += (tone - plane) * cover


def _background(dice: _Dice, middle: Array) -> Array:
    """Return a color ramp around `middle`, a faint texture and clutter: [3, block, 32, 32]."""
    ramp = _turned(dice, 0)[0] / 45
    texture = _texture(dice, dice.chance()) * dice.between(0, 0.1)
    image = np.empty((3, BLOCK, SIDE, SIDE), dtype=np.float32)
    for plane, tone, slope in zip(image, middle, dice.color(), strict=True):
        plane[:] = tone + (slope - 0.5) * ramp + texture
    for _ in range(3):
        _blend(image, dice.color(), _spot(dice))
    return image


def _draw_block(train: bool, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one block: images uint8 [block, 32, 32, 3] and labels int64 [block]."""
    dice = _Dice(train, block, seed)
    # Ten consecutive images have every class once, in random order, so that the first n images and
    # every k-th image are balanced.
    order = np.argsort(dice.uniform(BLOCK // 10, 10), axis=1, kind="stable")
    labels = order.astype(np.int64).reshape(-1)

    middle = 0.3 + 0.4 * dice.color()
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
    tone = middle + sign * dice.between(0.2, 0.4) + 0.4 * (dice.color() - 0.5) + lean
    tone = np.clip(tone, 0.15, 0.85)  # so that the texture is not clipped
    depth = dice.between(0.12, 0.35) * (dice.color() - 0.5) * 2
    for plane, base, swing in zip(image, tone, depth, strict=True):
        plane += (base + swing * texture - plane) * cover
    _blend(image, dice.color(), _spot(dice))
    return _finish(dice, image), labels


def _finish(dice: _Dice, image: Array) -> np.ndarray:
    """Add noise and round to bytes: uint8 [block, 32, 32, 3]."""
    images = np.empty((BLOCK, SIDE, SIDE, 3), dtype=np.uint8)
    strength = dice.between(0.05, 0.25)  # maximum noise, as a fraction of full brightness
    for channel, plane in enumerate(image):
        noise = strength * (dice.bytes() - dice.bytes())
        images[..., channel] = np.clip(255 * plane + noise + 0.5, 0, 255)
    return images


def make_split(train: bool, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a split: images uint8 [size, 32, 32, 3] and labels int64 [size].

    Image i depends only on `train`, `seed` and i, so a smaller split is the start of a larger one.

    Args:
        train: whether to draw the training split or the test split.
        size: number of images, at least 1.
        seed: seed of the random numbers.

    Raises:
        ValueError: `size` is below 1.

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
        # Iterating raises the exceptions of the threads.
        for _ in pool.map(fill, range(-(-size // BLOCK))):
            pass
    return images, labels
