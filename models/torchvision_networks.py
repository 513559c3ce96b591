"""Dilated MobileNetV2 encoder on torchvision's own modules: light, and with ImageNet weights that everybody can get."""

from torch import Tensor, nn

from models.batchnorm import BatchNorm2d
from models.encoder import Encoder

STAGE_ENDS = (3, 6, 13, 17)  # the last block of each stage that the heads see, in torchvision's numbering
BLOCKS = STAGE_ENDS[-1] + 1  # torchvision's 19th, a 1x1 convolution to 1280 channels, is made for its classifier
OUTPUT_STRIDES = {"dilated8": 8, "dilated16": 16}


class MobileNetV2(Encoder):
    """Inverted residuals of MobileNetV2 (Sandler et al. 2018), strides beyond the output stride turned into dilation.

    Keys are torchvision's, so that ``MobileNet_V2_Weights`` load by name or file.

    Args:
        dilated: ``dilated8`` or ``dilated16``.
    """

    classifier = (
        *("classifier.1.weight", "classifier.1.bias", f"features.{BLOCKS}.0.weight"),
        *(f"features.{BLOCKS}.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
        f"features.{BLOCKS}.1.num_batches_tracked",
    )

    def __init__(self, dilated: str) -> None:
        from torchvision.models import mobilenet_v2  # here: it takes as long to import as all of torch

        super().__init__()
        self.features = mobilenet_v2(norm_layer=BatchNorm2d).features[:BLOCKS]
        strides = _dilate(self.features, OUTPUT_STRIDES[dilated])
        self.strides = tuple(strides[end] for end in STAGE_ENDS)
        self.channels = tuple(self.features[end].out_channels for end in STAGE_ENDS)

    def forward(self, x: Tensor, recompute: bool = False) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> features of four stages, 24, 32, 96 and 320 channels; see ``Encoder``."""
        features, start = [], 0
        for end in STAGE_ENDS:
            x = self.run(self.features[start : end + 1], x, recompute)
            features.append(x)
            start = end + 1
        return tuple(features)


def _dilate(blocks: nn.Sequential, output_stride: int) -> list[int]:
    """Keep the output stride: a convolution that would go beyond it has stride 1, those after it the dilation instead.

    The values at the positions that the undilated network has stay what they were.

    Returns:
        the stride of each block's output.
    """
    strides, stride, dilation = [], 1, 1
    for block in blocks:
        for conv in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
            if conv.kernel_size != (3, 3):
                continue
            conv.dilation, conv.padding = (dilation, dilation), (dilation, dilation)
            if conv.stride == (2, 2) and stride == output_stride:
                conv.stride, dilation = (1, 1), 2 * dilation
            elif conv.stride == (2, 2):
                stride *= 2
        strides.append(stride)
    return strides
