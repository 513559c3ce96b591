"""Weights of the official code, of ImageNet and of this project are loaded completely or not at all."""

import hashlib
import math
import random
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50, vgg16

import train_source_only
from models import build_segmentor, heads
from models.batchnorm import BatchNorm2d, batch_norms, bn_updates
from models.segmentor import Segmentor
from models.weights import WeightsError, load_checkpoint_weights, load_encoder_decoder, read_checkpoint, read_file

TRIALS, PAGE = 60, 4096


class TinyEncoder(nn.Sequential):
    classifier = ("fc.weight", "fc.bias")

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, bias=False), BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), BatchNorm2d(4))


def tiny() -> Segmentor:
    return Segmentor(TinyEncoder(), nn.Conv2d(4, 5, 1), use_aux=False)


def distinct(module: nn.Module) -> dict[str, Tensor]:
    """Tensors with the module's names and shapes, all different."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(tensor.shape, generator=generator) for name, tensor in module.state_dict().items()}


def official(tensors: dict[str, Tensor], updates: int, prefix: str = "module.") -> dict[str, Tensor]:
    """The tensors in the form of the released code, with the running sums of every batch norm."""
    saved = dict(tensors)
    iteration = sum(0.999**k for k in range(updates + 1))
    for name in [n for n in tensors if n.endswith("running_mean")]:
        norm = name.removesuffix("running_mean")
        saved[f"{norm}_tmp_running_mean"] = tensors[name] * iteration
        saved[f"{norm}_tmp_running_var"] = tensors[f"{norm}running_var"] * iteration
        saved[f"{norm}_running_iter"] = torch.tensor([iteration], dtype=torch.float32)
    return {prefix + name: tensor for name, tensor in saved.items()}


def same(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


def test_official_pair_fills_the_whole_network(tmp_path):
    model = build_segmentor("resnet18_dilated8", "ppm_bilinear", 19, 512)
    encoder, decoder = distinct(model.encoder), distinct(model.decoder)
    torch.save(official(encoder, updates=700), tmp_path / "encoder.pth")
    old = official(decoder, updates=700, prefix="")
    torch.save(old, tmp_path / "decoder.pth", _use_new_zipfile_serialization=False)
    report = load_encoder_decoder(model, str(tmp_path / "encoder.pth"), str(tmp_path / "decoder.pth"))
    digest = hashlib.sha256((tmp_path / "decoder.pth").read_bytes()).hexdigest()
    assert report.splitlines() == [
        f"encoder: 115 of 115 tensors loaded from {tmp_path}/encoder.pth",
        f"decoder: 34 of 34 tensors loaded from {tmp_path}/decoder.pth",
        f"{tmp_path}/decoder.pth has no checksums (format of torch before 1.6), so damage is not detected. "
        f"Compare its SHA-256: {digest}",
    ]
    assert same(model.encoder, encoder) and same(model.decoder, decoder)


@pytest.mark.parametrize("updates", [0, 1, 50, 3000, 35_000])
def test_running_average_continues_the_official_one(tmp_path, updates):
    model = tiny()
    torch.save(official(distinct(model.encoder), updates), tmp_path / "encoder.pth")
    load_encoder_decoder(model, str(tmp_path / "encoder.pth"))
    found = set(bn_updates(model.encoder).values())
    assert found == {updates} if updates <= 3000 else all(count > 10_000 for count in found)
    norm = model.encoder[1].train()
    norm(torch.randn(2, 4, 3, 3))
    assert norm.current_momentum().item() == pytest.approx(0.001 / (1 - 0.999 ** (updates + 2)), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0.weight"), r"encoder\.pth .*1 missing: 0\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 unexpected: extra"),
        (lambda t: t.update({"fc.gain": torch.zeros(1)}), r"unexpected: fc\.gain"),
        (
            lambda t: t.update({"0.weight": torch.zeros(4, 3, 1, 1)}),
            r"0\.weight \(4, 3, 1, 1\) instead of \(4, 3, 3, 3\)",
        ),
        (lambda t: t.update({"0.weight": [1.0]}), r"0\.weight list instead of"),
        (lambda t: t.update({"1._running_iter": torch.ones(1)}), r"encoder\.pth has wrong content: .*different: 3"),
    ],
)
def test_every_difference_is_listed(tmp_path, change, message):
    model = tiny()
    tensors = distinct(model.encoder)
    change(tensors)
    torch.save(tensors, tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match=message):
        load_encoder_decoder(model, str(tmp_path / "encoder.pth"))


def test_imagenet_file_may_have_its_classifier_and_batch_counters(tmp_path):
    model = tiny()
    tensors = distinct(model.encoder)
    rest = {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10), "1.num_batches_tracked": torch.tensor(7)}
    torch.save(tensors | rest, tmp_path / "imagenet.pth")
    assert "encoder: 10 of 10 tensors" in load_encoder_decoder(model, str(tmp_path / "imagenet.pth"))
    assert same(model.encoder, tensors) and set(bn_updates(model).values()) == {0}
    with pytest.raises(WeightsError, match="is not a file of only the decoder"):  # a decoder may not have a classifier
        load_encoder_decoder(model, None, str(tmp_path / "imagenet.pth"))


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda t: {"state_dict": prefixed("module.", t), "epoch": 90}, ", state_dict"),
        (
            lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "loss": torch.ones(1)},
            ", model",
        ),
        (lambda t: {"model_state": prefixed("module.backbone.", t)}, ", model_state"),
        (lambda t: {"checkpoint": {"net": prefixed("encoder._orig_mod.", t)}}, ", checkpoint.net"),
        (lambda t: prefixed("_orig_mod.module.model.", t), ""),
        (lambda t: {name.replace(".", "._orig_mod."): tensor for name, tensor in t.items()}, ""),
        (lambda t: {"state_dict": prefixed("module.", t | {"fc.weight": torch.ones(10, 4)})}, ", state_dict"),
    ],
)
def test_encoder_of_another_code_base_is_read_where_it_fits(tmp_path, wrap, place):
    model = tiny()
    tensors = distinct(model.encoder)
    torch.save(wrap(tensors), tmp_path / "file.pth")
    report = load_encoder_decoder(model, str(tmp_path / "file.pth"))
    assert report == f"encoder: 10 of 10 tensors loaded from {tmp_path}/file.pth{place}"
    assert same(model.encoder, tensors)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda t: prefixed("backbone.", t) | {"head.weight": torch.ones(2)},
            r"other modules beside backbone\.",
        ),
        (lambda t: {"student": t, "teacher": t}, "several networks, student, teacher"),
        (lambda t: {"epoch": 90, "args": {"lr": 0.1}}, "it contains args, epoch"),
        (
            lambda t: {"model": prefixed("backbone.", t | {"extra": torch.ones(2)})},
            "file.pth, model does not fit .*1 unexp",
        ),
    ],
)
def test_error_for_a_file_without_an_encoder_says_what_it_is(tmp_path, wrap, message):
    model = tiny()
    torch.save(wrap(distinct(model.encoder)), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=message):
        load_encoder_decoder(model, str(tmp_path / "file.pth"))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_an_error_of_the_file(tmp_path, value):
    model, file = tiny(), tmp_path / "file.pth"
    tensors = distinct(model.encoder)
    tensors["2.weight"][1] = value
    torch.save(tensors, file)
    with pytest.raises(WeightsError, match=r"file\.pth contains NaN or infinity in 1 of 10 tensors: 2\.weight"):
        load_encoder_decoder(model, str(file))
    torch.save(distinct(model.encoder) | {"1._running_iter": torch.tensor(value)}, file)
    with pytest.raises(WeightsError, match=r"file\.pth has wrong content: .*_running_iter is"):
        load_encoder_decoder(model, str(file))


def test_damaged_file_that_torch_has_downloaded_is_named(tmp_path, monkeypatch):
    kept = tmp_path / "checkpoints" / Path(ResNet50_Weights.IMAGENET1K_V1.url).name
    kept.parent.mkdir()
    kept.write_bytes(b"PK\3\4 cut off")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=f"^{kept} is damaged.*delete it"):
        load_encoder_decoder(tiny(), "ResNet50_Weights.IMAGENET1K_V1")


@pytest.mark.slow
def test_torchvision_weights_by_name_and_by_file(tmp_path, monkeypatch):
    published = resnet50()
    for name, tensor in published.state_dict().items():
        tensor.copy_(torch.full_like(tensor, 0.5 + len(name) % 7))
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda weights, **options: published.state_dict())
    torch.save(published.state_dict(), tmp_path / "resnet50.pth")
    expected = {k: v for k, v in published.state_dict().items() if "num_batches" not in k and not k.startswith("fc.")}
    for origin in ("ResNet50_Weights.IMAGENET1K_V2", str(tmp_path / "resnet50.pth")):
        model = build_segmentor("tv_resnet50_dilated8", "fcn", 5)
        assert f"encoder: 265 of 265 tensors loaded from {origin}" == load_encoder_decoder(model, origin)
        assert same(model.encoder, expected)
    with pytest.raises(WeightsError, match=r"of another shape: conv1\.weight"):
        load_encoder_decoder(build_segmentor("resnet50_dilated8", "fcn", 5), "ResNet50_Weights.IMAGENET1K_V2")


def test_unknown_or_unreachable_torchvision_weights_are_explained(monkeypatch):
    for name in ("ResNet50_Weights.NEVER", "ResNet49_Weights.IMAGENET1K_V1"):
        with pytest.raises(WeightsError, match=f"{name} is neither a file nor the name of torchvision weights"):
            load_encoder_decoder(tiny(), name)

    def offline(weights, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", offline)
    with pytest.raises(WeightsError, match=r"cannot download https://.*pth: no route to host. Fetch it yourself"):
        load_encoder_decoder(tiny(), "ResNet50_Weights.IMAGENET1K_V1")


@pytest.mark.slow
def test_vgg_classifier_initialises_the_fully_connected_layers(tmp_path, monkeypatch):
    """As convolutions they give the result of torchvision's linear layers on a 7x7 map."""
    monkeypatch.setattr(heads, "FC_WIDTH", 8)
    published = vgg16(init_weights=False)
    published.classifier[0], published.classifier[3] = nn.Linear(512 * 7 * 7, 8), nn.Linear(8, 8)
    torch.save(published.state_dict(), tmp_path / "vgg16.pth")
    model = build_segmentor("vgg16", "fcn8s", 5, 512, use_aux=False).eval()
    report = load_encoder_decoder(model, str(tmp_path / "vgg16.pth"))
    assert "encoder: 26 of 26 tensors" in report and "fc7: 2 of 2 tensors" in report
    pool5 = torch.rand(2, 512, 7, 7)
    with torch.no_grad():
        expected = published.classifier.eval()[:4](pool5.flatten(1))
        found = model.decoder.fc7(model.decoder.fc6(pool5).relu())[..., 3, 3]
    assert torch.allclose(found, expected, atol=1e-5)


def test_checkpoint_brings_weights_and_update_counts(tmp_path):
    trained, model = tiny(), tiny()
    trained.encoder(torch.randn(2, 3, 6, 6))
    torch.save({"model": trained.state_dict(), "bn_updates": bn_updates(trained), "step": 3}, tmp_path / "last.pth")
    report = load_checkpoint_weights(model, read_checkpoint(tmp_path / "last.pth"), tmp_path / "last.pth")
    assert report == f"network: 12 of 12 tensors loaded from {tmp_path}/last.pth"
    assert same(model, trained.state_dict())
    assert bn_updates(model) == {"encoder.1": 1, "encoder.3": 1}


def test_files_in_the_wrong_place_say_where_they_belong(tmp_path):
    model, file = tiny(), tmp_path / "file.pth"
    torch.save(model.encoder.state_dict(), file)
    with pytest.raises(WeightsError, match=r"not a checkpoint of this project \(keys: 0\.weight.*weights_encoder"):
        read_checkpoint(file)
    torch.save({"model": model.state_dict(), "bn_updates": {"encoder.1": 1}}, file)
    with pytest.raises(WeightsError, match=r"file\.pth is a checkpoint of a whole network: set it as model\.weights"):
        load_encoder_decoder(model, str(file))
    with pytest.raises(WeightsError, match=r"file\.pth has wrong content: .*update counts .*different: encoder\.3"):
        load_checkpoint_weights(model, read_checkpoint(file), file)


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    file = tmp_path / "file.pth"
    with pytest.raises(WeightsError, match=r"no weights file .*file\.pth"):
        read_checkpoint(file)
    torch.save(distinct(tiny()), file)
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"<html>moved</html>", b"hello", b"\x80\x02}q"):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=r"file\.pth is damaged or not a file of tensors"):
            read_checkpoint(file)
    file.write_bytes(whole.replace(b"weight", b"weighs", 1))
    with pytest.raises(WeightsError, match=r"file\.pth is damaged, the checksum of .*data\.pkl does not match"):
        read_checkpoint(file)
    torch.save({"model": distinct(tiny()), "args": Namespace(lr=1)}, file)
    with pytest.raises(WeightsError, match=r"it contains a argparse\.Namespace.*save only tensors"):
        read_checkpoint(file)
    torch.save([1, 2], file)
    with pytest.raises(WeightsError, match=r"file\.pth contains a list"):
        read_checkpoint(file)


@pytest.mark.parametrize("how", ["bit", "page"])
def test_damage_anywhere_in_a_file_gives_the_right_values_or_an_error(tmp_path, how):
    """torch itself loads changed tensors without a warning."""
    file, whole, refused = tmp_path / "file.pth", {"values": torch.rand(30_000) + 1}, 0
    torch.save(whole, file)
    content, rng = file.read_bytes(), random.Random(0)
    for _ in range(TRIALS):
        damaged, at = bytearray(content), rng.randrange(len(content))
        if how == "bit":
            damaged[at] ^= 1 << rng.randrange(8)
        else:
            damaged[at : at + PAGE] = bytes(len(damaged[at : at + PAGE]))
        file.write_bytes(damaged)
        try:
            assert torch.equal(read_file(file)["values"], whole["values"])
        except WeightsError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused >= TRIALS * 0.95  # a bit between the tensors changes nothing


@pytest.mark.slow
def test_a_whole_network_is_not_overwritten_by_an_imagenet_encoder(command, source_run, tmp_path):
    """The configuration inherits weights_encoder from its base and sets model.weights itself."""
    keys = command(tmp_path, "run", f"model.weights={source_run}", "model.weights_encoder=imagenet.pth")
    train_source_only.main([*keys, "train.num_steps=1", "train.lr_encoder=0", "train.lr_decoder=0"])
    start, end = (
        torch.load(folder / "last.pth", weights_only=True)["model"] for folder in (source_run, tmp_path / "run")
    )
    assert all(torch.equal(start[name], end[name]) for name in start if "running_" not in name)
    line = "not loaded, because model.weights is the whole network: imagenet.pth"
    assert line in (tmp_path / "run/log.txt").read_text()


def test_official_counter_formula():
    """The helper above counts like the batch norm of models/batchnorm.py: momentum 1 / counter."""
    model = tiny()
    for _, norm in batch_norms(model):
        norm(torch.randn(2, 4, 3, 3))
    counter = official(distinct(model.encoder), updates=1)["module.1._running_iter"].item()
    assert math.isclose(model.encoder[1].current_momentum(), 1 / counter, rel_tol=1e-6)
