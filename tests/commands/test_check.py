"""The data check finds every planted defect, and none in sound data."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.labels import id_lookup
from tests.data.png import colour16
from tests.data.test_encodings import bomb, oversized_text
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


@pytest.mark.slow
def test_several_processes_that_read(command, data, fork):
    arguments = command(data, "x", f"source.data_dir={data}/gtav", f"target.data_dir={data}/cityscapes")
    status, output = fork("utils/commands/check.py", [*arguments, "--workers", "2"]).ended()
    assert status == 0 and output.endswith("0 errors, 0 remarks\n"), output


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def write(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_only_the_twelve_planted_defects_are_found(command, data, capsys):
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
    colour16(labels[1], pixels)
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
    assert run(command, data, capsys, f"test.data_dir={data}/cityscapes")[0] == 1  # asked for, but missing


def findings(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("error:", "remark:"))]


def own(data: Path, table: str, count: int, ids: Callable[[int], np.ndarray], *keys: str) -> list[str]:
    """Keys for ``count`` own images as source, target and test; image i has the label ``ids(i)``."""
    name = f"{len(list(data.glob('*.yaml')))}.yaml"  # a process reads each file once
    (data / name).write_text(table)
    lines = []
    for i in range(count):
        write(data / f"{i}.png", np.zeros((32, 64, 3)))
        write(data / f"{i}_label.png", ids(i))
        lines.append(f"{i}.png {i}_label.png")
    (data / "list.txt").write_text("\n".join(lines))
    for domain in ("source", "target", "test"):
        options = {"dataset": "list", "id_table": data / name, "data_list": data / "list.txt", "data_dir": data}
        keys += tuple(f"{domain}.{key}={value}" for key, value in options.items())
    return [*keys, f"num_classes={table.count('name')}"]


TWO = "classes: [{name: a, colour: [0, 0, 0], ids: [0]}, {name: b, colour: [9, 0, 0], ids: [1]}]"


def test_repeated_findings_are_one_line(command, data, capsys):
    def six_more(i: int) -> np.ndarray:
        return np.where(np.arange(64) < 32, i % 2, 40 + i % 6)[None].repeat(32, 0)

    keys = own(data, TWO, 24, six_more)
    status, lines = run(command, data, capsys, *keys)
    assert status == 1 and len(findings(lines)) == 3 and lines[-1] == "72 errors, 0 remarks"
    (line, *_) = findings(lines)
    assert line.startswith("error: 24 files: have ids that") and "40 (4 files, 4096 pixels)" in line
    assert "Add them to a class or to void there" in line and "and 19 more" in line
    assert len(findings(run(command, data, capsys, *keys, "--all")[1])) == 72


def test_colour_labels_give_the_same_error_as_in_training(command, data, capsys):
    keys = own(data, TWO, 6, lambda i: np.zeros((64, 32, 3)))
    status, lines = run(command, data, capsys, *keys)
    assert status == 1 and len(findings(lines)) == 3 and "is a colour image (RGB)" in findings(lines)[0]


def test_train_ids_as_labels_are_remarked(command, data, capsys):
    for path in (data / "gtav/labels").iterdir():
        write(path, id_lookup("gtav")[np.array(Image.open(path))])
    status, lines = run(command, data, capsys)
    (remark,) = findings(lines)
    assert status == 0 and "they look like train ids, but gtav needs label ids" in remark


def test_masks_of_0_and_255_are_remarked_until_the_table_names_255(command, data, capsys):
    def mask(i: int) -> np.ndarray:
        return np.where(np.arange(64) < 16, 255, 0)[None].repeat(32, 0)

    status, lines = run(command, data, capsys, *own(data, TWO, 3, mask))
    assert status == 0 and len(findings(lines)) == 3
    assert "a is the only class, and 255 (25.0% of the pixels) is void" in findings(lines)[0]
    status, lines = run(command, data, capsys, *own(data, TWO.replace("[1]", "[255]"), 3, mask))
    assert findings(lines) == [] and "a 75.00%, b 25.00%" in lines


def test_labels_without_a_labelled_pixel_stop_only_the_source(command, data, capsys):
    status, lines = run(command, data, capsys, *own(data, TWO, 3, lambda i: np.full((32, 64), 255)))
    found = [line for line in findings(lines) if "no pixel of any label" in line]
    assert status == 1 and [line.split(":")[0] for line in found] == ["error", "remark", "remark"]


def test_pictures_that_are_no_pictures_do_not_end_the_check(command, data, capsys):
    source = sorted((data / "gtav/images").iterdir())
    bomb(source[0])
    oversized_text(source[1])
    source[2].write_text("no picture")
    status, lines = run(command, data, capsys)
    assert status == 1 and lines[-1] == "3 errors, 0 remarks"
    assert all(str(path) in line for path, line in zip(source[:3], findings(lines), strict=True))


def test_a_shape_that_the_test_size_distorts_is_remarked(command, data, capsys):
    for size, count in (("[96, 64]", 0), ("[48, 32]", 0), ("[128, 64]", 1)):
        status, lines = run(command, data, capsys, f"test.input_size={size}")
        assert status == 0 and len(findings(lines)) == count
    assert "test.input_size [128, 64] makes images of 96x64 1.33 times as wide" in findings(lines)[0]


def test_several_sizes_and_crops_beyond_the_picture_are_named_where_they_matter(command, data, capsys):
    for path in data.glob("cityscapes/*/train/*/*_000002_*.png"):
        with Image.open(path) as picture:
            picture.resize((60, 40), Image.Resampling.NEAREST).save(path)
    status, lines = run(command, data, capsys, "target.crop_size=[64, 32]")
    assert status == 0 and len(findings(lines)) == 2 and "adabn runs them one at a time" in findings(lines)[0]
    assert "images, such as 60x40, are smaller than target.crop_size [64, 32]" in findings(lines)[1]
    for keys in (["target.input_size=[96, 64]"], ["adabn.images=crops", "target.crop_size=[60, 40]"]):
        assert findings(run(command, data, capsys, *keys)[1]) == []
    status, lines = run(command, data, capsys, "target.crop_size=null", "adabn.batch_size=1")
    (error,) = findings(lines)
    assert status == 1
    assert error.startswith("error: training cannot form batches: images of one batch must have one size")


def test_turned_images_and_a_test_split_without_labels_are_remarked(command, data, capsys):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = sorted((data / "gtav/images").iterdir())[0]
    Image.open(image).save(image, exif=exif)
    shutil.rmtree(data / "cityscapes/gtFine/val")
    status, lines = run(command, data, capsys)
    assert status == 0 and lines[-1] == "0 errors, 2 remarks"
    assert "1 images have an EXIF orientation, which is applied" in findings(lines)[0]
    assert "no image has a label: training needs none" in findings(lines)[1]


def test_the_list_of_held_out_images_is_checked_too(command, data, capsys):
    labels = sorted((data / "cityscapes/gtFine/train").rglob("*.png"))[:2]
    images = [str(p).replace("gtFine", "leftImg8bit", 1).replace("_gtFine_labelIds", "_leftImg8bit") for p in labels]
    (data / "held_out.txt").write_text("\n".join(images))
    for path in labels:
        write(path, np.zeros((64, 96)))
    status, lines = run(command, data, capsys, f"val.data_list={data}/held_out.txt")
    assert status == 0 and "held_out: 2 images, 2 labels; 2 of 96x64" in lines
    assert "remark: no pixel of any label belongs to a class: the images count as unlabelled" in findings(lines)
