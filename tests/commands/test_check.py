"""The data check finds every planted defect, and nothing in sound data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.toy_city import encode_png16
from utils.commands import check


@pytest.fixture
def data(city: Path, tmp_path: Path) -> Path:
    for name in ("gtav", "cityscapes", "synthia"):
        shutil.copytree(city / name, tmp_path / name)
    return tmp_path


def run(
    command: Callable[..., list[str]], data: Path, capsys: pytest.CaptureFixture, *keys: str
) -> tuple[int, list[str]]:
    arguments = command(data, "x", f"source.data_dir={data}/gtav", f"target.data_dir={data}/cityscapes", *keys)
    status = check.main([*arguments, "--workers", "0"])
    return status, [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_sound_data(command, data, capsys):
    status, lines = run(command, data, capsys)
    assert status == 0 and lines[-1] == "0 errors, 0 remarks"
    assert "source: 6 images, 6 labels; 6 of 96x64" in lines and "test: 3 images, 3 labels; 3 of 96x64" in lines
    frequencies = next(line for line in lines if line.startswith("road"))
    shares = [float(entry.split()[-1].rstrip("%")) for entry in frequencies.split(", ")]
    assert sum(shares) == pytest.approx(100, abs=0.1)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def write(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_twelve_planted_defects_are_found_and_nothing_else(command, data, capsys):
    gtav, cityscapes = data / "gtav", data / "cityscapes"
    train = sorted((cityscapes / "leftImg8bit/train").rglob("*.png"))
    val = sorted((cityscapes / "gtFine/val").rglob("*.png"))
    train_labels = sorted((cityscapes / "gtFine/train").rglob("*.png"))
    blank = np.zeros((64, 96))
    truncate(gtav / "images/00001.png")
    truncate(gtav / "labels/00001.png")
    (gtav / "labels/00002.png").unlink()
    (gtav / "images/00003.png").unlink()
    write(gtav / "labels/00004.png", np.full((32, 96), 7))
    write(gtav / "labels/00005.png", np.where(np.arange(96) < 50, 99, blank + 7))
    write(gtav / "labels/00006.png", np.zeros((64, 96, 3)))
    truncate(train[0])
    write(train_labels[1], blank + 200)
    val[0].unlink()
    write(val[1], np.full((64, 50), 7))
    write(val[2], blank)
    status, lines = run(command, data, capsys)
    expected = [
        ("error", "images/00001.png", "cannot read image"),
        ("error", "labels/00001.png", "cannot read label"),
        ("error", "images/00002.png", "has no label"),
        ("remark", "labels/00003.png", "a label without image"),
        ("error", "images/00004.png", "the image is 96x64, the label 96x32"),
        ("error", "labels/00005.png", "ids that gtav does not define: 99"),
        ("error", "labels/00006.png", "colour"),
        ("error", train[0].name, "cannot read image"),
        ("error", train_labels[1].name, "ids that cityscapes does not define: 200"),
        ("error", val[0].name.replace("gtFine_labelIds", "leftImg8bit"), "has no label"),
        ("error", val[1].name.replace("gtFine_labelIds", "leftImg8bit"), "the label 50x64"),
        ("remark", val[2].name, "nothing is labelled"),
    ]
    found = [line for line in lines if line.startswith(("error:", "remark:"))]
    for level, name, message in expected:
        matching = [line for line in found if line.startswith(level) and f"{name}: " in line and message in line]
        assert len(matching) == 1, (name, message, found)
        found.remove(matching[0])
    assert found == [] and status == 1 and lines[-1] == "10 errors, 2 remarks"


def test_eight_bit_synthia_labels_and_a_missing_folder(command, data, capsys):
    keys = ["source.dataset=synthia", f"source.data_dir={data}/synthia"]
    assert run(command, data, capsys, *keys)[0] == 0
    labels = sorted((data / "synthia/GT/LABELS").glob("*.png"))
    write(labels[0], np.zeros((64, 96, 3)))
    pixels = np.zeros((64, 96, 3), np.uint16)
    pixels[..., 0] = 400
    labels[1].write_bytes(encode_png16(pixels))
    status, lines = run(command, data, capsys, *keys)
    assert status == 1 and any("16" in line and labels[0].name in line for line in lines)
    assert any("400" in line and labels[1].name in line for line in lines) and lines[-1] == "2 errors, 0 remarks"
    status, lines = run(command, data, capsys, f"source.data_dir={data}/nowhere")
    assert status == 1 and "1 errors, 0 remarks" in lines[-1] and any("nowhere" in line for line in lines)


def test_unlabelled_target_is_no_problem(command, data, capsys):
    shutil.rmtree(data / "cityscapes/gtFine/train")
    assert run(command, data, capsys)[0] == 0


def test_test_set_without_labels_or_none_at_all_is_a_remark(command, data, capsys):
    shutil.rmtree(data / "cityscapes/gtFine/val")
    status, lines = run(command, data, capsys)
    assert status == 0 and lines[-1] == "0 errors, 1 remarks" and "no image has a label" in lines[-2]
    shutil.rmtree(data / "cityscapes/leftImg8bit/val")
    status, lines = run(command, data, capsys)
    assert status == 0 and lines[-1] == "0 errors, 1 remarks" and "there is no test set" in lines[-2]
    assert run(command, data, capsys, f"test.data_dir={data}/cityscapes")[0] == 1  # asked for, and not there
