"""Encoders: strides, sizes, and the values of torchvision's networks with the same weights."""

import pytest
import torch
from torch import nn
from torchvision.models import (
    MobileNet_V2_Weights,
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    VGG16_Weights,
    mobilenet_v2,
    resnet34,
    resnet50,
    vgg16,
)

from models import build_segmentor, heads
from models.resnet import DEPTHS, BasicBlock
from models.segmentor import ENCODERS

# Parameters of the ImageNet networks with their classifiers, as torchvision publishes them.
PUBLISHED = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1.meta["num_params"],
    "resnet50": ResNet50_Weights.IMAGENET1K_V1.meta["num_params"],
    "resnet101": ResNet101_Weights.IMAGENET1K_V1.meta["num_params"],
    "resnet34": ResNet34_Weights.IMAGENET1K_V1.meta["num_params"],
    "mobilenet_v2": MobileNet_V2_Weights.IMAGENET1K_V1.meta["num_params"],
    "vgg16": VGG16_Weights.IMAGENET1K_V1.meta["num_params"],
}
# Nobody publishes it: resnet18 without the second block of each stage, two convolutions and two batch norms.
PUBLISHED["resnet10"] = PUBLISHED["resnet18"] - sum(18 * width**2 + 4 * width for width in (64, 128, 256, 512))


def depth_of(encoder: str) -> str:
    return encoder.removeprefix("tv_").split("_")[0]


def width(encoder: str) -> int:
    """Channels of the last stage."""
    if "mobilenet" in encoder:
        return 320
    return 512 if encoder == "vgg16" or DEPTHS[depth_of(encoder)][0] is BasicBlock else 2048


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_output_stride(encoder):
    model = ENCODERS[encoder]().eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 64, 96))
    stride = int(encoder.split("dilated")[1]) if "dilated" in encoder else 32
    assert [f.shape[1] for f in features] == list(model.channels)
    assert features[-1].shape == (1, width(encoder), 64 // stride, 96 // stride)


@pytest.mark.slow
def test_torchvision_encoders_compute_what_torchvision_does():
    theirs = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    ours = ENCODERS["tv_resnet50_dilated8"]().eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    images = torch.randn(1, 3, 32, 48)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    with torch.no_grad():
        stages = theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4
        for stage, feature in zip(stages, ours(images), strict=True):
            x = stage(x)
            assert torch.allclose(feature, x, rtol=1e-4, atol=1e-5)

    theirs, ours = vgg16().eval(), ENCODERS["vgg16"]().eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k.startswith("features.")})
    with torch.no_grad():
        images = torch.randn(1, 3, 32, 64)
        assert torch.allclose(ours(images)[2], theirs.features[:17](images), atol=1e-5)
        assert torch.allclose(ours(images)[-1], theirs.features(images), atol=1e-5)


MOBILENET = ("mobilenet_v2", mobilenet_v2, ("features.3", "features.6", "features.13", "features.17"))
RESNET = ("tv_resnet34", resnet34, ("layer1", "layer2", "layer3", "layer4"))


@pytest.mark.parametrize(
    ("name", "published", "ends", "dilated"),
    [
        *((*MOBILENET, dilated) for dilated in ("_dilated8", "_dilated16")),
        *((*RESNET, dilated) for dilated in ("_dilated8", "_dilated16", "")),
    ],
)
def test_dilation_keeps_the_values_at_the_positions_of_the_undilated_network(name, published, ends, dilated):
    """Of torchvision's network at stride 32 with the same weights; batch norm with statistics that do something."""
    theirs, ours = published().eval(), ENCODERS[f"{name}{dilated}"]().eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in theirs.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    found = {}
    for end in ends:
        theirs.get_submodule(end).register_forward_hook(lambda m, i, output, end=end: found.setdefault(end, output))
    images = torch.randn(1, 3, 96, 161, generator=generator)
    with torch.no_grad():
        theirs(images)
        features = ours(images)
    for feature, stride, end, undilated in zip(features, ours.strides, ends, (4, 8, 16, 32), strict=True):
        step = undilated // stride
        assert torch.allclose(feature[:, :, ::step, ::step], found[end], rtol=1e-4, atol=1e-4), end
    assert ours.strides[-1] == int(dilated.removeprefix("_dilated") or 32) and ours.strides[0] == 4


def encoder_parameters(encoder: str) -> int:
    """Published count, less the classifier, with the three-convolution stem in place of the 7x7 one."""
    if encoder == "vgg16":
        return PUBLISHED[encoder] - (25088 * 4096 + 4096) - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)
    if encoder.startswith("mobilenet_v2"):
        return PUBLISHED["mobilenet_v2"] - (1280 * 1000 + 1000) - (320 * 1280 + 2 * 1280)
    depth = depth_of(encoder)
    plain = PUBLISHED[depth] - 1001 * width(encoder) + width(encoder) - 1000
    if encoder.startswith("tv_"):
        return plain
    stem = (27 * 64 + 128) + (576 * 64 + 128) + (576 * 128 + 256) - (147 * 64 + 128)
    # the first block has 128 inputs, not 64; a basic one gets a shortcut convolution for it
    first = 64 * 64 * 9 + 128 * 64 + 128 if DEPTHS[depth][0] is BasicBlock else 64 * 64 + 64 * 256
    return plain + stem + first


def head_parameters(decoder: str, fc_dim: int, classes: int) -> int:
    quarter = fc_dim // 4
    classifier = quarter * classes + classes
    conv4 = 96 if fc_dim == 320 else fc_dim // 2
    aux = conv4 * 9 * quarter + 2 * quarter + classifier
    if decoder == "ppm_bilinear":
        return 4 * (fc_dim * 512 + 1024) + (fc_dim + 2048) * 9 * 512 + 1024 + 512 * classes + classes + aux
    if decoder == "aspp":
        return 4 * (fc_dim * 9 * classes + classes) + aux
    if decoder == "fcn":
        return fc_dim * 9 * quarter + 2 * quarter + classifier + aux
    return 512 * 49 * 4096 + 4096 + 4096 * 4096 + 4096 + (4096 + 512 + 256) * classes + 3 * classes  # fcn8s


PAIRS = [(e, d) for e in ENCODERS if "dilated" in e for d in heads.HEADS if d != "fcn8s"]
PAIRS += [(e, "ppm_bilinear") for e in ENCODERS if "dilated" not in e and e != "vgg16"] + [("vgg16", "fcn8s")]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_parameter_counts(encoder, decoder):
    with torch.device("meta"):
        model = build_segmentor(encoder, decoder, 7, width(encoder), use_aux=decoder != "fcn8s")
    assert parameters(model.encoder) == encoder_parameters(encoder)
    assert parameters(model.decoder) == head_parameters(decoder, width(encoder), 7)
