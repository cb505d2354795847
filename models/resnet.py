"""ResNet-18, -34 and -50 for 32x32 images, built from torchvision's blocks.

The CIFAR stem is one 3x3 convolution of stride 1 without pooling, as is usual for images of this
size. `resnet50_imagenet_stem` keeps torchvision's 7x7 convolution of stride 2 and its max pooling.
torchvision is imported when a model is built, because the import takes seconds and the networks in
resnet_cifar.py do not need it.
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
    """Build torchvision's ResNet with this project's BatchNorm2d.

    Args:
        block: "basic" or "bottleneck".
        layers: number of blocks in each of the four stages.
        num_classes: number of logits.
        zero_init_residual: start every block as its shortcut (Goyal et al. 2017, section 5.1).
        cifar_stem: replace the ImageNet stem by a 3x3 convolution of stride 1.

    """
    from torchvision.models import resnet

    # torchvision's constructor initializes the weights: Kaiming normal for convolutions.
    blocks: dict[str, type] = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
    model = resnet.ResNet(
        blocks[block],
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
    """Build a ResNet-18 with the CIFAR stem: 11,173,962 parameters with 10 classes."""
    return _make("basic", [2, 2, 2, 2], num_classes, zero_init_residual)


def resnet34(num_classes: int = 10, zero_init_residual: bool = False) -> nn.Module:
    """Build a ResNet-34 with the CIFAR stem: 21,282,122 parameters with 10 classes."""
    return _make("basic", [3, 4, 6, 3], num_classes, zero_init_residual)


def resnet50(num_classes: int = 10, zero_init_residual: bool = False) -> nn.Module:
    """Build a ResNet-50 with the CIFAR stem: 23,520,842 parameters with 10 classes."""
    return _make("bottleneck", [3, 4, 6, 3], num_classes, zero_init_residual)


def resnet50_imagenet_stem(num_classes: int = 10, zero_init_residual: bool = False) -> nn.Module:
    """Build a ResNet-50 with the ImageNet stem: 23,528,522 parameters with 10 classes."""
    return _make("bottleneck", [3, 4, 6, 3], num_classes, zero_init_residual, cifar_stem=False)
