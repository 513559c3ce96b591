"""What every encoder owes to the heads, the weights and the training."""

from abc import abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from models.batchnorm import recomputed


class Encoder(nn.Module):
    """Base of the encoders: images -> feature maps of several stages.

    Attributes:
        channels: of the feature maps that ``forward`` gives, in its order; the last is fc_dim.
        strides: of the feature maps, relative to the image.
        classifier: keys of an ImageNet file that are no part of the encoder.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classifier: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, x: Tensor, recompute: bool = False) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> feature maps, the finest first.

        Args:
            recompute: keep only the input of every block for the backward pass, see ``models.batchnorm.recomputed``.
        """

    @staticmethod
    def run(blocks: Iterable[nn.Module], x: Tensor, recompute: bool) -> Tensor:
        """``x`` through one block after the other."""
        for block in blocks:
            x = recomputed(block, x) if recompute else block(x)
        return x

    def initialise(self) -> None:
        """Kaiming-normal convolutions that keep the variance of the gradient: where training from scratch starts."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
