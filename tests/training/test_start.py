"""Errors of the first validation or save are reported before the first step; the trial leaves no trace."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import test_adabn as convert
import train_pycda
import train_source_only
from dataset.folders import Sample, find_samples, hold_out
from dataset.messages import UserError
from models.segmentor import Segmentor
from utils.engine import convert as conversion
from utils.engine import experiment, start
from utils.engine.trainer import Trainer
from utils.engine.validation import Validation
from utils.scoring import predictions

PPM = "model.decoder=ppm_bilinear"
WHOLE = ["source.crop_size=null", "target.crop_size=null"]


@pytest.fixture
def own_city(city: Path, tmp_path: Path) -> Path:
    shutil.copytree(city, tmp_path / "city")
    return tmp_path / "city"


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Trainer) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr(Trainer, "step", step)


def of(city: Path) -> list[str]:
    return [f"source.data_dir={city}/gtav", f"target.data_dir={city}/cityscapes"]


def held_out(city: Path) -> list[Sample]:
    """The held-out images of ``val.held_out=3``."""
    return hold_out(find_samples("cityscapes", city / "cityscapes"), 3, 0)[1]


def refused(main: Callable, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)


KEYS = {
    "test.input_size=[1, 1]": r"test.input_size is \[1, 1\] .* each side must be at least",
    "source.crop_size=[64, 8]": r"source.crop_size is \[64, 8\] .* at least 16",
    "train.iter_size=3": "2 images of a process are not divisible by train.iter_size=3",
    f"train.iter_size=2; {PPM}": "train.batch_size / train.iter_size gives one image",
    "source.crop_size=null; source.scale=[0.5, 1.5]": "a random scale of .* set crop_size",
    "train.cache_dir=/dev/null/cache": "train.cache_dir: cannot write into /dev/null/cache",
}


@pytest.mark.parametrize(("keys", "message"), KEYS.items())
def test_impossible_keys(command, tmp_path, no_step, keys, message):
    refused(train_source_only.main, command(tmp_path / "runs", "run", *keys.split("; ")), message)
    assert not (tmp_path / "runs").exists()


def test_squares_fit_into_whole_images(command, source_run, tmp_path, no_step):
    keys = [*WHOLE, f"model.weights={source_run}", "curriculum.box_size=[80]"]
    refused(train_pycda.main, command(tmp_path, "run", *keys), r"box_size is \[80\], .* images of \(96, 64\)")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def shrink(path: Path) -> None:
    Image.open(path).crop((0, 0, 95, 64)).save(path)


def undefine(path: Path) -> None:
    Image.fromarray(np.full((64, 96), 99, np.uint8)).save(path)


DAMAGES = {
    "label cut off": (truncate, "label", 2, "cannot read picture .*labelIds.png"),
    "image cut off": (truncate, "image", 2, "cannot read picture .*leftImg8bit.png"),
    "label of another size": (shrink, "label", 2, "is 96x64, its label .* 95x64"),
    "ids that are none": (undefine, "label", 0, "has ids that cityscapes does not define: 99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_held_out_files_that_cannot_be_scored(command, own_city, tmp_path, no_step, damage):
    spoil, what, number, message = DAMAGES[damage]
    spoil(getattr(held_out(own_city)[number], what))
    refused(train_source_only.main, command(tmp_path, "run", *of(own_city)), message)


@pytest.mark.slow
def test_turned_pair_is_no_error(command, own_city, tmp_path):
    """The stored sizes differ, the upright sizes are equal."""
    sample = held_out(own_city)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(sample.image).transpose(Image.Transpose.ROTATE_90).save(sample.image, exif=exif)
    train_source_only.main(command(tmp_path, "run", *of(own_city), "test.input_size=[96, 64]"))


def test_network_that_cannot_be_validated(command, tmp_path, monkeypatch, no_step):
    def fail(self: Segmentor, images: torch.Tensor) -> None:
        raise RuntimeError("sizes\ndo not match")

    monkeypatch.setattr(Segmentor, "stride_logits", fail)
    message = r"the validation will fail: held-out image .* at test.input_size \(80, 48\): sizes do not match"
    refused(train_source_only.main, command(tmp_path, "run", "test.input_size=[80, 48]"), message)


def test_smallest_and_largest_image_are_tried(city):
    samples = held_out(city)
    assert start.extremes(samples, [((96, 64), 2), ((96, 64), 0), ((96, 64), 1)]) == samples[:1]
    assert start.extremes(samples, [((9, 9), 2), ((96, 64), 0), ((8, 9), 1)]) == [samples[1], samples[0]]


@pytest.mark.slow
def test_disk_without_room_for_a_checkpoint(command, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    sizes = [1e6, 100e6]  # network and momentum take 25 MB each
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(sizes[0]))
    refused(train_source_only.main, command(tmp_path, "run"), "0.00 GB are free in .*run, a checkpoint .* takes 0.05")
    sizes.pop(0)
    train_source_only.main(command(tmp_path, "run", "train.num_steps=1"))
    assert "WARNING: 0.10 GB are free" in (tmp_path / "run/log.txt").read_text()


def resize(folder: Path) -> None:
    path = sorted(folder.rglob("*.png"))[-1]
    Image.open(path).resize((90, 64), Image.Resampling.NEAREST).save(path)


def test_whole_images_of_several_sizes_are_no_batch(command, own_city, tmp_path, no_step):
    resize(own_city / "gtav/images")
    resize(own_city / "gtav/labels")
    message = "images of one batch must have one size .*00001.png is 96x64, .*00006.png is 90x64: set input_size"
    refused(train_source_only.main, command(tmp_path, "run", *of(own_city), *WHOLE), message)


@pytest.mark.slow
def test_trial_changes_nothing(command, tmp_path, monkeypatch):
    """Network, random numbers and a whole run stay the same."""
    states, check = [], experiment.check_start

    def checked(data, model, validation):
        for run in (lambda: None, lambda: check(data, model, validation)):
            run()
            tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            updates = [buffer.clone() for name, buffer in model.named_buffers() if name.endswith("updates")]
            states.append((tensors, updates, torch.get_rng_state(), [m.training for m in model.modules()]))

    tried, try_out = [], Validation.try_out
    monkeypatch.setattr(Validation, "try_out", lambda *arguments: tried.append(try_out(*arguments)))
    monkeypatch.setattr(experiment, "check_start", checked)
    train_source_only.main(command(tmp_path, "with", "model.dropout=0.3"))
    monkeypatch.setattr(experiment, "check_start", lambda *arguments: None)
    train_source_only.main(command(tmp_path, "without", "model.dropout=0.3"))
    (tensors, updates, numbers, modes), after = states
    assert len(tried) == 1 and len(updates) > 15 and modes == after[3] and torch.equal(numbers, after[2])
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in tensors.items())
    assert all(torch.equal(a, b) for a, b in zip(updates, after[1], strict=True))
    runs = [tmp_path / name for name in ("with", "without")]
    a, b = (torch.load(run / "last.pth", weights_only=True)["model"] for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len({(run / "log.jsonl").read_text() for run in runs}) == 1


def test_resumed_run_is_not_tried_again(command, source_run, tmp_path, monkeypatch):
    shutil.copytree(source_run, tmp_path / "run")
    monkeypatch.setattr(Validation, "try_out", lambda *arguments: pytest.fail("tried"))
    train_source_only.main(command(tmp_path, "run"))


@pytest.mark.slow
def test_file_that_one_process_finds_stops_both(command, own_city, tmp_path, fork_two):
    truncate(held_out(own_city)[1].label)  # an image of the second process
    arguments = command(tmp_path, "run", *of(own_city))
    for rank, process in enumerate(fork_two("train_source_only.py", arguments, arguments)):
        status, output = process.ended()
        assert status == 2 and "step 1 " not in output
        assert f"rank {rank}: error: cannot read picture" in output


@pytest.mark.slow
def test_conversion_reports_errors_before_it_scores(command, own_city, source_run, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "evaluate", lambda *arguments, **options: pytest.fail("scored"))
    weights = f"adabn.weights={source_run}"
    ppm = command(tmp_path, "ppm", PPM, "train.num_steps=1", "val.held_out=0")
    train_source_only.main(ppm)
    refused(convert.main, [*ppm, "adabn.batch_size=1"], "adabn.batch_size gives one image")
    shutil.rmtree(own_city / "gtav")
    keys = [*of(own_city), weights, "adabn.domains=both"]
    refused(convert.main, command(tmp_path, "converted", *keys), "no folder .*gtav")


def test_evaluation_reports_errors_before_it_scores(command, source_run, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "score_network", lambda *arguments, **options: pytest.fail("scored"))
    arguments = command(tmp_path, "any", "--weights", str(source_run))
    refused(evaluate.main, [*arguments, "--json", str(tmp_path)], f"--json: cannot write {tmp_path}: Is a directory")
    other = tmp_path / "other.pth"
    state = torch.load(source_run / "last.pth", weights_only=True)
    state["model"].popitem()
    torch.save(state, other)
    refused(evaluate.main, [*arguments, str(other)], "other.pth does not fit the network")


def test_slower_half_precision_is_reported_with_the_ratio(monkeypatch):
    told: list[str] = []
    cpu = torch.device("cpu")
    monkeypatch.setattr(start, "half_precision_time", lambda dtype: {torch.bfloat16: 19.04, torch.float16: 0.5}[dtype])
    for amp in ("off", "fp16"):
        start.warn_of_slow_amp(amp, cpu, told.append)
    assert told == []
    start.warn_of_slow_amp("bf16", torch.device("cuda"), told.append)
    assert told == []
    start.warn_of_slow_amp("bf16", cpu, told.append)
    assert len(told) == 1 and "19.0 times as long in bf16" in told[0] and "set train.amp=off" in told[0]


def test_ratio_of_half_precision_is_measured_and_moves_no_random_number():
    state = torch.get_rng_state()
    assert start.half_precision_time(torch.bfloat16) > 0
    assert torch.equal(torch.get_rng_state(), state)
