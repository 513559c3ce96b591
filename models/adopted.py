"""Networks from elsewhere as encoders: from torchvision, from timm with ``features_only``, or your own.

torchvision's keys are kept: its ImageNet weights load by name or file. The functions import torchvision when they are
called, as that takes as long as importing torch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from models.batchnorm import BatchNorm2d
from models.encoder import Encoder


class NormAndMore(BatchNorm2d):
    """Batch norm with child modules that run after it, like timm's batch norm with activation."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for child in self.children():
            y = child(y)
        return y


def with_our_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm in ``module`` by ours, with the same keys and values. Changes and returns ``module``.

    Raises:
        ValueError: a subclass of torch's batch norm computes more than batch norm and its child modules.
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
    ours.load_state_dict(theirs.state_dict())
    if type(theirs) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        x = torch.linspace(-3, 3, 4 * channels).view(1, channels, 2, 2)
        with torch.no_grad():
            same = torch.allclose(theirs.eval()(x.clone()), ours.eval()(x.clone()), atol=1e-6)
        if not same:
            raise ValueError(f"{type(theirs).__name__} computes something else than batch norm and its child modules")
    return ours.train()


class AdoptedEncoder(Encoder):
    """An encoder from the modules of ``network``. They keep their names and get our batch norm.

    Args:
        network: is changed and must not be used any more.
        stages: function from the network to the blocks of each stage, see ``Encoder.set_stages``. Modules in no block
            are removed; their keys in a weights file belong to the ``classifier``.
        output_stride: larger strides become dilation. None: the network keeps its strides.
        classifier: more keys of a weights file that are not in the encoder.

    Raises:
        ValueError: a layer other than a convolution has a stride beyond ``output_stride``.
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
    """Delete the modules below ``module`` that are not in ``used`` and contain no module of ``used``."""
    for name, child in list(module.named_children()):
        if used.isdisjoint(child.modules()):
            delattr(module, name)
        elif child not in used:
            _leave_out(child, used)


def mobilenet_v2(output_stride: int | None) -> AdoptedEncoder:
    """Inverted residuals of MobileNetV2 (Sandler et al. 2018), without the last convolution before its classifier."""
    from torchvision.models import mobilenet_v2

    return AdoptedEncoder(
        mobilenet_v2(),
        lambda net: [net.features[:4], net.features[4:7], net.features[7:14], net.features[14:18]],
        output_stride,
    )


def regnet_y_400mf(output_stride: int | None) -> AdoptedEncoder:
    """RegNetY (Radosavovic et al. 2020): residual blocks with squeeze-and-excitation."""
    from torchvision.models import regnet_y_400mf

    return AdoptedEncoder(
        regnet_y_400mf(),
        lambda net: [[net.stem, *net.trunk_output[0]], *net.trunk_output[1:]],
        output_stride,
    )


def vgg16() -> AdoptedEncoder:
    """Convolutions and poolings of VGG-16. Its classifier's first two layers initialise the FCN8s head.

    Poolings round sizes up, as in FCN8s: no row or column at the border is lost.
    """
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"])
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return AdoptedEncoder(
        nn.ModuleDict({"features": layers}),
        lambda net: [[net.features[i:j]] for i, j in ((0, 5), (5, 10), (10, 17), (17, 24), (24, 31))],
        classifier=[f"classifier.{layer}.{kind}" for layer in (0, 3, 6) for kind in ("weight", "bias")],
    )
