"""Networks compared with numbers of the released code; edge cases."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_segmentor, heads
from models.batchnorm import batch_norms, bn_updates, configure_batchnorm
from models.segmentor import ENCODERS, Segmentor, parameter_groups, set_dropout
from tests.golden import reference

CASES = json.loads((Path(reference.__file__).parent / "models.json").read_text())["cases"]
# Number of tensors and SHA-256 of the sorted lines "key shape" of the official state dicts without running sums.
OFFICIAL_KEYS = {
    "resnet18_dilated8.encoder": (115, "0c1563205ec0069c0058d127647540fa52c45aa680329428e3594d187da7f76f"),
    "resnet18_dilated8.decoder": (34, "eeb6c75a48f2beec0dfc4c565e7f7d93b0e2c358572fef25094940bb396ed54e"),
    "resnet101_dilated8.encoder": (530, "422dad77e6b1aef8fc40716db5087e2ea335cdc8c23fb3a6b0a2a8a4aa1a6efc"),
    "resnet101_dilated8.decoder": (34, "81dad797107c3b7d5b810cffbd37c710dfb58d92ff8bd79044b2fc5ca55f56c5"),
}


def width(encoder: str) -> int:
    """Channels of the last stage."""
    return ENCODERS[encoder]().channels[-1]


def small(decoder: str = "fcn", use_aux: bool = True) -> Segmentor:
    """The smallest network of five classes."""
    return build_segmentor("resnet18_dilated16", decoder, 5, 512, use_aux)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["spec"]["encoder"])
def test_network_gives_the_numbers_of_the_released_code(case, device):
    spec, expected = case["spec"], case["expected"]
    model = build_segmentor(spec["encoder"], spec["decoder"], spec["classes"], spec["fc_dim"]).to(device)
    set_dropout(model, 0.0)
    configure_batchnorm(model, momentum=0.001, bias_correction=False)
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(reference.weights(name, tuple(tensor.shape))))
    shape = spec["n"], spec["h"], spec["w"]
    images = torch.from_numpy(reference.image(spec["image"], *shape)).to(device)
    label = torch.from_numpy(reference.labels(spec["image"], *shape, spec["classes"])).to(device)

    with torch.no_grad():
        coarse = model.eval().stride_logits(images)
        logits = F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=spec["align_corners"])
    n, C, h, w = logits.shape
    assert logits.mean().item() == pytest.approx(expected["eval_mean"], rel=1e-4, abs=1e-6)
    assert logits.std().item() == pytest.approx(expected["eval_std"], rel=1e-4)
    probes = [logits[i % n, 7 * i % C, 13 * i % h, 29 * i % w].item() for i in range(len(expected["eval_probe"]))]
    assert probes == pytest.approx(expected["eval_probe"], rel=1e-4, abs=1e-5)
    assert logits.argmax(1).flatten().bincount(minlength=C).tolist() == expected["eval_argmax_hist"]

    outputs = model.double().train()(images.double())
    main, aux = (F.cross_entropy(outputs[key], label, ignore_index=255) for key in ("logits", "aux"))
    (main + 0.4 * aux).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert main.item() == pytest.approx(expected["train_loss_main"], rel=1e-4)
    assert aux.item() == pytest.approx(expected["train_loss_aux"], rel=1e-4)
    # The released number is from float32: in the deep network, a change of the input by 1e-7 changes it by up to 1 %.
    # Ours is from float64, and no number of threads changes it. test_trajectory.py compares whole gradients to 1e-8.
    assert norm == pytest.approx(expected["train_grad_norm"], rel=1e-2 if "101" in spec["encoder"] else 1e-4)
    running_mean = model.encoder.bn1.running_mean[:4].tolist()
    assert running_mean == pytest.approx(expected["bn1_running_mean_after_one_step"], rel=1e-4)


@pytest.mark.parametrize("name", OFFICIAL_KEYS)
def test_state_dict_keys_are_the_official_ones(name):
    encoder, part = name.split(".")
    with torch.device("meta"):
        model = build_segmentor(encoder, "ppm_bilinear", 19)
    lines = sorted(f"{k} {'x'.join(map(str, v.shape))}" for k, v in getattr(model, part).state_dict().items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == OFFICIAL_KEYS[name]


TRAINED = [
    ("resnet18_dilated8", "ppm_bilinear"),
    ("resnet50_dilated16", "aspp"),
    ("tv_resnet18_dilated16", "fcn"),
    ("vgg16", "fcn8s"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "decoder"), TRAINED)
def test_few_steps_of_training_fit_a_batch(encoder, decoder, monkeypatch):
    monkeypatch.setattr(heads, "FC_WIDTH", 64)
    torch.manual_seed(0)
    model = build_segmentor(encoder, decoder, 5, width(encoder), use_aux=decoder != "fcn8s")
    set_dropout(model, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(parameter_groups(model, 3e-4, 5e-4), momentum=0.9)
    images, label = torch.randn(2, 3, 40, 56), torch.randint(5, (2, 40, 56))
    label[:, :20] = 3
    losses = []
    for _ in range(3):
        outputs = model(images)
        loss = sum(F.cross_entropy(logits, label) for logits in outputs.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for p, start in zip(model.parameters(), before, strict=True):
        assert p.isfinite().all() and not torch.equal(p, start)


def test_aspp_is_the_sum_of_four_dilated_classifiers():
    model = small("aspp").eval()
    features = torch.randn(2, 512, 9, 7)
    with torch.no_grad():
        weights = [(b.weight, b.bias, rate) for b, rate in zip(model.decoder.branches, (6, 12, 18, 24), strict=True)]
        expected = sum(F.conv2d(features, w, b, padding=r, dilation=r) for w, b, r in weights)
        assert torch.allclose(model.decoder((features,)), expected, atol=1e-5)


def test_fcn8s_adds_the_scores_of_pool4_and_pool3(monkeypatch):
    monkeypatch.setattr(heads, "FC_WIDTH", 16)
    model = build_segmentor("vgg16", "fcn8s", 5, 512, use_aux=False).eval()
    images = torch.randn(1, 3, 50, 70)  # no multiple of any stride
    head = model.decoder
    with torch.no_grad():
        assert model(images)["logits"].shape == (1, 5, 50, 70) and not model(images)["logits"].any()
        for score in (head.score_fr, head.score_pool4, head.score_pool3):
            nn.init.normal_(score.weight)
        pool3, pool4, pool5 = model.encoder(images)[-3:]
        deep = head.score_fr(head.fc7(head.fc6(pool5).relu()).relu())
        up = {"mode": "bilinear", "align_corners": False}
        expected = F.interpolate(deep, pool4.shape[-2:], **up) + head.score_pool4(pool4)
        expected = F.interpolate(expected, pool3.shape[-2:], **up) + head.score_pool3(pool3)
        assert torch.allclose(head((pool3, pool4, pool5)), expected)


def test_initial_weights():
    model = build_segmentor("resnet50_dilated16", "ppm_bilinear", 5)
    encoder, head = model.encoder.layer3[1].conv1.weight, model.decoder.conv_last[0].weight  # 1024 -> 256, 4096 -> 512
    assert encoder.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert head.std().item() == pytest.approx((2 / (4096 * 9)) ** 0.5, rel=0.02)
    assert all((norm.weight == 1).all() for _, norm in batch_norms(model))
    assert all((norm.bias == 1e-4).all() for _, norm in batch_norms(model.decoder))


@pytest.mark.parametrize("decoder", ["ppm_bilinear", "aspp", "fcn"])
def test_auxiliary_logits_only_where_wanted(decoder):
    model, images = small(decoder), torch.randn(2, 3, 32, 32)
    assert set(model(images)) == {"logits", "aux"}
    before = bn_updates(model)
    assert set(model(images, aux=False)) == {"logits"}
    assert bn_updates(model)["decoder.cbr_deepsup.1"] == before["decoder.cbr_deepsup.1"]  # not computed at all
    assert set(model.eval()(images)) == {"logits"}
    without = small(decoder, use_aux=False)
    assert set(without(images)) == {"logits"}
    with pytest.raises(ValueError, match="use_aux=False"):
        without(images, aux=True)


def test_logits_come_from_the_network_stride_in_float32():
    model = small().eval()
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        coarse = model.decoder(model.encoder(images))
        assert torch.equal(model.stride_logits(images), coarse)
        assert torch.equal(
            model(images)["logits"], F.interpolate(coarse, (32, 64), mode="bilinear", align_corners=False)
        )
        with torch.autocast("cpu", torch.bfloat16):  # the network is in half precision, its upsampling is not
            half, logits = model.stride_logits(images), model(images)["logits"]
    assert half.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert torch.equal(logits, F.interpolate(half.float(), (32, 64), mode="bilinear", align_corners=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet19_dilated8", "fcn"), r"nearest is 'resnet1.*_dilated8'.*vgg16"),
        (("resnet18_dilated8", "ppm"), "choose one of ppm_bilinear, aspp, fcn, fcn8s"),
        (("resnet18_dilated8", "fcn", 19, 2048), "has 512 output channels"),
        (("tv_resnet101_dilated8", "fcn", 19, 512), "has 2048 output channels"),
        (("vgg16", "fcn8s", 19, 2048, False), "has 512 output channels"),
        (("vgg16", "fcn8s", 19, 512), "no auxiliary head: set model.use_aux to false"),
        (("vgg16", "aspp", 19, 512), "needs an encoder dilated to stride 8 or 16"),
        (
            ("resnet18_dilated8", "fcn8s", 19, 512, False),
            "needs an encoder with stages of stride 2, 4, 8, 16 and 32",
        ),
        (("resnet18", "fcn8s", 19, 512, False), "needs an encoder with stages of stride 2, 4, 8, 16 and 32"),
        (("resnet18", "fcn"), "needs an encoder dilated to stride 8 or 16"),
        (
            ("vgg16", "ppm_bilinear", 19, 512),
            "dilated to stride 8 or 16, or one with stages of stride 4, 8, 16 and 32",
        ),
    ],
)
def test_wrong_names_and_sizes_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_segmentor(*arguments)


def test_pyramid_pooling_of_one_image_asks_for_a_larger_batch():
    with pytest.raises(ValueError, match=r"\(1, 512, 1, 1\): raise the batch size"):
        small("ppm_bilinear")(torch.randn(1, 3, 32, 32))


def test_dropout_can_be_set():
    model, images = small(), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images)["logits"], model(images)["logits"])
    set_dropout(model, 0.0)
    assert torch.equal(model(images)["logits"], model(images)["logits"])


def test_weight_decay_is_on_convolution_weights_only():
    model = small("aspp")
    decayed, free = parameter_groups(model, 0.1, 5e-4)
    convolutions = {m.weight for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert set(decayed["params"]) == convolutions and decayed["weight_decay"] == 5e-4
    assert set(free["params"]) == set(model.parameters()) - convolutions and free["weight_decay"] == 0
