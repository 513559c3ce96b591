"""Segmentation heads (decoders): features of the encoder's stages -> class logits at the last stage's size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import BatchNorm2d

POOL_SCALES = (1, 2, 3, 6)
PPM_WIDTH = 512
DROPOUT = 0.1


def conv_bn_relu(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """Convolution that keeps the size, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [conv, BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class AuxiliaryHead(nn.Module):
    """Base of the heads: logits from the stage before the last, for deep supervision in training."""

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


class PPMBilinear(AuxiliaryHead):
    """Pyramid pooling (PSPNet): conv5 beside its averages over 1, 4, 9 and 36 cells, then a 3x3 convolution."""

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
        pooled = [
            F.interpolate(branch(conv5), conv5.shape[-2:], mode="bilinear", align_corners=False) for branch in self.ppm
        ]
        return self.conv_last(torch.cat([conv5, *pooled], dim=1))


HEADS = {"ppm_bilinear": PPMBilinear}
