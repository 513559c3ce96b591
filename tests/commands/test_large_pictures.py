"""Pictures larger than the memory are named, the others are predicted; ``test.window`` predicts overlapping parts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import evaluate
from dataset.labels import CITYSCAPES
from models.segmentor import Segmentor
from tests.method.test_upsampling import LargestFloats
from utils.commands import predict
from utils.config.schema import AtTestTime, Evaluation
from utils.inference import Predictor, load
from utils.scoring.predictor import PictureTooLarge


def seen_by(network: nn.Module, window: tuple[int, int] | None, tta: AtTestTime | None = None) -> Predictor:
    return Predictor(network, CITYSCAPES, torch.device("cpu"), Evaluation(input_size=None, window=window), tta)


class Whole(nn.Module):
    """Logits that are the same at every position: (mean of the image, 0)."""

    def stride_logits(self, image: Tensor) -> Tensor:
        mean = image[:, :1].mean((2, 3), keepdim=True).expand(-1, -1, *image.shape[2:])
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)


class Local(nn.Module):
    """19 logits at stride 8, each a function of its 8x8 pixels."""

    def stride_logits(self, image: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(image, 8)
        return torch.cat([means * factor for factor in (1, -1, 0.5, -2, 3, 0.1, 2)], dim=1)[:, :19]


def test_probabilities_are_averaged_where_windows_overlap():
    image = torch.arange(8.0).expand(1, 3, 4, 8)  # windows of 4 columns have means of 1.5, 3.5 and 5.5
    first, second, third = torch.tensor([1.5, 3.5, 5.5]).sigmoid()
    expected = torch.stack([first, first, *[(first + second) / 2] * 2, *[(second + third) / 2] * 2, third, third])
    _, highest = seen_by(Whole(), (4, 16)).segment(image, (4, 8), confidence=True)
    assert torch.allclose(highest / 255, expected.expand(1, 4, 8), atol=0.51 / 255)
    _, larger = seen_by(Whole(), (4, 16)).segment(image, (8, 16), confidence=True)
    assert torch.allclose(larger / 255, expected.repeat_interleave(2).expand(1, 8, 16), atol=0.51 / 255)


@pytest.mark.parametrize("tta", [None, AtTestTime(scales=(1.0, 2.0), flip=True)])
@pytest.mark.parametrize("shape", [(256, 512), (100, 77), (3, 5)])
def test_windows_agree_with_the_whole_and_one_that_holds_it_is_equal(tta, shape):
    coarse = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(coarse, (256, 512), mode="bicubic")
    whole, held, parts = (seen_by(Local(), window, tta) for window in (None, (512, 256), (96, 64)))
    expected, equal, near = (predictor.segment(image, shape, confidence=True) for predictor in (whole, held, parts))
    assert torch.equal(expected[0], equal[0]) and torch.equal(expected[1], equal[1])
    assert near[0].shape == (2, *shape) and (shape[0] < 10 or (near[0] == expected[0]).float().mean() > 0.95)


def test_probabilities_of_the_whole_picture_are_never_held():
    image = torch.randint(0, 255, (1, 3, 1024, 2048), dtype=torch.uint8)
    with LargestFloats() as largest:
        seen_by(Local(), (256, 128)).segment(image, (1024, 2048), confidence=True)
    assert largest.most <= 19 * 1024 * 2048 / 3


@pytest.mark.slow
def test_commands_and_python_see_the_same_windows(command, city, source_run, tmp_path):
    pictures = sorted((city / "cityscapes/leftImg8bit/val").rglob("*.png"))
    labels = {}
    for name, keys in {"whole": [], "held": ["test.window=[9999, 9999]"], "parts": ["test.window=[48, 32]"]}.items():
        weights, saved = ["--weights", str(source_run)], tmp_path / name
        outputs = ["--save", str(saved), "--json", str(tmp_path / f"{name}.json")]
        evaluate.main(command(tmp_path, "any", *weights, *outputs, *keys))
        given = [*weights, "--save", str(tmp_path / f"{name} again"), *map(str, pictures)]
        assert predict.main(command(tmp_path, "any", *given, *keys)) == 0
        predictor = load(source_run, "cpu", keys)
        for path in pictures:
            file = path.name.replace("_leftImg8bit.png", ".png")
            labels[name, path] = np.asarray(Image.open(saved / "label_ids" / file))
            (again,) = (tmp_path / f"{name} again/label_ids").rglob(path.name)
            assert np.array_equal(labels[name, path], np.asarray(Image.open(again)))
            assert np.array_equal(labels[name, path], CITYSCAPES.export_ids[predictor(path)])
            assert (predictor.probabilities(path).argmax(0) == predictor(path)).mean() > 0.999
    assert all(np.array_equal(labels["whole", path], labels["held", path]) for path in pictures)
    assert any(not np.array_equal(labels["whole", path], labels["parts", path]) for path in pictures)
    scores = [json.loads((tmp_path / f"{name}.json").read_text())["confusion_matrix"] for name in ("whole", "held")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_picture_too_large_is_named_and_the_others_are_done(command, source_run, tmp_path, monkeypatch, capsys, error):
    plainly = Segmentor.stride_logits

    def limited(self: Segmentor, images: Tensor) -> Tensor:
        if images.shape[-1] > 100:
            raise error
        return plainly(self, images)

    monkeypatch.setattr(Segmentor, "stride_logits", limited)
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (96, 200, 3), np.uint8)
    for name, width in {"a": 96, "b": 200, "c": 80}.items():
        Image.fromarray(noise[:, :width]).save(tmp_path / f"photos/{name}.png")
    options = [str(tmp_path / "photos"), "--weights", str(source_run), "test.input_size=null"]
    assert predict.main(command(tmp_path, "any", *options, "--save", str(tmp_path / "out"))) == 1
    written = capsys.readouterr()
    assert "2 pictures" in written.out and written.err.count("test.window") == 1
    assert all(text in written.err for text in ("b.png is too large for the memory", "test.input_size"))
    assert sorted(path.name for path in (tmp_path / "out/overlay").iterdir()) == ["a.png", "c.png"]
    options += ["--save", str(tmp_path / "parts"), "test.window=[96, 64]"]
    assert predict.main(command(tmp_path, "any", *options)) == 0
    with pytest.raises(PictureTooLarge, match="b.png is too large"):
        load(source_run, "cpu", ["test.input_size=null"])(tmp_path / "photos/b.png")
    with pytest.raises(RuntimeError, match="another"):
        error = RuntimeError("another")
        predict.main(command(tmp_path, "any", *options, "test.window=null"))
