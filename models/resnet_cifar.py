"""The CIFAR ResNets of He et al. 2015 (arXiv 1512.03385, section 4.2).

A network of depth 6n + 2 is a 3x3 convolution, three stages of n basic blocks with 16, 32 and 64
channels, global average pooling and one linear layer. Shortcuts have no parameters ("option A"): if
a stage halves the resolution, they take every second pixel and pad the new channels with zeros.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from models.batch_norm import BatchNorm2d


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: 1, or 2 to halve height and width.

    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, channels, H / stride, W / stride]."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.stride != 1:
            # Pooling with kernel size 1 takes every second pixel. A slice would too, but its
            # gradient is in NCHW memory, which slows down every channels_last operation after it.
            x = F.avg_pool2d(x, kernel_size=1, stride=self.stride)
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """A ResNet of depth 6n + 2 for 32x32 images.

    Args:
        depth: 6n + 2 and at least 8; ValueError otherwise.
        num_classes: number of logits.
        zero_init_residual: start every block as its shortcut (Goyal et al. 2017, section 5.1).

    """

    def __init__(self, depth: int, num_classes: int = 10, zero_init_residual: bool = False) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={depth}: must be 6n + 2 and at least 8")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(16)
        stages = []
        channels_in = 16
        for channels, stride in ((16, 1), (32, 2), (64, 2)):
            stage = [BasicBlock(channels_in, channels, stride)]
            stage += [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            channels_in = channels
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(64, num_classes)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, 32, 32] to logits [N, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def resnet8(num_classes: int = 10, zero_init_residual: bool = False) -> CifarResNet:
    """Build a ResNet-8: 75,290 parameters with 10 classes."""
    return CifarResNet(8, num_classes, zero_init_residual)


def resnet20(num_classes: int = 10, zero_init_residual: bool = False) -> CifarResNet:
    """Build a ResNet-20: 269,722 parameters with 10 classes."""
    return CifarResNet(20, num_classes, zero_init_residual)


def resnet32(num_classes: int = 10, zero_init_residual: bool = False) -> CifarResNet:
    """Build a ResNet-32: 464,154 parameters with 10 classes."""
    return CifarResNet(32, num_classes, zero_init_residual)


def resnet44(num_classes: int = 10, zero_init_residual: bool = False) -> CifarResNet:
    """Build a ResNet-44: 658,586 parameters with 10 classes."""
    return CifarResNet(44, num_classes, zero_init_residual)


def resnet56(num_classes: int = 10, zero_init_residual: bool = False) -> CifarResNet:
    """Build a ResNet-56: 853,018 parameters with 10 classes."""
    return CifarResNet(56, num_classes, zero_init_residual)


def resnet110(num_classes: int = 10, zero_init_residual: bool = False) -> CifarResNet:
    """Build a ResNet-110: 1,727,962 parameters with 10 classes."""
    return CifarResNet(110, num_classes, zero_init_residual)
