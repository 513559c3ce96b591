"""evaluate.py: comparisons, averaging over scales, files of other programs, pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import evaluate
from dataset.folders import DataError
from dataset.labels import CITYSCAPES
from models import build_segmentor
from utils.config.read import ROOT, find_config
from utils.config.schema import AtTestTime, ConfigError, Evaluation
from utils.metrics import ConfusionMatrix
from utils.scoring.evaluation import comparison
from utils.scoring.pictures import TITLE_HEIGHT, confusion_picture, panel
from utils.scoring.predictor import Predictor


@pytest.mark.slow
def test_several_networks_in_one_table_and_the_best_is_starred(command, source_run, tmp_path, capsys):
    files = [str(source_run), str(source_run / "last.pth")]
    evaluate.main(command(tmp_path, "any", "--weights", *files, "--json", str(tmp_path / "s.json")))
    first, second = json.loads((tmp_path / "s.json").read_text())
    assert first["name"] == str(source_run) and second["name"].endswith("last.pth") and first["miou"] == second["miou"]
    matrices = {}
    for name, right in (("poor", 1), ("rich", 3)):
        matrices[name] = ConfusionMatrix(19)
        matrices[name].update(torch.zeros(4, dtype=torch.long), torch.tensor([0] * right + [1] * (4 - right)))
    table = comparison(matrices, CITYSCAPES, None)
    assert "25.00       75.00*" in table.splitlines()[1] and max(map(len, capsys.readouterr().out.splitlines())) <= 160
    wide = comparison({f"network {i}": matrices["poor"] for i in range(6)}, CITYSCAPES, None)
    assert max(map(len, wide.splitlines())) <= 100


def test_columns_of_a_comparison_are_named_or_where_that_is_too_wide_numbered():
    matrix = ConfusionMatrix(19)
    matrix.update(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long))

    def lines(*names: str) -> list[str]:
        return comparison(dict.fromkeys(names, matrix), CITYSCAPES, None).splitlines()

    table = lines("runs/a_long_name_of_a_run", "second/run")
    assert table[0].split() == ["runs/a_long_name_of_a_run", "second/run"]
    assert len(table[0]) == len(table[1].rstrip("*")) and table[1].split() == ["road", "100.00*", "100.00*"]
    many = lines(*(f"runs/network_with_a_name_{i}" for i in range(7)))
    assert many[0] == "(1) runs/network_with_a_name_0" and many[7].split() == [f"({i})" for i in range(1, 8)]
    assert max(map(len, many)) <= 120


def test_overrides_may_stand_behind_an_option_of_several_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "lr=1").mkdir()
    weights = ["--weights", "runs/lr=0.1", "lr=1", "~/run"]
    args, config = evaluate.parse(["pycda_exp001", *weights, "test.input_size=null", "--json", "s.json", "seed=4"])
    assert args.weights == ["runs/lr=0.1", "lr=1", "/home/somebody/run"] and str(args.json) == "s.json"
    assert config.test.input_size is None and config.seed == 4 and config.exp_name == "pycda_exp001"
    long = f"test.eval_classes=[{', '.join(CITYSCAPES.names * 2)}]"
    _, config = evaluate.parse(["--weights", "a", long, "--config", "pycda_exp001"])
    assert len(config.test.eval_classes) == 38
    for argument, message in (("seed", "'seed' is not key=value"), ("test.input-size=1", "unknown key")):
        with pytest.raises(ConfigError, match=message):
            evaluate.parse(["pycda_exp001", argument])


def test_configuration_is_found_here_then_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pycda_paper", "cfgs/pycda_paper", "cfgs/pycda_paper.yaml"):
        assert find_config(name) == ROOT / "cfgs/pycda_paper.yaml"
    (tmp_path / "pycda_paper.yaml").write_text("seed: 1")
    assert str(find_config("pycda_paper")) == "pycda_paper.yaml"
    with pytest.raises(ConfigError, match="no config file pycda_papr; the nearest is pycda_paper.yaml"):
        find_config("pycda_papr")


class Stub(torch.nn.Module):
    """The logits are the image."""

    def stride_logits(self, image: Tensor) -> Tensor:
        return image


def test_averaging_undoes_the_mirror_and_the_scale():
    image = torch.zeros(1, 3, 8, 12)
    image[:, 1, :, 6:] = 5.0  # class 1 on the right; a mirror that is not undone would move it to the left

    def predict(tta: AtTestTime | None) -> Tensor:
        predictor = Predictor(Stub(), CITYSCAPES, torch.device("cpu"), Evaluation(), tta)
        return predictor.segment(image, (8, 12))[0]

    plain = predict(None)
    assert plain[0, :, 6:].eq(1).all() and plain[0, :, :6].eq(0).all()
    assert torch.equal(predict(AtTestTime(scales=(1.0,), flip=True)), plain)
    scaled = predict(AtTestTime(scales=(0.5, 1.0, 2.0), flip=True))
    assert (scaled == plain).float().mean() > 0.9


@pytest.mark.slow
def test_averaging_by_configuration_changes_the_prediction(command, source_run, tmp_path):
    results = []
    for name, keys in (("plain", []), ("averaged", ["tta.flip=true", "tta.scales=[0.5, 1.0]"])):
        file = tmp_path / f"{name}.json"
        evaluate.main(command(tmp_path, "any", "--weights", str(source_run), "--json", str(file), *keys))
        results.append(json.loads(file.read_text())["confusion_matrix"])
    assert results[0] != results[1] and np.sum(results[0]) == np.sum(results[1])


def test_saved_label_ids_score_as_the_network_did(command, city, source_run, tmp_path):
    outputs = ["--save", str(tmp_path / "p"), "--json", str(tmp_path / "a.json")]
    evaluate.main(command(tmp_path, "any", "--weights", str(source_run), *outputs))
    files = tmp_path / "p/label_ids"
    evaluate.main(command(tmp_path, "any", "--predictions", str(files), "--json", str(tmp_path / "b.json")))
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a["confusion_matrix"] == b["confusion_matrix"] and a["miou"] == b["miou"]
    assert 1 <= len(list((tmp_path / "p/worst").iterdir())) <= 10 and (tmp_path / "p/confusion.png").is_file()
    ranked = sorted(path.name for path in (tmp_path / "p/worst").iterdir())
    assert [float(name.split("_")[1]) for name in ranked] == sorted(float(name.split("_")[1]) for name in ranked)
    first = sorted(files.iterdir())[0]
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(first)
    with pytest.raises(DataError, match="differ in size .W x H.: 2x2 and 96x64"):
        evaluate.main(command(tmp_path, "any", "--predictions", str(files)))
    shutil.copy(first, tmp_path / "p/label_ids/other")
    first.unlink()
    with pytest.raises(DataError, match="0 predictions for"):
        evaluate.main(command(tmp_path, "any", "--predictions", str(files)))


def test_prediction_of_no_class_misses_its_label():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 255, 1, 255]))
    assert matrix.iou().tolist() == [0.5, 0.5] and matrix.pixel_accuracy() == 0.5
    assert matrix.frequency_weighted_iou() == 0.5
    with pytest.raises(ValueError, match="neither|or 255"):
        matrix.update(torch.tensor([0]), torch.tensor([7]))


@pytest.mark.slow
def test_official_pair_beside_a_run(command, source_run, tmp_path):
    model = build_segmentor("resnet10_dilated16", "fcn", 19, 512)
    for part in ("encoder", "decoder"):
        torch.save({f"module.{k}": v for k, v in getattr(model, part).state_dict().items()}, tmp_path / f"{part}.pth")
    pair = [str(tmp_path / "encoder.pth"), str(tmp_path / "decoder.pth")]
    evaluate.main(command(tmp_path, "any", "--weights", str(source_run), *pair, "--json", str(tmp_path / "s.json")))
    assert [r["name"] for r in json.loads((tmp_path / "s.json").read_text())] == [str(source_run), pair[0]]
    with pytest.raises(ValueError, match="needs its decoder after it"):
        evaluate.main(command(tmp_path, "any", "--weights", pair[0], str(source_run)))


def test_confusion_picture_is_dark_where_pixels_are():
    counts = np.zeros((19, 19), int)
    counts[3, 5] = 10
    picture = np.asarray(confusion_picture(counts, CITYSCAPES)).astype(int)
    cell = picture[130 + 40 * 3 + 2, 130 + 40 * 5 + 2]
    other = picture[130 + 40 * 5 + 2, 130 + 40 * 3 + 2]
    assert cell[0] < 60 and other[0] == 255


def test_panel_of_an_unlabelled_image_shows_the_prediction_and_lays_it_on_the_image():
    image, prediction = Image.new("RGB", (8, 4), (100, 0, 0)), np.full((4, 8), 10)
    sky = CITYSCAPES.palette[10]
    for label, third in ((np.full((4, 8), 255), (sky + np.array([100, 0, 0])) // 2), (np.full((4, 8), 10), sky)):
        pixels = np.asarray(panel(image, label, prediction, CITYSCAPES)).astype(int)
        assert pixels.shape == (TITLE_HEIGHT + 4, 3 * 8 + 2 * 4, 3)
        assert (pixels[TITLE_HEIGHT:, 12:20] == sky).all()  # the prediction; the labels are the same
        assert np.abs(pixels[TITLE_HEIGHT:, 24:] - third).max() <= 1
    half = np.where(np.arange(8) < 4, 255, 10) + np.zeros((4, 1), int)
    pixels = np.asarray(panel(image, half, prediction, CITYSCAPES))[TITLE_HEIGHT:, 24:]
    assert not pixels[:, :4].any() and (pixels[:, 4:] == sky).all()  # unlabelled pixels are black
