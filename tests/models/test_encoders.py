"""Every entry of ENCODERS: features, training and recomputation; same values as torchvision's networks."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model, list_models, mobilenet_v2, resnet34, resnet50, vgg16

from models import heads
from models.batchnorm import bn_updates
from models.resnet import DEPTHS
from models.segmentor import ENCODERS, Segmentor, set_dropout

# ResNets of other depths and dilations repeat the blocks of these.
RESNETS = {"resnet10", "resnet18_dilated8", "resnet50_dilated16", "tv_resnet18_dilated16", "tv_resnet50"}
NAMES = [name for name in ENCODERS if name in RESNETS or not name.removeprefix("tv_").startswith("resnet")]
# Entries that have an unchanged network of torchvision. ResNets without "tv_" have another stem.
PUBLISHED = [name for name in ENCODERS if name.removeprefix("tv_") in list_models() and name not in DEPTHS]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if "num_batches" not in key}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_is_the_same_with_and_without_recomputation(name):
    """Loss, gradients and statistics of a step."""
    images, label, results = torch.randn(2, 3, 32, 64), torch.randint(5, (2, 32, 64)), []
    encoder = ENCODERS[name]()
    plain = Segmentor(encoder, heads.FCN(encoder.channels, 5, True), True)
    set_dropout(plain, 0.0)
    saving = copy.deepcopy(plain)
    saving.checkpoint_encoder = True
    for model in (plain, saving):
        torch.manual_seed(0)
        loss = sum(F.cross_entropy(logits, label) for logits in model(images).values())
        loss.backward()
        gradients = {key: p.grad for key, p in model.named_parameters()}
        results.append({"loss": loss} | gradients | dict(model.named_buffers()))
        assert set(bn_updates(model).values()) == {1}
        assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]  # torch's class; ours is another one
    assert results[0].keys() == results[1].keys()
    assert not [key for key, value in results[0].items() if not torch.allclose(value, results[1][key], 1e-4, 1e-6)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENCODERS if "34" not in name and "101" not in name])
def test_features_are_as_they_are_said_to_be(name):
    with torch.device("cpu" if "regnet" in name else "meta"):  # which makes its widths by tensors
        features = (encoder := ENCODERS[name]().eval())(torch.zeros(1, 3, 64, 96))
    expected = [(c, 64 // s, 96 // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)]
    assert [feature.shape[1:] for feature in features] == expected
    assert "dilated" not in name or encoder.strides[-1] == int(name.split("dilated")[1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_the_encoder_and_the_classifier(name):
    encoder = ENCODERS[name]()
    with torch.device("cpu" if "regnet" in name else "meta"):  # it computes its widths with tensors
        theirs = shapes(get_model(name.removeprefix("tv_"), weights=None))
    assert set(encoder.classifier) <= theirs.keys()
    assert shapes(encoder) == {key: shape for key, shape in theirs.items() if key not in encoder.classifier}


@pytest.mark.parametrize("stem", ["", "tv_"])
@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])  # both kinds of blocks
def test_resnets_have_the_same_tensors_dilated_or_not_and_another_stem(depth, stem):
    """On the meta device, which has only shapes."""
    with torch.device("meta"):
        plain, torchvisions = ENCODERS[f"{stem}{depth}"](), ENCODERS[f"tv_{depth}"]()
        for dilated in ("_dilated8", "_dilated16"):
            other = ENCODERS[f"{stem}{depth}{dilated}"]()
            assert shapes(other) == shapes(plain) and other.channels == plain.channels
    behind_the_stem = re.compile(r"layer(?!1\.0)")
    found, expected = (
        {key: shape for key, shape in shapes(encoder).items() if behind_the_stem.match(key)}
        for encoder in (plain, torchvisions)
    )
    assert found == expected and plain.strides == (4, 8, 16, 32)


def test_smallest_resnet_has_the_first_block_of_each_stage():
    small, larger = (shapes(ENCODERS[name]()) for name in ("resnet10", "resnet18"))
    assert small == {key: shape for key, shape in larger.items() if not re.match(r"layer\d\.1", key)}


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

    ours = ENCODERS["vgg16"]().eval()
    with torch.device("meta"):
        theirs = vgg16().eval()  # the classifier has ten times more weights
    theirs.features.load_state_dict({k.removeprefix("features."): v for k, v in ours.state_dict().items()}, assign=True)
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
    """Compared with torchvision's network at stride 32 with the same weights; batch norm has nontrivial statistics."""
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


@pytest.mark.parametrize("channels", [(64, 128, 256, 512), (24, 32, 96, 320)])
@pytest.mark.parametrize("decoder", heads.HEADS)
def test_parameters_of_heads(decoder, channels):
    classes, conv3, conv4, fc_dim = 7, *channels[1:]
    quarter = fc_dim // 4
    classifier = quarter * classes + classes
    expected = {
        "ppm_bilinear": 4 * (fc_dim * 512 + 1024) + (fc_dim + 2048) * 9 * 512 + 1024 + 512 * classes + classes,
        "aspp": 4 * (fc_dim * 9 * classes + classes),
        "fcn": fc_dim * 9 * quarter + 2 * quarter + classifier,
        "fcn8s": fc_dim * 49 * 4096 + 4096 + 4096 * 4096 + 4096 + (4096 + conv4 + conv3) * classes + 3 * classes,
    }
    aux = conv4 * 9 * quarter + 2 * quarter + classifier
    use_aux = decoder != "fcn8s"
    with torch.device("meta"):
        head = heads.HEADS[decoder](channels, classes, use_aux)
    assert parameters(head) == expected[decoder] + use_aux * aux
