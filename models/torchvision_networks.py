"""Networks of torchvision as encoders. They keep torchvision's keys: its ImageNet weights load by name or file."""

from torch import nn

from models.adopted import AdoptedEncoder

# The functions import torchvision, because the import takes as long as torch's.


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
