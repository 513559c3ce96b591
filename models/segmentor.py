"""Encoder + head: the network that every script builds by name."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import HEADS, Head
from models.resnet import DILATIONS, LAYERS, ResNet
from models.vgg import VGG16

# "tv_": torchvision's stem, for torchvision's ImageNet weights
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    f"{stem}{depth}_{dilated}": partial(ResNet, depth, dilated, deep_stem=not stem)
    for stem in ("", "tv_")
    for depth in LAYERS
    for dilated in DILATIONS
} | {"vgg16": VGG16}


class Segmentor(nn.Module):
    """Encoder and decoder, whose state-dict keys are the official ones, and the upsampling of their logits.

    Args:
        use_aux: the decoder has an auxiliary head.
        checkpoint_encoder: in training, compute the encoder's activations twice instead of keeping them.
    """

    def __init__(self, encoder: nn.Module, decoder: Head, use_aux: bool, checkpoint_encoder: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.use_aux, self.checkpoint_encoder = use_aux, checkpoint_encoder

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

        Raises:
            ValueError: ``aux`` without an auxiliary head, or a training batch too small for batch norm.
        """
        if aux and not self.use_aux:
            raise ValueError("this network was built with use_aux=False, it has no auxiliary logits")
        size = tuple(images.shape[-2:]) if size is None else tuple(size)
        features = self.encoder(images, recompute=self.checkpoint_encoder and self.training)
        outputs = {"logits": self.decoder(features)}
        if (self.training and self.use_aux) if aux is None else aux:
            outputs["aux"] = self.decoder.auxiliary(features)
        return {
            name: F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
            for name, logits in outputs.items()
        }


def _choose(kind: str, name: str, choices: Iterable[str]) -> None:
    if name not in choices:
        nearest = get_close_matches(name, choices, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"no {kind} named {name!r}{hint}: choose one of {', '.join(choices)}")


def _initialise_encoder(encoder: nn.Module) -> None:
    """Kaiming-normal convolutions that keep the variance of the gradient; what training from scratch starts from."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_segmentor(
    encoder: str, decoder: str, num_classes: int = 19, fc_dim: int = 2048, use_aux: bool = True
) -> Segmentor:
    """Network with Kaiming-initialised weights.

    Args:
        encoder: [``tv_``] ``resnet18|50|101`` + ``_dilated8|16``, or ``vgg16``.
        decoder: ``ppm_bilinear``, ``aspp`` or ``fcn`` on a ResNet, ``fcn8s`` on ``vgg16``.
        fc_dim: channels of the last encoder stage, which the encoder must have.
        use_aux: with an auxiliary head on the stage before; ``fcn8s`` has none.

    Raises:
        ValueError: an unknown name, a head that does not go with the encoder, or an fc_dim that is not the encoder's.
    """
    _choose("encoder", encoder, ENCODERS)
    _choose("decoder", decoder, HEADS)
    if (encoder == "vgg16") != (decoder == "fcn8s"):
        raise ValueError(f"encoder {encoder} with decoder {decoder}: vgg16 and fcn8s only go together")
    backbone = ENCODERS[encoder]()
    if backbone.channels[-1] != fc_dim:
        raise ValueError(
            f"fc_dim is {fc_dim}, but {encoder} ends with {backbone.channels[-1]} channels: set model.fc_dim to that"
        )
    head = HEADS[decoder](backbone.channels, num_classes, use_aux)
    _initialise_encoder(backbone)
    head.initialise()
    return Segmentor(backbone, head, use_aux)


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of every dropout layer; 0 turns dropout off."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = p


def parameter_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Optimiser groups: weight decay on convolution weights, none on biases and batch norm (released code)."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
