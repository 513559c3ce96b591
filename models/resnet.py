"""ResNet encoders, dilated or not, with the released code's stem of three convolutions or torchvision's 7x7 stem."""

from torch import Tensor, nn

from models.batchnorm import BatchNorm2d
from models.encoder import Encoder

# (input channels, output channels, kernel, stride) of the convolutions before the max-pooling
DEEP_STEM = ((3, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 1))
PLAIN_STEM = ((3, 64, 7, 2),)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1; the 3x3 convolution has the stride."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


# name -> (block, number of blocks of each stage)
DEPTHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),  # for a CPU, from scratch: there are no ImageNet weights
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(Encoder):
    """Residual network without classifier, dilated to output stride 8 or 16, or undilated with stride 32.

    Args:
        depth: a name in ``DEPTHS``.
        output_stride: see ``Encoder.set_stages``; None: 32.
        deep_stem: three 3x3 convolutions (released code); False: one 7x7 convolution (torchvision).
    """

    classifier = ("fc.weight", "fc.bias")

    def __init__(self, depth: str, output_stride: int | None = None, deep_stem: bool = True) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stem: list[nn.Module] = []
        for i, (inputs, outputs, kernel, stride) in enumerate(DEEP_STEM if deep_stem else PLAIN_STEM, start=1):
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
            norm = BatchNorm2d(outputs)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", norm)
            stem += [conv, norm, self.relu]
        block, counts = DEPTHS[depth]
        inputs, stages = outputs, []
        for i, count in enumerate(counts):
            stages.append(_stage(block, inputs, 64 * 2**i, count, stride=1 if i == 0 else 2))
            self.add_module(f"layer{i + 1}", stages[-1])
            inputs = 64 * 2**i * block.expansion
        self.set_stages([[nn.Sequential(*stem, self.maxpool), *stages[0]], *stages[1:]], output_stride)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, count: int, stride: int
) -> nn.Sequential:
    outputs = planes * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))
    return nn.Sequential(block(inputs, planes, stride, downsample), *(block(outputs, planes) for _ in range(count - 1)))
