"""ResNet encoders with the three-convolution stem, dilated to output stride 8 or 16 (released code)."""

from torch import Tensor, nn

from models.batchnorm import BatchNorm2d

LAYERS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
DILATIONS = {"dilated8": (1, 1, 2, 4), "dilated16": (1, 1, 1, 2)}


def conv3x3(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, first_dilation: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride, first_dilation)
        self.bn1 = BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes, 1, dilation)
        self.bn2 = BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, first_dilation: int, dilation: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride, first_dilation)
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Returns the features of the four stages, conv2..conv5."""

    def __init__(self, depth: str, dilated: str) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv3x3(3, 64, 2), BatchNorm2d(64), nn.ReLU(inplace=True)
        self.conv2, self.bn2, self.relu2 = conv3x3(64, 64), BatchNorm2d(64), nn.ReLU(inplace=True)
        self.conv3, self.bn3, self.relu3 = conv3x3(64, 128), BatchNorm2d(128), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block = BasicBlock if depth == "resnet18" else Bottleneck
        inputs = 128
        for i, (count, dilation) in enumerate(zip(LAYERS[depth], DILATIONS[dilated])):
            planes = 64 * 2**i
            stride = 1 if i == 0 or dilation > 1 else 2
            setattr(self, f"layer{i + 1}", self._stage(block, inputs, planes, count, stride, dilation))
            inputs = planes * block.expansion
        self.channels = tuple(64 * 2**i * block.expansion for i in range(4))

    @staticmethod
    def _stage(block, inputs: int, planes: int, count: int, stride: int, dilation: int) -> nn.Sequential:
        outputs = planes * block.expansion
        downsample = None
        if stride != 1 or inputs != outputs:
            downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))
        first = max(dilation // 2, 1)  # what was the strided convolution gets half the dilation
        blocks = [block(inputs, planes, stride, first, dilation, downsample)]
        blocks += [block(outputs, planes, 1, dilation, dilation, None) for _ in range(count - 1)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.maxpool(self.relu3(self.bn3(self.conv3(x))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return tuple(features)
