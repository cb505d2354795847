"""The reference loop: a common training loop with torchvision transforms in a DataLoader.

Each image is transformed with PIL (crop, flip, to tensor, normalize) in a worker process. The loop
uses fp32, NCHW, torch's batch norm and torch.optim.SGD with defaults, and reads the loss at every
step.
"""

import copy
import itertools
import signal
import sys
import time
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from engine.system.resources import available_cpus
from models import BatchNorm2d, resnet18

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Images(Dataset[tuple[Tensor, int]]):
    """Transformed images one by one, as from torchvision's CIFAR10.

    Args:
        images: uint8 [N, 32, 32, 3].
        labels: int64 [N].

    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def make_loader(images: Tensor, labels: Tensor, batch: int, pin: bool) -> DataLoader:
    """Return a DataLoader with one persistent worker per CPU.

    Args:
        images: uint8 [N, 32, 32, 3].
        labels: int64 [N].
        batch: batch size.
        pin: True to use pinned memory.

    """
    return DataLoader(
        Images(images, labels),
        batch_size=batch,
        shuffle=True,
        num_workers=available_cpus(),
        persistent_workers=True,
        pin_memory=pin,
        worker_init_fn=ignore_interrupts,
    )


def ignore_interrupts(_worker: int) -> None:
    """Ignore Ctrl-C in a worker: the terminal sends it to the main process too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def with_plain_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy of a model with torch's batch norm in place of this project's."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features))
    return model


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    device: torch.device,
) -> float:
    """Train one epoch over the batches; return the mean loss."""
    model.train()
    total, count = 0.0, 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        count += len(labels)
    return total / count


def start(cached: str, device: torch.device) -> None:
    """Do what a script does up to the end of its first step, with decoded images from a file."""
    decoded = torch.load(cached, weights_only=True)
    model = with_plain_batch_norm(resnet18()).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = make_loader(
        decoded["train_images"], decoded["train_labels"], 128, device.type == "cuda"
    )
    train(model, optimizer, itertools.islice(loader, 1), device)


if __name__ == "__main__":
    # The first argument is the parent's time.time() at the start. The time that the workers take to
    # end is not measured.
    start(sys.argv[2], torch.device(sys.argv[3]))
    print(time.time() - float(sys.argv[1]))
