"""Random crops, flips and normalization of whole batches, on the device of the images.

The order, crops and flips of an epoch are drawn on the CPU for all examples at once. They are a
function of seed, epoch and example alone: the same for every micro-batch size, device and number of
ranks. A resumed run therefore needs no random state.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.data.dataset import Split
from engine.system.runtime import derive_seed

PADDING = 4


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> "Normalization":
        """Return the exact values for uint8 images [N, H, W, 3], from each channel's histogram."""
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in range(3):
            histogram = torch.zeros(256, dtype=torch.float64)
            for part in images.split(5000):
                histogram += torch.bincount(part[..., channel].flatten().int(), minlength=256)
            weights = histogram / histogram.sum()
            mean = (weights * values).sum()
            means.append(float(mean))
            # A constant channel is not scaled.
            stds.append(float((weights * (values - mean) ** 2).sum().sqrt()) or 1.0)
        return cls(tuple(means), tuple(stds))

    def apply(self, images: Tensor) -> Tensor:
        """Return uint8 images [B, H, W, 3] normalized, as float32 [B, 3, H, W] in channels_last."""
        scale, shift = _scale_and_shift(self, images.device)
        return images.to(torch.float32).mul_(scale).add_(shift).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def _scale_and_shift(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return factor and offset of the pixels, cached because a copy to the device blocks."""
    mean = torch.tensor(normalization.mean, dtype=torch.float64)
    std = torch.tensor(normalization.std, dtype=torch.float64)
    scale, shift = 1 / (255 * std), -mean / std
    return scale.to(torch.float32).to(device), shift.to(torch.float32).to(device)


class TrainingImages:
    """A training split on a device, padded so that one gather crops at any of 9 x 9 offsets.

    Args:
        split: the images and labels. Every image is padded with 4 black pixels on each side.
        normalization: applied to the cropped images.
        device: where the split is kept.

    """

    def __init__(self, split: Split, normalization: Normalization, device: torch.device) -> None:
        border = (0, 0, PADDING, PADDING, PADDING, PADDING)
        padded = F.pad(split.images, border).to(device)
        count, side, _, channels = padded.shape
        self.side = side - 2 * PADDING
        offsets = 2 * PADDING + 1
        row = side * channels
        # windows[n, y, x] is the crop of image n at (y, x). It is a view, so no crop is stored.
        self.windows = padded.as_strided(
            (count, offsets, offsets, self.side, self.side * channels),
            (side * row, row, channels, row, 1),
        )
        self.labels = split.labels.to(device)
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.labels)

    def draw_epoch(self, seed: int, epoch: int) -> "EpochDraws":
        """Return the order, crops and flips of an epoch, a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
        count, device = len(self), self.labels.device
        order = torch.randperm(count, generator=generator)
        crops = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator)
        flips = torch.randint(0, 2, (count,), generator=generator, dtype=torch.bool)
        return EpochDraws(order.to(device), crops.to(device), flips.to(device))

    def load(self, index: Tensor, draws: "EpochDraws") -> tuple[Tensor, Tensor]:
        """Return augmented, normalized images and their labels.

        Args:
            index: int64 [B], the examples.
            draws: the random draws of the epoch.

        Returns:
            Images float32 [B, 3, 32, 32] in channels_last, and labels int64 [B].

        """
        return self.normalization.apply(self.augment(index, draws)), self.labels[index]

    def augment(self, index: Tensor, draws: "EpochDraws") -> Tensor:
        """Return images cropped and flipped by the draws of an epoch, uint8 [B, H, W, 3]."""
        rows, columns = draws.crops[:, index]
        shape = (len(index), self.side, self.side, self.windows.shape[-1] // self.side)
        crops = self.windows[index, rows, columns].view(shape)
        flips = draws.flips[index].view(-1, 1, 1, 1)
        return torch.where(flips, crops.flip(2), crops)

    def samples(self, seed: int, count: int) -> Tensor:
        """Return the first `count` images of epoch 1, augmented, uint8 [count, H, W, 3]."""
        draws = self.draw_epoch(seed, 1)
        return self.augment(draws.order[:count], draws)


@dataclass(frozen=True)
class EpochDraws:
    """The random draws of one epoch.

    Attributes:
        order: int64 [N], the examples in training order.
        crops: int64 [2, N], row and column offset of each example's crop, 0 to 8.
        flips: bool [N], whether each example is flipped left to right.

    """

    order: Tensor
    crops: Tensor
    flips: Tensor
