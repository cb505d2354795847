"""The synthetic data set has the same bytes everywhere, is balanced, and is not too easy."""

import hashlib

import numpy as np
import pytest

from engine.data.synthetic import BLOCK, CLASSES, make_split

# Literals, so that a changed byte fails a test. If you change them, raise VERSION.
DIGESTS = {
    True: "1f0b5f2686c471b97c4907b71290e04cdc1a29caf93074908718bbdb4fdad715",
    False: "f72fb373492de0c5fe926f82d50a723f112a5cb7d62a9e904473874ff86a54c3",
}


def _rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("train", [True, False])
def test_first_images_have_the_pinned_digest(train: bool) -> None:
    """The bytes of images and labels are the same on every machine."""
    images, labels = make_split(train, 64)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes())
    assert digest.hexdigest() == DIGESTS[train]


def test_shapes_and_types() -> None:
    """Images are uint8 in NHWC order, labels are int64, and there are ten classes."""
    images, labels = make_split(True, 7)
    assert images.shape == (7, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (7,) and labels.dtype == np.int64
    assert len(set(CLASSES)) == 10


@pytest.mark.parametrize("size", [1, 9, 10, 2 * BLOCK + 13])
def test_labels_are_as_balanced_as_the_size_allows(size: int) -> None:
    """Classes differ by at most one image."""
    counts = np.bincount(make_split(True, size)[1], minlength=10)
    assert counts.sum() == size and np.ptp(counts) == (size % 10 > 0)


def test_labels_do_not_repeat_with_a_period() -> None:
    """Every tenth image may be of any class, so that a strided shard is not skewed."""
    counts = np.bincount(make_split(True, 2 * BLOCK)[1][::10], minlength=10)
    assert counts.min() > 0


def test_a_smaller_split_is_the_start_of_a_larger_one() -> None:
    """Image i does not depend on the size, also beyond the first block."""
    few, many = make_split(False, BLOCK + 3), make_split(False, 2 * BLOCK + 1)
    assert np.array_equal(few[0], many[0][: BLOCK + 3])
    assert np.array_equal(few[1], many[1][: BLOCK + 3])


def test_splits_and_seeds_share_no_image() -> None:
    """Splits and seeds have separate random streams, and no image occurs twice."""
    size = 2 * BLOCK
    parts = [make_split(True, size), make_split(False, size), make_split(True, size, seed=1)]
    assert len(set.union(*(_rows(images) for images, _ in parts))) == 3 * size


def test_an_empty_split_raises() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_split(True, 0)


def test_a_linear_classifier_is_weak() -> None:
    """Ridge regression on pixels is better than chance, due to the class colors, but weak."""
    (images, labels), (unseen, truth) = make_split(True, 6000), make_split(False, 2000)
    pixels, targets = images.reshape(6000, -1) / 255 - 0.5, np.eye(10)[labels] - 0.1
    gram = pixels.T @ pixels + 1e4 * np.eye(pixels.shape[1])
    weights = np.linalg.solve(gram, pixels.T @ targets)
    guess = np.argmax((unseen.reshape(2000, -1) / 255 - 0.5) @ weights, axis=1)
    assert 0.12 < np.mean(guess == truth) < 0.60
