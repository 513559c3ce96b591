"""Encoder and head: the network that every script builds by name."""

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor, nn

from dataset.messages import ChoiceError, nearest
from models.adopted import mobilenet_v2, regnet_y_400mf, vgg16
from models.encoder import Encoder
from models.heads import HEADS, Head, resize_as
from models.resnet import DEPTHS, ResNet

OUTPUT_STRIDES = {"_dilated8": 8, "_dilated16": 16, "": None}  # ending of the name -> see Encoder.set_stages
# "tv_": torchvision's stem, for its ImageNet weights
ENCODERS: dict[str, Callable[[], Encoder]] = {
    f"{stem}{depth}{dilated}": partial(ResNet, depth, output_stride, deep_stem=not stem)
    for stem in ("", "tv_")
    for depth in DEPTHS
    for dilated, output_stride in OUTPUT_STRIDES.items()
}
ENCODERS |= {
    f"{build.__name__}{dilated}": partial(build, output_stride)
    for build in (mobilenet_v2, regnet_y_400mf)
    for dilated, output_stride in OUTPUT_STRIDES.items()
}
ENCODERS["vgg16"] = vgg16


class Segmentor(nn.Module):
    """Encoder, decoder and the upsampling of the logits. The state dict has the official keys.

    Args:
        use_aux: the decoder has an auxiliary head.
        checkpoint_encoder: in training, compute the encoder's activations twice instead of keeping them.
    """

    def __init__(self, encoder: Encoder, decoder: Head, use_aux: bool, checkpoint_encoder: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.use_aux, self.checkpoint_encoder = use_aux, checkpoint_encoder

    def forward(self, images: Tensor, aux: bool | None = None) -> dict[str, Tensor]:
        """Class logits at the images' size, upsampled bilinearly with align_corners False, in at least float32.

        Args:
            images: (N, 3, H, W), ImageNet-normalised.
            aux: compute the auxiliary logits; None: in training, if the network has the auxiliary head.

        Returns:
            ``logits`` (N, C, H, W) and, if computed, ``aux`` of the same shape.

        Raises:
            ValueError: ``aux`` without an auxiliary head, or a training batch too small for batch norm.
        """
        if aux and not self.use_aux:
            raise ValueError("this network was built with use_aux=False: it has no auxiliary logits")
        features = self._features(images)
        outputs = {"logits": self.decoder(features)}
        if (self.training and self.use_aux) if aux is None else aux:
            outputs["aux"] = self.decoder.auxiliary(features)
        return {name: self._upsampled(logits, images) for name, logits in outputs.items()}

    def stride_logits(self, images: Tensor) -> Tensor:
        """Class logits (N, C, h, w) at the network's stride; ``images`` as in ``forward``."""
        return self.decoder(self._features(images))

    def _features(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(images, recompute=self.checkpoint_encoder and self.training)

    @staticmethod
    def _upsampled(logits: Tensor, images: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision would round the weights
        with torch.autocast(logits.device.type, enabled=False):
            return resize_as(logits, images)


def _choose(kind: str, name: str, choices: Collection[str]) -> None:
    if name not in choices:
        raise ChoiceError(
            f"no {kind} named {name!r} (the nearest is {nearest(name, choices)!r}): choose one of {', '.join(choices)}"
        )


def build_segmentor(
    encoder: str, decoder: str, num_classes: int = 19, fc_dim: int | None = None, use_aux: bool = True
) -> Segmentor:
    """Network with Kaiming-initialised weights.

    Args:
        encoder: a name in ``ENCODERS``: [``tv_``] ``resnet10|18|34|50|101``, with or without ``_dilated8|16``;
            ``mobilenet_v2`` or ``regnet_y_400mf``, with or without ``_dilated8|16``; or ``vgg16``.
        decoder: a name in ``HEADS``: ``ppm_bilinear``, ``aspp`` or ``fcn`` on a dilated encoder, ``fcn8s`` on
            ``vgg16``; ``ppm_bilinear`` also on an undilated encoder.
        fc_dim: must equal the encoder's output channels; None: not checked.
        use_aux: add an auxiliary head on the stage before the last; ``fcn8s`` has none.

    Raises:
        ChoiceError: an unknown name, a head that does not fit the encoder, or an fc_dim other than the encoder's.
    """
    _choose("encoder", encoder, ENCODERS)
    _choose("decoder", decoder, HEADS)
    backbone, head = ENCODERS[encoder](), HEADS[decoder]
    if not head.accepts(backbone.strides):
        raise ChoiceError(f"decoder {decoder} does not fit encoder {encoder}: it needs {head.needs}")
    channels = backbone.channels[-1]
    if fc_dim not in (None, channels):
        raise ChoiceError(
            f"fc_dim is {fc_dim}, but {encoder} has {channels} output channels: set model.fc_dim to that, or to null"
        )
    decoder_module = head(backbone.channels, num_classes, use_aux)
    backbone.initialise()
    decoder_module.initialise()
    return Segmentor(backbone, decoder_module, use_aux)


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of every dropout layer; 0 disables dropout."""
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
