"""Somebody else's network as an encoder: torchvision's, timm's with ``features_only``, or one of an own file."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from models.batchnorm import COUNTER, BatchNorm2d
from models.encoder import Encoder


class NormAndMore(BatchNorm2d):
    """Batch norm, then the modules that it has, as timm's with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for child in self.children():
            y = child(y)
        return y


def with_our_batch_norm(module: nn.Module) -> nn.Module:
    """``module`` whose batch norms are ours, with the keys and values that they had; it is changed.

    Raises:
        ValueError: a subclass of torch's batch norm computes more than it and the modules that it has.
        RuntimeError: a batch norm has no weight or no running average.
    """
    if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not isinstance(module, BatchNorm2d):
        return _ours(module)
    for name, child in module.named_children():
        setattr(module, name, with_our_batch_norm(child))
    return module


def _ours(theirs: nn.BatchNorm2d | nn.SyncBatchNorm) -> BatchNorm2d:
    channels, more = theirs.num_features, list(theirs.named_children())
    ours = NormAndMore(channels) if more else BatchNorm2d(channels)
    ours.eps = theirs.eps
    for name, child in more:
        ours.add_module(name, child)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if key != COUNTER})
    if type(theirs) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        x = torch.linspace(-3, 3, 4 * channels).view(1, channels, 2, 2)
        with torch.no_grad():
            same = torch.allclose(theirs.eval()(x.clone()), ours.eval()(x.clone()), atol=1e-6)
        if not same:
            raise ValueError(f"{type(theirs).__name__} computes something else than batch norm and its own modules")
    return ours.train()


class AdoptedEncoder(Encoder):
    """The modules of ``network`` under their own names, with our batch norm, as stages.

    Args:
        network: is taken over and changed.
        stages: the network -> the blocks of each stage, see ``Encoder.set_stages``. Modules that are in no block are
            left out; what a file of weights has for them is the ``classifier``.
        output_stride: strides beyond it become dilation. None: the network stays as it is.
        classifier: more keys of a file of weights that are no part of the encoder.

    Raises:
        ValueError: another layer than a convolution has a stride beyond ``output_stride``.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Callable[[Any], Iterable[Iterable[nn.Module]]],
        output_stride: int | None = None,
        classifier: Iterable[str] = (),
    ) -> None:
        super().__init__()
        network = with_our_batch_norm(network)
        published = list(network.state_dict())
        blocks = [list(stage) for stage in stages(network)]
        _leave_out(network, {module for stage in blocks for block in stage for module in block.modules()})
        for name, child in network.named_children():
            self.add_module(name, child)
        self.set_stages(blocks, output_stride)
        own = self.state_dict()
        self.classifier = (*classifier, *(key for key in published if key not in own))


def _leave_out(module: nn.Module, used: set[nn.Module]) -> None:
    """Delete the modules below ``module`` that neither are in ``used`` nor hold one that is."""
    for name, child in list(module.named_children()):
        if used.isdisjoint(child.modules()):
            delattr(module, name)
        elif child not in used:
            _leave_out(child, used)
