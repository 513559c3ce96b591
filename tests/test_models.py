"""Networks against numbers of the released code, and their behaviour at the edges."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_segmentor
from models.batchnorm import configure_batchnorm
from models.segmentor import ENCODERS, parameter_groups
from tests import reference

CASES = json.loads((Path(__file__).parent / "golden_models.json").read_text())["cases"]
# Number of tensors and SHA-256 of the sorted lines "key shape" of the official state dicts without running sums.
OFFICIAL_KEYS = {
    "resnet18_dilated8.encoder": (115, "0c1563205ec0069c0058d127647540fa52c45aa680329428e3594d187da7f76f"),
    "resnet18_dilated8.decoder": (34, "eeb6c75a48f2beec0dfc4c565e7f7d93b0e2c358572fef25094940bb396ed54e"),
    "resnet101_dilated8.encoder": (530, "422dad77e6b1aef8fc40716db5087e2ea335cdc8c23fb3a6b0a2a8a4aa1a6efc"),
    "resnet101_dilated8.decoder": (34, "81dad797107c3b7d5b810cffbd37c710dfb58d92ff8bd79044b2fc5ca55f56c5"),
}


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["spec"]["encoder"])
def test_network_gives_the_numbers_of_the_released_code(case):
    spec, expected = case["spec"], case["expected"]
    model = without_dropout(build_segmentor(spec["encoder"], spec["decoder"], spec["classes"], spec["fc_dim"]))
    configure_batchnorm(model, momentum=0.001, bias_correction=False)
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(reference.weights(name, tuple(tensor.shape))))
    shape = spec["n"], spec["h"], spec["w"]
    images = torch.from_numpy(reference.image(spec["image"], *shape))
    label = torch.from_numpy(reference.labels(spec["image"], *shape, spec["classes"]))

    with torch.no_grad():
        logits = model.eval()(images, align_corners=spec["align_corners"])["logits"]
    n, C, h, w = logits.shape
    assert logits.mean().item() == pytest.approx(expected["eval_mean"], rel=1e-4, abs=1e-6)
    assert logits.std().item() == pytest.approx(expected["eval_std"], rel=1e-4)
    probes = [logits[i % n, 7 * i % C, 13 * i % h, 29 * i % w].item() for i in range(len(expected["eval_probe"]))]
    assert probes == pytest.approx(expected["eval_probe"], rel=1e-4, abs=1e-5)
    assert logits.argmax(1).flatten().bincount(minlength=C).tolist() == expected["eval_argmax_hist"]

    outputs = model.train()(images)
    main, aux = (F.cross_entropy(outputs[key], label, ignore_index=255) for key in ("logits", "aux"))
    (main + 0.4 * aux).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert main.item() == pytest.approx(expected["train_loss_main"], rel=1e-4)
    assert aux.item() == pytest.approx(expected["train_loss_aux"], rel=1e-4)
    assert norm == pytest.approx(expected["train_grad_norm"], rel=1e-3)
    running_mean = model.encoder.bn1.running_mean[:4].tolist()
    assert running_mean == pytest.approx(expected["bn1_running_mean_after_one_step"], rel=1e-4)


@pytest.mark.parametrize("name", OFFICIAL_KEYS)
def test_state_dict_keys_are_the_official_ones(name):
    encoder, part = name.split(".")
    model = build_segmentor(encoder, "ppm_bilinear", 19, 512 if "18" in encoder else 2048)
    lines = sorted(f"{k} {'x'.join(map(str, v.shape))}" for k, v in getattr(model, part).state_dict().items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == OFFICIAL_KEYS[name]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_output_stride(encoder):
    channels = 512 if "18" in encoder else 2048
    model = build_segmentor(encoder, "ppm_bilinear", 5, channels).eval()
    with torch.no_grad():
        features = model.encoder(torch.zeros(1, 3, 64, 96))
    stride = int(encoder.split("dilated")[1])
    assert [f.shape[1] for f in features] == list(model.encoder.channels)
    assert features[-1].shape[-2:] == (64 // stride, 96 // stride)


def test_auxiliary_logits_only_where_wanted():
    model = build_segmentor("resnet18_dilated16", "ppm_bilinear", 5, 512)
    images = torch.randn(2, 3, 32, 32)
    assert set(model(images)) == {"logits", "aux"}
    assert set(model(images, aux=False)) == {"logits"}
    assert set(model.eval()(images)) == {"logits"}
    assert set(build_segmentor("resnet18_dilated16", "ppm_bilinear", 5, 512, use_aux=False)(images)) == {"logits"}


def test_logits_at_another_size_come_straight_from_the_network_stride():
    model = build_segmentor("resnet18_dilated16", "ppm_bilinear", 5, 512).eval()
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        small = model.decoder(model.encoder(images))
        large = model(images, size=(70, 130), align_corners=True)["logits"]
    assert torch.allclose(large, F.interpolate(small, (70, 130), mode="bilinear", align_corners=True))
    assert torch.allclose(large[..., 0, 0], small[..., 0, 0], atol=1e-6)  # corners are aligned


def test_wrong_names_and_sizes_are_explained():
    with pytest.raises(ValueError, match="resnet18_dilated8"):
        build_segmentor("resnet19_dilated8", "ppm_bilinear")
    with pytest.raises(ValueError, match="ppm_bilinear"):
        build_segmentor("resnet18_dilated8", "ppm")
    with pytest.raises(ValueError, match="ends with 512"):
        build_segmentor("resnet18_dilated8", "ppm_bilinear", fc_dim=2048)


def test_weight_decay_is_on_convolution_weights_only():
    model = build_segmentor("resnet18_dilated16", "ppm_bilinear", 5, 512)
    decayed, free = parameter_groups(model, 0.1, 5e-4)
    convolutions = {m.weight for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert set(decayed["params"]) == convolutions and decayed["weight_decay"] == 5e-4
    assert set(free["params"]) == set(model.parameters()) - convolutions and free["weight_decay"] == 0
