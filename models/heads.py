"""Segmentation heads (decoders)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import BatchNorm2d

POOL_SCALES = (1, 2, 3, 6)
PPM_WIDTH = 512
DROPOUT = 0.1


def conv_bn_relu(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class PPMBilinear(nn.Module):
    def __init__(self, channels: tuple[int, ...], num_classes: int, use_aux: bool) -> None:
        super().__init__()
        fc_dim, aux_dim = channels[-1], channels[-2]
        self.ppm = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), *conv_bn_relu(fc_dim, PPM_WIDTH, 1)) for scale in POOL_SCALES
        )
        if use_aux:
            self.cbr_deepsup = nn.Sequential(*conv_bn_relu(aux_dim, fc_dim // 4, 3))
            self.dropout_deepsup = nn.Dropout2d(DROPOUT)
            self.conv_last_deepsup = nn.Conv2d(fc_dim // 4, num_classes, 1)
        self.conv_last = nn.Sequential(
            *conv_bn_relu(fc_dim + len(POOL_SCALES) * PPM_WIDTH, PPM_WIDTH, 3), nn.Dropout2d(DROPOUT), nn.Conv2d(PPM_WIDTH, num_classes, 1)
        )

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        conv5 = features[-1]
        pooled = [F.interpolate(branch(conv5), conv5.shape[-2:], mode="bilinear", align_corners=False) for branch in self.ppm]
        return self.conv_last(torch.cat([conv5, *pooled], 1))

    def auxiliary(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.conv_last_deepsup(self.dropout_deepsup(self.cbr_deepsup(features[-2])))
