"""ResNet-18, -34 and -50 for 32x32 pictures, made of torchvision's blocks.

The CIFAR stem is one 3x3 convolution of stride 1 and no pooling, as is usual for pictures of this
size; `resnet50_imagenet_stem` keeps torchvision's 7x7 convolution of stride 2 and max pooling.
torchvision is imported when a model is made: it takes seconds, and the small networks need none.
"""

from torch import nn

from models.batch_norm import BatchNorm2d


def _make(
    block: str,
    layers: list[int],
    num_classes: int,
    zero_init_residual: bool,
    cifar_stem: bool = True,
) -> nn.Module:
    """Make torchvision's ResNet with this project's batch normalisation and the stem asked for."""
    from torchvision.models import resnet

    # torchvision initialises a ResNet as it is made: Kaiming normal for convolutions.
    kinds: dict[str, type] = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
    model = resnet.ResNet(
        kinds[block],
        layers,
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
        norm_layer=BatchNorm2d,
    )
    if cifar_stem:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def resnet18(num_classes: int = 10, zero_init_residual: bool = False) -> nn.Module:
    """Make a ResNet-18 with the CIFAR stem: 11,173,962 parameters with 10 classes."""
    return _make("basic", [2, 2, 2, 2], num_classes, zero_init_residual)


def resnet34(num_classes: int = 10, zero_init_residual: bool = False) -> nn.Module:
    """Make a ResNet-34 with the CIFAR stem: 21,282,122 parameters with 10 classes."""
    return _make("basic", [3, 4, 6, 3], num_classes, zero_init_residual)


def resnet50(num_classes: int = 10, zero_init_residual: bool = False) -> nn.Module:
    """Make a ResNet-50 with the CIFAR stem: 23,520,842 parameters with 10 classes."""
    return _make("bottleneck", [3, 4, 6, 3], num_classes, zero_init_residual)


def resnet50_imagenet_stem(num_classes: int = 10, zero_init_residual: bool = False) -> nn.Module:
    """Make torchvision's own ResNet-50, ImageNet stem: 23,528,522 parameters with 10 classes."""
    return _make("bottleneck", [3, 4, 6, 3], num_classes, zero_init_residual, cifar_stem=False)
