"""ResNets for 32x32 images, such as models.resnet20(num_classes=10)."""

from models.batch_norm import (
    BatchNorm2d,
    batch_norms,
    commit_batch_statistics,
    forget_batch_statistics,
    synchronize_batch_norms,
)
from models.resnet import resnet18, resnet34, resnet50, resnet50_imagenet_stem
from models.resnet_cifar import resnet8, resnet20, resnet32, resnet44, resnet56, resnet110

__all__ = [
    "BatchNorm2d",
    "batch_norms",
    "commit_batch_statistics",
    "forget_batch_statistics",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet50_imagenet_stem",
    "resnet56",
    "resnet110",
    "synchronize_batch_norms",
]
