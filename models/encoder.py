"""Base of all encoders: stages of blocks with measured channels and strides."""

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from models.batchnorm import recomputed

SIDE = 64  # side of the image that measures an encoder; the largest stride that can be measured


class Copy(nn.Module):
    """Copies its input, so that the next module may change it in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Encoder(nn.Module):
    """Base of the encoders: images -> the feature map of each stage.

    A subclass registers its modules under the names in its weights files, and ends its constructor with
    ``set_stages``.

    Attributes:
        channels: channels of the feature maps in the order of ``forward``; the last is fc_dim.
        strides: strides of the feature maps, relative to the image.
        classifier: keys of an ImageNet file that are not in the encoder.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classifier: tuple[str, ...] = ()

    def set_stages(self, stages: Iterable[Iterable[nn.Module]], output_stride: int | None = None) -> None:
        """Set the blocks that each stage runs in order, the finest stage first, and measure the stages.

        A block may be a group of registered modules: this list adds no keys to the state dict. A recomputation runs
        block by block. A block that changes its input in place gets a copy, because the head and a recomputation need
        the input.

        Args:
            output_stride: larger strides become dilation. None: the network keeps its strides.

        Raises:
            ValueError: a layer other than a convolution has a stride beyond ``output_stride``.
        """
        self._stages = [list(stage) for stage in stages]
        input_strides: dict[nn.Conv2d, int] = {}

        def note_stride(conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
            input_strides[conv] = SIDE // inputs[0].shape[2]

        with ExitStack() as hooks:
            for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
                hooks.enter_context(conv.register_forward_pre_hook(note_stride))
            self._measure()
        if output_stride is not None:
            _dilate(input_strides, output_stride)
            self._measure()
            if self.strides[-1] != output_stride:
                raise ValueError(
                    f"output stride {output_stride} is impossible, the network keeps stride {self.strides[-1]}: a "
                    "layer other than a padded convolution has a stride"
                )

    def forward(self, x: Tensor, recompute: bool = False) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> feature maps, the finest first.

        Args:
            recompute: keep only the inputs of the blocks for the backward pass, see ``models.batchnorm.recomputed``.
        """
        features = []
        for stage in self._stages:
            for block in stage:
                x = recomputed(block, x) if recompute else block(x)
            features.append(x)
        return tuple(features)

    @torch.no_grad()
    def _measure(self) -> None:
        """Measure channels and strides with one small image in evaluation mode, which changes no statistics."""
        self.eval()
        x = torch.linspace(-1, 1, 3 * SIDE**2).view(1, 3, SIDE, SIDE)
        shapes = []
        for stage in self._stages:
            for i, block in enumerate(stage):
                given = x.clone()
                y = block(given)
                if not x.is_meta and not torch.equal(given, x):
                    stage[i] = nn.Sequential(Copy(), block)
                x = y
            shapes.append(x.shape)
        self.channels = tuple(shape[1] for shape in shapes)
        self.strides = tuple(SIDE // shape[2] for shape in shapes)
        self.train()

    def initialise(self) -> None:
        """Kaiming-normal convolutions that keep the variance of the gradient, for a training from scratch."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _dilate(input_strides: dict[nn.Conv2d, int], output_stride: int) -> None:
    """Limit the output stride: convolutions beyond it lose their stride, and the convolutions after them are dilated.

    At the positions of the undilated network the values stay the same, if no layer averages the whole feature map.

    Args:
        input_strides: stride of each convolution's input in the undilated network, relative to the image.
    """
    for conv, stride in input_strides.items():
        kept = min(stride, output_stride)
        conv.stride = tuple(min(stride * s, output_stride) // kept for s in conv.stride)
        if conv.kernel_size != (1, 1):
            conv.dilation = tuple(stride // kept * d for d in conv.dilation)
            if not isinstance(conv.padding, str):  # "same" follows the dilation
                conv.padding = tuple(stride // kept * p for p in conv.padding)
