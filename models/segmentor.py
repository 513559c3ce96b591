"""Encoder + head."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import BatchNorm2d
from models.heads import PPMBilinear
from models.resnet import ResNet


class Segmentor(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module, use_aux: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.use_aux = encoder, decoder, use_aux

    def forward(self, images: Tensor, size=None, align_corners: bool = False, aux: bool | None = None) -> dict[str, Tensor]:
        size = images.shape[-2:] if size is None else size
        features = self.encoder(images)
        up = lambda z: F.interpolate(z, size, mode="bilinear", align_corners=align_corners)
        outputs = {"logits": up(self.decoder(features))}
        if (self.training and self.use_aux) if aux is None else aux:
            outputs["aux"] = up(self.decoder.auxiliary(features))
        return outputs


def build_segmentor(encoder: str, decoder: str, num_classes: int = 19, fc_dim: int = 2048, use_aux: bool = True) -> Segmentor:
    enc = ResNet(*encoder.split("_"))
    dec = PPMBilinear(enc.channels, num_classes, use_aux)
    for m in list(enc.modules()) + list(dec.modules()):
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
    for m in dec.modules():
        if isinstance(m, BatchNorm2d):
            nn.init.constant_(m.bias, 1e-4)
    return Segmentor(enc, dec, use_aux)


def parameter_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    decay = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": decay, "lr": lr, "weight_decay": weight_decay}, {"params": rest, "lr": lr, "weight_decay": 0.0}]
