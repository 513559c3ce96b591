"""Pixels are read correctly, or an error names the file and the likely cause."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dataset.folders import Sample, find_samples
from dataset.loader import SegmentationDataset
from dataset.messages import DataError
from dataset.reading import prediction_kind, read_image, read_label, read_pair, read_raw_label
from dataset.transforms import EvalTransform
from tests.data.png import chunk, grey, png

ORIENTATION = 0x0112


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_greys_of_few_and_many_bits_are_ids_in_labels_and_shades_in_images(tmp_path, bits):
    stored = np.arange(2 * 7).reshape(2, 7) % 2**bits
    path = grey(tmp_path / "a.png", stored, bits)
    for kind in ("gtav", "synthia"):
        assert read_raw_label(path, kind).tolist() == stored.tolist()
    shades = np.asarray(read_image(grey(tmp_path / "b.png", stored * (257 if bits == 16 else 1), bits)))
    assert (shades == (stored if bits == 16 else stored * 255 // (2**bits - 1))[..., None]).all()


def test_values_that_are_no_ids_or_of_unknown_range_are_refused(tmp_path):
    instances = grey(tmp_path / "instances.png", np.full((2, 2), 26001), 16)
    with pytest.raises(DataError, match=r"instances.png contains values from 26001 .*labelIds files"):
        read_label(instances, "cityscapes")
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "float.tiff")
    for read in (read_image, lambda path: read_raw_label(path, "gtav")):
        with pytest.raises(DataError, match=r"float.tiff .*save"):
            read(tmp_path / "float.tiff")
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match=r"lossy.jpg is a JPEG, which changes ids"):
        read_raw_label(tmp_path / "lossy.jpg", "gtav")


@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, lambda p: p), (3, lambda p: np.rot90(p, 2)), (6, lambda p: np.rot90(p, -1))]
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert (np.asarray(read_image(tmp_path / "a.png"))[..., 0] == turn(stored)).all()
    assert (read_raw_label(tmp_path / "a.png", "gtav") == turn(stored)).all()


def test_a_turned_image_beside_an_unturned_label_is_explained(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "i.png", exif=exif)
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / "l.png")
    with pytest.raises(DataError, match="is 4x6, its label .* after the image's EXIF orientation is applied"):
        read_pair(Sample("i", tmp_path / "i.png", tmp_path / "l.png"), "gtav")


def test_files_of_train_ids_are_refused_by_name(tmp_path):
    folders = tmp_path / "leftImg8bit/val/a", tmp_path / "gtFine/val/a"
    for folder in folders:
        folder.mkdir(parents=True)
    Image.new("RGB", (4, 2)).save(folders[0] / "a_1_leftImg8bit.png")
    label = folders[1] / "a_1_gtFine_labelTrainIds.png"
    Image.fromarray(np.full((2, 4), 7, np.uint8)).save(label)
    (tmp_path / "labels.txt").write_text("a/a_1_gtFine_labelTrainIds.png\n")
    with pytest.raises(DataError, match="labelTrainIds.png holds train ids"):
        find_samples("cityscapes", tmp_path, split="val", label_list=tmp_path / "labels.txt")
    with pytest.raises(DataError, match="holds train ids"):
        read_label(label, "cityscapes")
    (tmp_path / "t.yaml").write_text("classes: [{name: a, colour: [0, 0, 0], ids: [7]}]")
    assert (read_label(label, str(tmp_path / "t.yaml")) == 0).all()  # a table may name train ids


def test_prediction_of_an_undefined_id_is_refused(tmp_path):
    Image.fromarray(np.array([[7, 77]], np.uint8)).save(tmp_path / "p.png")
    with pytest.raises(DataError, match="p.png has ids that cityscapes does not define: 77"):
        read_label(tmp_path / "p.png", prediction_kind("cityscapes"))
    Image.fromarray(np.array([[7, 23, 0]], np.uint8)).save(tmp_path / "p.png")
    assert read_label(tmp_path / "p.png", prediction_kind("synthia")).tolist() == [
        [0, 10, 255]
    ]  # ids of Cityscapes, as in the file


def bomb(path) -> None:
    """200 megapixels, all zero."""
    grey(path, np.zeros((1, 1)), 1)
    content = path.read_bytes()
    header = (20000).to_bytes(4, "big") + (10000).to_bytes(4, "big") + content[24:29]
    path.write_bytes(content[:8] + chunk(b"IHDR", header) + content[33:])


def oversized_text(path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("L", (4, 4)).save(path, pnginfo=info)


def no_picture(path) -> None:
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("spoil", [bomb, oversized_text, no_picture, lambda path: path.mkdir()])
def test_wrong_pictures_of_any_kind_are_named(tmp_path, spoil):
    spoil(tmp_path / "a.png")
    for read in (read_image, *(lambda path, kind=kind: read_raw_label(path, kind) for kind in ("gtav", "synthia"))):
        with pytest.raises(DataError, match="cannot read .*a.png: ") as raised:
            read(tmp_path / "a.png")
        assert "\n" not in str(raised.value)


def test_synthia_label_that_claims_too_many_pixels_is_refused_at_once(tmp_path, recwarn):
    path = png(tmp_path / "a.png", (13000, 13000), 16, 2, bytes(1 + 6 * 13000))  # between the limit and twice as many
    with pytest.raises(DataError, match=r"cannot read label .*a.png: Image size .* exceeds limit"):
        read_raw_label(path, "synthia")
    assert not recwarn.list


def test_skipping_passes_several_bad_neighbours(tmp_path):
    samples = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (4, 4), (i, i, i)).save(path)
        samples.append(Sample(str(i), path, None))
    for i, spoil in ((1, bomb), (2, no_picture), (3, oversized_text)):
        spoil(samples[i].image)
    data = SegmentationDataset(samples, "gtav", EvalTransform(None), seed=0, domain=0, skip_bad=3)
    found = [data[i] for i in range(5)]
    assert [item["name"] for item in found] == ["0", "4", "4", "4", "4"]
    named = [[i for i in range(5) if f"{i}.png" in item["skipped"]] for item in found]
    assert named == [[], [1], [2], [3], []]  # each is counted once
    fewer = SegmentationDataset(samples, "gtav", EvalTransform(None), seed=0, domain=0, skip_bad=2)
    with pytest.raises(DataError, match="3.png"):
        fewer[1]
