"""Segmentation heads (decoders): features of the encoder's stages -> class logits at the network's stride."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.messages import ChoiceError
from models.batchnorm import BatchNorm2d

POOL_SCALES = (1, 2, 3, 6)
PPM_WIDTH = 512
ASPP_RATES = (6, 12, 18, 24)
FC_WIDTH = 4096  # VGG-16's fully connected layers
DROPOUT = 0.1
FC_DROPOUT = 0.5
BN_BIAS = 1e-4  # released code


def conv_bn_relu(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """Convolution that keeps the size, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [conv, BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def resize_as(x: Tensor, other: Tensor) -> Tensor:
    """``x`` at the height and width of ``other``."""
    return F.interpolate(x, other.shape[-2:], mode="bilinear", align_corners=False)


class Head(nn.Module):
    """Base of the heads on a dilated encoder, with the auxiliary head on the stage before the last (conv4).

    Args:
        channels: channels of the encoder's stages; the last is fc_dim.
        use_aux: build the auxiliary head.

    Attributes:
        needs: text for an error message: the encoders that ``accepts`` accepts.
        pools_whole_image: batch norm gets one value per channel and image, so training needs two images.
    """

    needs = "an encoder dilated to stride 8 or 16"
    pools_whole_image = False

    @classmethod
    def accepts(cls, strides: tuple[int, ...]) -> bool:
        """Whether the head fits an encoder with these strides of its stages."""
        return strides[-1] <= 16

    def __init__(self, channels: tuple[int, ...], num_classes: int, use_aux: bool) -> None:
        super().__init__()
        if use_aux:
            width = channels[-1] // 4
            self.cbr_deepsup = nn.Sequential(*conv_bn_relu(channels[-2], width, 3))
            self.dropout_deepsup = nn.Dropout2d(DROPOUT)
            self.conv_last_deepsup = nn.Conv2d(width, num_classes, 1)

    def auxiliary(self, features: tuple[Tensor, ...]) -> Tensor:
        """(N, C, h, w) logits of the auxiliary head."""
        return self.conv_last_deepsup(self.dropout_deepsup(self.cbr_deepsup(features[-2])))

    def initialise(self) -> None:
        """Kaiming-normal convolutions; batch norm with weight 1 and bias 1e-4 (released code)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, BatchNorm2d):
                nn.init.constant_(module.bias, BN_BIAS)


class PPMBilinear(Head):
    """Pyramid pooling (PSPNet): conv5 beside its averages over 1, 4, 9 and 36 cells, then a 3x3 convolution.

    The coarsest average has one value per channel and image, so training needs two images in the global batch.
    """

    needs = "an encoder dilated to stride 8 or 16, or one with stages of stride 4, 8, 16 and 32"
    pools_whole_image = True

    @classmethod
    def accepts(cls, strides: tuple[int, ...]) -> bool:
        return super().accepts(strides) or strides == (4, 8, 16, 32)

    def __init__(self, channels: tuple[int, ...], num_classes: int, use_aux: bool) -> None:
        super().__init__(channels, num_classes, use_aux)
        fc_dim = channels[-1]
        self.ppm = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), *conv_bn_relu(fc_dim, PPM_WIDTH, 1)) for scale in POOL_SCALES
        )
        self.conv_last = nn.Sequential(
            *conv_bn_relu(fc_dim + len(POOL_SCALES) * PPM_WIDTH, PPM_WIDTH, 3),
            nn.Dropout2d(DROPOUT),
            nn.Conv2d(PPM_WIDTH, num_classes, 1),
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        conv5 = features[-1]
        pooled = [resize_as(branch(conv5), conv5) for branch in self.ppm]
        return self.conv_last(torch.cat([conv5, *pooled], dim=1))


class ASPP(Head):
    """Atrous spatial pyramid pooling (DeepLab-v2): the sum of four dilated 3x3 classifiers."""

    def __init__(self, channels: tuple[int, ...], num_classes: int, use_aux: bool) -> None:
        super().__init__(channels, num_classes, use_aux)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels[-1], num_classes, 3, padding=rate, dilation=rate) for rate in ASPP_RATES
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return sum(branch(features[-1]) for branch in self.branches)


class FCN(Head):
    """Fully convolutional head on a dilated encoder: a 3x3 convolution to fc_dim / 4 and a 1x1 classifier."""

    def __init__(self, channels: tuple[int, ...], num_classes: int, use_aux: bool) -> None:
        super().__init__(channels, num_classes, use_aux)
        width = channels[-1] // 4
        self.cbr = nn.Sequential(*conv_bn_relu(channels[-1], width, 3))
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_last = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.conv_last(self.dropout(self.cbr(features[-1])))


class FCN8s(Head):
    """FCN8s of Long et al. (2015): VGG-16's classifier as convolutions, refined by scores of pool4 and pool3.

    Scores are upsampled by bilinear interpolation; the paper has deconvolutions with the same initial weights. fc6 is
    padded to keep the size; the paper pads the image by 100. The classifiers start at zero, as in the paper: VGG has no
    batch norm, and the features of pool3 and pool4 are large.
    """

    needs = "an encoder with stages of stride 2, 4, 8, 16 and 32"

    def __init__(self, channels: tuple[int, ...], num_classes: int, use_aux: bool) -> None:
        if use_aux:
            raise ChoiceError("decoder fcn8s has no auxiliary head: set model.use_aux to false")
        super().__init__(channels, num_classes, use_aux)
        pool3, pool4, pool5 = channels[-3:]
        self.fc6 = nn.Conv2d(pool5, FC_WIDTH, 7, padding=3)
        self.fc7 = nn.Conv2d(FC_WIDTH, FC_WIDTH, 1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(FC_DROPOUT)
        self.score_fr = nn.Conv2d(FC_WIDTH, num_classes, 1)
        self.score_pool4 = nn.Conv2d(pool4, num_classes, 1)
        self.score_pool3 = nn.Conv2d(pool3, num_classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        pool3, pool4, pool5 = features[-3:]
        x = self.dropout(self.relu(self.fc6(pool5)))
        x = self.score_fr(self.dropout(self.relu(self.fc7(x))))
        x = resize_as(x, pool4) + self.score_pool4(pool4)
        return resize_as(x, pool3) + self.score_pool3(pool3)

    @classmethod
    def accepts(cls, strides: tuple[int, ...]) -> bool:
        return strides == (2, 4, 8, 16, 32)

    def initialise(self) -> None:
        super().initialise()
        for score in (self.score_fr, self.score_pool4, self.score_pool3):
            for parameter in score.parameters():
                nn.init.zeros_(parameter)


HEADS: dict[str, type[Head]] = {"ppm_bilinear": PPMBilinear, "aspp": ASPP, "fcn": FCN, "fcn8s": FCN8s}
