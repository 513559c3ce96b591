"""``utils.inference.load``: a checkpoint is enough, and gives the predictions that ``evaluate.py`` scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train_source_only
from dataset.labels import CITYSCAPES, read_id_table
from dataset.messages import ChoiceError, DataError
from models.weights import WeightsError
from tests.data.test_own_data import keys, own  # noqa: F401 - a fixture
from utils.commands import export, predict
from utils.config.read import build_config
from utils.config.schema import ConfigError
from utils.inference import load
from utils.scoring.predictor import seen_size

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tested", [["test.input_size=[48, 32]", "tta.flip=true"], ["test.upsampling=direct"]])
def test_gives_what_evaluate_scores(command, city, source_run, tmp_path, tested):
    evaluate.main(command(tmp_path, "any", "--weights", str(source_run), "--save", str(tmp_path / "p"), *tested))
    predictor = load(source_run, "cpu", tested)
    pictures = sorted((city / "cityscapes/leftImg8bit/val").rglob("*.png"))
    assert len(pictures) == 3
    for path in pictures:
        name = path.name.replace("_leftImg8bit.png", ".png")
        scored = np.asarray(Image.open(tmp_path / "p/label_ids" / name))
        assert np.array_equal(CITYSCAPES.export_ids[predictor(path)], scored) and len(np.unique(scored)) > 1


def test_picture_array_and_path_are_the_same_and_probabilities_agree(city, source_run):
    before = torch.get_rng_state()
    predictor = load(str(source_run / "last.pth"))
    assert torch.equal(torch.get_rng_state(), before) and predictor.names == CITYSCAPES.names
    (path, *_) = sorted((city / "gtav/images").glob("*.png"))
    picture = Image.open(path).convert("RGB")
    classes = predictor(picture)
    assert classes.dtype == np.uint8 and classes.shape == (64, 96)
    assert np.array_equal(classes, predictor(np.asarray(picture))) and np.array_equal(classes, predictor(str(path)))
    shares = predictor.probabilities(path)
    assert shares.dtype == np.float32 and shares.shape == (19, 64, 96) and np.allclose(shares.sum(0), 1, atol=1e-5)
    assert (shares.argmax(0) == classes).mean() > 0.999
    first = int(classes[0, 0])
    assert predictor.colour(classes).getpixel((0, 0)) == tuple(predictor.palette[first])
    with pytest.raises(ValueError, match="uint8 .H, W, 3. in the order RGB, got float32"):
        predictor(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ConfigError, match="tta.flop"):
        load(source_run, overrides=["tta.flop=true"])
    with pytest.raises(ConfigError, match="only keys of test and tta can be changed, not 'num_classes'"):
        load(source_run, overrides=["num_classes=3"])
    with pytest.raises(ChoiceError, match="tta.scales: 0.05 leaves no pixel of an input of 16x8"):
        load(source_run, overrides=["tta.scales=[0.05]"])(np.zeros((8, 16, 3), np.uint8))


def test_file_is_turned_upright_and_the_aspect_is_kept(city, source_run, tmp_path):
    (path, *_) = sorted((city / "gtav/images").glob("*.png"))
    picture = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    predictor = load(source_run)
    assert np.array_equal(predictor(tmp_path / "turned.png"), predictor(picture))
    assert seen_size((2048, 1024), (1024, 512)) == (1024, 512) and seen_size((640, 192), None) == (640, 192)
    assert seen_size((640, 192), (1024, 512)) == (1024, 307) and seen_size((300, 600), (1024, 512)) == (256, 512)
    assert seen_size((1914, 957), (1024, 512)) == (1024, 512)


def test_own_classes_travel_in_the_checkpoint(command, city, own, tmp_path):  # noqa: F811
    train_source_only.main(command(own, "run", *keys(own, city)))
    (own / "classes.yaml").unlink()
    predictor = load(own / "run")
    assert predictor.names == ("ground", "built", "plants", "moving")
    assert predictor.palette.tolist()[2] == [107, 142, 35]
    assert predictor.table.export_ids[:5].tolist() == [7, 11, 21, 26, 0]
    read_id_table.cache_clear()
    configured = command(own, "run", *keys(own, city))  # it names the deleted table
    (picture, *_) = sorted((city / "gtav/images").glob("*.png"))
    predict.main([*configured, str(picture), "--save", str(own / "p")])
    ids = np.asarray(Image.open(own / "p/label_ids" / picture.name))
    assert np.array_equal(ids, predictor.table.export_ids[predictor(picture)])
    export.main([*configured, "--to", str(own / "passed_on.pth")])
    assert load(own / "passed_on.pth").names == predictor.names
    content = torch.load(own / "run/last.pth", weights_only=True)
    del content["classes"]
    content["config"] = content["config"].replace("classes.yaml", "gone.yaml")
    torch.save(content, tmp_path / "old.pth")
    with pytest.raises(WeightsError, match="does not contain its classes, and .*no id table .*gone.yaml"):
        load(tmp_path / "old.pth")


def test_older_checkpoint_of_cityscapes_classes(source_run, tmp_path):
    content = torch.load(source_run / "last.pth", weights_only=True)
    del content["classes"]
    content["config"] += "a_key_of_those_days: 1\n"
    torch.save(content, tmp_path / "old.pth")
    assert load(tmp_path / "old.pth").names == CITYSCAPES.names


def test_works_from_another_folder(city, source_run, tmp_path, monkeypatch):
    (path, *_) = sorted((city / "gtav/images").glob("*.png"))
    expected = load(source_run)(path)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(load(source_run)(path), expected)


def test_own_data_keep_their_size_by_default(city, own):  # noqa: F811
    config = own / "c.yaml"
    config.write_text("num_classes: 4\n")
    given = [pair for pair in keys(own, city) if not pair.startswith("num_classes")]
    assert build_config(config, given).test.input_size is None
    assert build_config(config, [*given, "test.input_size=[1024, 512]"]).test.input_size == (1024, 512)
    target = [pair for pair in given if not pair.startswith("test.")]
    assert build_config(config, target).test.input_size is None
    assert build_config(config).test.input_size == (1024, 512)


def kinds_of_pictures(folder: Path) -> list[Path]:
    """The same scene in every kind that Pillow writes; some are turned by EXIF, some have no known range."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.kron(rng.integers(0, 255, (8, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    exif, deep = Image.Exif(), rng.integers(0, 65535, (64, 96)).astype(np.uint16)
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture.convert(mode).save(folder / f"{mode}.png", exif=exif)
    picture.quantize(7).save(folder / "transparent.png", transparency=3)
    for mode in ("L", "RGB", "CMYK"):
        picture.convert(mode).save(folder / f"{mode}.jpg", exif=exif)
    Image.fromarray(deep).save(folder / "16.png")
    for name, values in {"16": deep, "32": deep.astype(np.int32), "float": deep.astype(np.float32)}.items():
        Image.fromarray(values).save(folder / f"{name}.tif")
    (folder / "damaged.jpg").write_bytes((folder / "RGB.jpg").read_bytes()[:700])
    return sorted(folder.iterdir())


@pytest.mark.slow
def test_every_kind_of_picture_is_read_as_predict_reads_it_or_refused(command, source_run, tmp_path):
    (tmp_path / "kinds").mkdir()
    predictor = load(source_run, "cpu", ["test.input_size=null"])
    for path in kinds_of_pictures(tmp_path / "kinds"):
        out = tmp_path / "out" / path.name
        options = [str(path), "--weights", str(source_run), "--save", str(out), "test.input_size=null"]
        status = predict.main(command(tmp_path, "any", *options))
        for given in (path, str(path), Image.open(path)):
            if status == 0:
                (written,) = (out / "label_ids").iterdir()
                ids = np.asarray(Image.open(written))
                assert np.array_equal(CITYSCAPES.export_ids[predictor(given)], ids), (path, given)
                continue
            with pytest.raises(DataError, match=path.name):
                predictor(given)
        assert (status == 1) == (path.name in ("32.tif", "float.tif", "damaged.jpg"))
