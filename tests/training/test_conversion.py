"""Batch-norm conversion: the released running average up to rounding, and the keys of a released YAML file."""

import shutil

import pytest
import torch
from PIL import Image
from torch import Tensor

import test_adabn as convert
from models import build_segmentor
from models.batchnorm import BatchNorm2d, batch_norms, set_bn_updates
from utils.engine.convert import convert_statistics

MOMENTUM, UPDATE, BATCHES = 0.001, 35000, 4


def test_ema_continues_from_the_checkpoint_like_the_released_code(monkeypatch):
    """Released running sums: ``sum = (1 - m) sum + batch``, the same for the counter; the average is sum / counter."""
    model = build_segmentor("resnet18_dilated16", "fcn", 5).double()
    generator = torch.Generator().manual_seed(0)
    for _, module in batch_norms(model):
        module.running_mean.normal_(generator=generator)
        module.running_var.uniform_(0.5, 1.5, generator=generator)
    set_bn_updates(model, dict.fromkeys(dict(batch_norms(model)), UPDATE))
    counter = sum((1 - MOMENTUM) ** k for k in range(UPDATE + 1))
    sums = {name: [module.running_mean * counter, module.running_var * counter] for name, module in batch_norms(model)}
    counters, seen = dict.fromkeys(sums, counter), {}

    def count(name: str, module: BatchNorm2d, inputs: tuple[Tensor]) -> None:
        var, mean = torch.var_mean(inputs[0].detach(), (0, 2, 3))  # unbiased variance
        sums[name] = [(1 - MOMENTUM) * total + batch for total, batch in zip(sums[name], (mean, var), strict=True)]
        counters[name] = (1 - MOMENTUM) * counters[name] + 1
        seen[name] = module

    for name, module in batch_norms(model):
        module.register_forward_pre_hook(lambda m, i, name=name: count(name, m, i))
    images = torch.randn(BATCHES, 2, 3, 32, 48, generator=generator, dtype=torch.float64)
    convert_statistics(model, [[{"image": batch} for batch in images]], "ema", torch.device("cpu"))
    assert len(seen) > 15
    for name, module in seen.items():
        for statistic, total in zip((module.running_mean, module.running_var), sums[name], strict=True):
            assert torch.allclose(statistic, total / counters[name], rtol=1e-10, atol=1e-12), name
        assert module.updates == UPDATE + BATCHES


def test_conversion_by_steps_scores_on_the_way(command, source_run, tmp_path):
    keys = [
        "adabn.mode=ema",
        "adabn.images=crops",
        "adabn.scale=[0.5, 1.5]",
        "adabn.num_steps=4",
        "adabn.score_every=2",
    ]
    convert.main(command(tmp_path, "ema", f"adabn.weights={source_run}", "adabn.batch_size=2", *keys))
    log = (tmp_path / "ema/log.txt").read_text()
    assert [f"after {n} forward passes" in log for n in range(1, 6)] == [False, True, False, True, False]
    updates = [
        torch.load(path, weights_only=True)["bn_updates"]
        for path in (source_run / "best.pth", tmp_path / "ema/adabn.pth")
    ]
    assert {after - before for before, after in zip(*(u.values() for u in updates), strict=True)} == {4}


def test_trained_run_is_preferred_to_the_pair_that_it_started_from(command, source_run, tmp_path):
    shutil.copytree(source_run, tmp_path / "run")
    pair = [f"model.weights_{part}={tmp_path}/{part}.pth" for part in ("encoder", "decoder")]  # these files are missing
    convert.main(command(tmp_path, "run", *pair, "adabn.batch_size=2"))
    assert f"to convert {tmp_path}/encoder.pth and" in (tmp_path / "run/log.txt").read_text()
    assert (tmp_path / "run/adabn.pth").is_file() and not (tmp_path / "run/adabn_encoder.pth").exists()


def test_images_of_several_sizes_are_converted_one_at_a_time(command, city, source_run, tmp_path):
    shutil.copytree(city / "cityscapes", tmp_path / "data")
    for path in (tmp_path / "data").glob("*/train/*/*_000002_*.png"):
        with Image.open(path) as picture:
            picture.resize((128, 96), Image.Resampling.NEAREST).save(path)
    found = []
    for size in (1, 2):
        keys = [f"target.data_dir={tmp_path}/data", "val.held_out=0", f"adabn.batch_size={size}"]
        convert.main(command(tmp_path, str(size), *keys, f"adabn.weights={source_run}"))
        found.append(torch.load(tmp_path / str(size) / "adabn.pth", weights_only=True)["model"])
        log = (tmp_path / f"{size}/log.txt").read_text()
        assert ("target images have several sizes: adabn runs them one at a time" in log) == (size > 1)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
def test_scores_on_the_way_leave_the_exact_average_alone(command, source_run, tmp_path):
    found = []
    for name, keys in (("plain", []), ("scored", ["adabn.score_every=2"])):
        convert.main(command(tmp_path, name, f"adabn.weights={source_run}", "adabn.batch_size=2", *keys))
        found.append(torch.load(tmp_path / name / "adabn.pth", weights_only=True)["model"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
def test_conversion_without_test_labels_saves_the_same_file(command, city, source_run, tmp_path):
    shutil.copytree(city / "cityscapes/leftImg8bit", tmp_path / "data/leftImg8bit")
    (tmp_path / "data/leftImg8bit/val").rename(tmp_path / "val")
    keys = [f"adabn.weights={source_run}", "adabn.batch_size=2", "val.held_out=0"]
    convert.main(command(tmp_path, "scored", *keys))
    for name, unlabelled in (("without", False), ("unlabelled", True)):
        if unlabelled:
            (tmp_path / "val").rename(tmp_path / "data/leftImg8bit/val")
        convert.main(command(tmp_path, name, *keys, f"target.data_dir={tmp_path}/data"))
        log = (tmp_path / name / "log.txt").read_text()
        assert "without scores" in log and "before conversion" not in log
    files = [tmp_path / run / "adabn.pth" for run in ("scored", "without", "unlabelled")]
    found = [torch.load(file, weights_only=True)["model"] for file in files]
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])
