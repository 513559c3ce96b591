"""Encoder + head: the network that every script builds by name."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import BatchNorm2d
from models.heads import HEADS
from models.resnet import DILATIONS, LAYERS, ResNet

ENCODERS = tuple(f"{depth}_{dilated}" for depth in LAYERS for dilated in DILATIONS)
DECODER_BN_BIAS = 1e-4  # released code


class Segmentor(nn.Module):
    """Encoder and decoder, whose state-dict keys are the official ones, and the upsampling of their logits."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, use_aux: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.use_aux = encoder, decoder, use_aux

    def forward(
        self,
        images: Tensor,
        size: tuple[int, int] | None = None,
        align_corners: bool = False,
        aux: bool | None = None,
    ) -> dict[str, Tensor]:
        """Class logits, upsampled bilinearly from the network's stride straight to ``size``.

        Args:
            images: (N, 3, H, W), ImageNet-normalised.
            size: (h, w) of the logits; None: the images' own.
            aux: compute the auxiliary logits; None: in training, if the network has the head.

        Returns:
            ``logits`` (N, C, h, w) and, where computed, ``aux`` of the same shape.
        """
        size = tuple(images.shape[-2:]) if size is None else tuple(size)
        features = self.encoder(images)
        outputs = {"logits": self.decoder(features)}
        if (self.training and self.use_aux) if aux is None else aux:
            outputs["aux"] = self.decoder.auxiliary(features)
        return {
            name: F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
            for name, logits in outputs.items()
        }


def _choose(kind: str, name: str, choices: Iterable[str]) -> None:
    if name not in choices:
        raise ValueError(f"no {kind} named {name!r}: choose one of {', '.join(choices)}")


def build_segmentor(
    encoder: str, decoder: str, num_classes: int = 19, fc_dim: int = 2048, use_aux: bool = True
) -> Segmentor:
    """Network with Kaiming-initialised weights.

    Args:
        encoder: ``resnet18|50|101`` + ``_dilated8|16``.
        decoder: ``ppm_bilinear``.
        fc_dim: channels of the last encoder stage, which the encoder must have.
        use_aux: with an auxiliary head on the stage before.

    Raises:
        ValueError: an unknown name, or an fc_dim that is not the encoder's.
    """
    _choose("encoder", encoder, ENCODERS)
    _choose("decoder", decoder, HEADS)
    backbone = ResNet(*encoder.split("_"))
    if backbone.channels[-1] != fc_dim:
        raise ValueError(f"fc_dim is {fc_dim}, but {encoder} ends with {backbone.channels[-1]} channels: set model.fc_dim to that")
    head = HEADS[decoder](backbone.channels, num_classes, use_aux)
    for module in (*backbone.modules(), *head.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for module in head.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.constant_(module.bias, DECODER_BN_BIAS)
    return Segmentor(backbone, head, use_aux)


def parameter_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Optimiser groups: weight decay on convolution weights, none on biases and batch norm (released code)."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
