"""What every encoder is: stages of blocks, whose widths and strides are measured."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.batchnorm import recomputed

SIDE = 64  # of the picture that measures an encoder; strides up to this are told apart


class Copy(nn.Module):
    """What comes after it may change its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Encoder(nn.Module):
    """Base of the encoders: images -> the feature map of each stage.

    A subclass registers its modules under the names that files of weights have, and ends its constructor with
    ``set_stages``.

    Attributes:
        channels: of the feature maps that ``forward`` gives, in its order; the last is fc_dim.
        strides: of the feature maps, relative to the image.
        classifier: keys of an ImageNet file that are no part of the encoder.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classifier: tuple[str, ...] = ()

    def set_stages(self, stages: Iterable[Iterable[nn.Module]]) -> None:
        """Say which blocks each stage runs, one after the other, the finest stage first, and measure the stages.

        Blocks may be groups of registered modules: the list itself gives the state dict no key. A recomputation goes
        block by block. A block that changes its input in place gets a copy of it: the input may be a feature map for
        the head, and a recomputation starts from it.
        """
        self._stages = [list(stage) for stage in stages]
        self.measure()

    def forward(self, x: Tensor, recompute: bool = False) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> feature maps, the finest first.

        Args:
            recompute: keep only the input of every block for the backward pass, see ``models.batchnorm.recomputed``.
        """
        features = []
        for stage in self._stages:
            for block in stage:
                x = recomputed(block, x) if recompute else block(x)
            features.append(x)
        return tuple(features)

    @torch.no_grad()
    def measure(self) -> None:
        """Set channels and strides by one small picture, in evaluation: no statistic and no random number moves."""
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
        """Kaiming-normal convolutions that keep the variance of the gradient: where training from scratch starts."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
