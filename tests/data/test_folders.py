"""Finding and reading pairs: the three layouts, list files, and everything that can be wrong with a download."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.folders import DataError, find_samples, hold_out, write_list
from dataset.loader import SegmentationDataset
from dataset.reading import read_image, read_label
from dataset.transforms import EvalTransform
from tests.data.png import colour16


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pair(root: Path, name: str, ids: int = 7, size: tuple[int, int] = (4, 6)) -> None:
    save(root / "images" / name, np.zeros((*size, 3), np.uint8))
    save(root / "labels" / name, np.full(size, ids, np.uint8))


@pytest.fixture
def gtav(tmp_path: Path) -> Path:
    for name in ("00001.png", "00002.png", "00003.png"):
        pair(tmp_path, name)
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for city, count in (("aachen", 6), ("bochum", 3), ("zurich", 1)):
        for i in range(count):
            stem = f"train/{city}/{city}_{i:06d}_000019"
            save(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", np.zeros((4, 8, 3), np.uint8))
            save(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", np.full((4, 8), 26, np.uint8))
    return tmp_path


def test_scan_finds_pairs_in_order(gtav, cityscapes):
    assert [s.name for s in find_samples("gtav", gtav)] == ["00001", "00002", "00003"]
    found = find_samples("cityscapes", cityscapes)
    assert len(found) == 10 and found[0].name == "aachen_000000_000019"
    assert found[0].label.name == "aachen_000000_000019_gtFine_labelIds.png"


def test_lists_relative_to_the_set_or_to_its_image_folder(gtav, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("00003.png\n\nimages/00001.png\n")
    assert [s.name for s in find_samples("gtav", gtav, data_list=listed)] == ["00003", "00001"]
    labels = tmp_path / "labels.txt"
    labels.write_text("labels/00002.png\n00001.png\n")
    found = find_samples("gtav", gtav, data_list=listed, label_list=labels)
    assert [s.label.name for s in found] == ["00002.png", "00001.png"]


def test_written_list_reads_back(cityscapes, tmp_path):
    found = find_samples("cityscapes", cityscapes)[2:7]
    write_list(found, tmp_path / "used.txt", cityscapes)
    assert find_samples("cityscapes", cityscapes, data_list=tmp_path / "used.txt") == found


def test_missing_pieces_are_named(gtav, tmp_path):
    with pytest.raises(DataError, match="no folder .*nowhere/images; gtav images are expected"):
        find_samples("gtav", tmp_path / "nowhere")
    (gtav / "labels/00002.png").unlink()
    with pytest.raises(DataError, match="1 of 3 images .*00002.png.*Complete the download"):
        find_samples("gtav", gtav)
    assert [s.label is None for s in find_samples("gtav", gtav, labels="optional")] == [False, True, False]
    for image in (gtav / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="no image in"):
        find_samples("gtav", gtav)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("00001.png\n00009.png\n", "00009.png, which is neither"),
        ("00001.png\n00001.png\n", "more than once"),
        ("\n", "lists no file"),
    ],
)
def test_bad_lists_are_named(gtav, tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        find_samples("gtav", gtav, data_list=tmp_path / "list.txt")


def test_label_list_of_the_images_is_refused(gtav, tmp_path):
    (tmp_path / "list.txt").write_text("images/00001.png\nimages/00002.png\n")
    with pytest.raises(DataError, match="list.txt, line 1, 'images/00001.png', names .* as its own label"):
        find_samples("gtav", gtav, data_list=tmp_path / "list.txt", label_list=tmp_path / "list.txt")


def test_label_list_of_another_length_is_refused(gtav, tmp_path):
    (tmp_path / "labels.txt").write_text("00001.png\n")
    with pytest.raises(DataError, match="1 lines for 3 images"):
        find_samples("gtav", gtav, label_list=tmp_path / "labels.txt")


def test_hold_out_is_spread_fixed_and_blind_to_order(cityscapes):
    found = find_samples("cityscapes", cityscapes)
    kept, held_out = hold_out(found, 5, seed=0)
    assert len(kept) == len(held_out) == 5 and not set(kept) & set(held_out)
    assert [sum(s.name.startswith(city) for s in held_out) for city in ("aachen", "bochum")] in ([3, 2], [3, 1])
    assert hold_out(found[::-1], 5, seed=0) == (kept, held_out)
    assert hold_out(found, 5, seed=1)[1] != held_out
    with pytest.raises(DataError, match="between 1 and 9"):
        hold_out(found, 10, seed=0)


def test_truncated_image_and_label_are_named(gtav):
    for folder, read in (("images", read_image), ("labels", lambda path: read_label(path, "gtav"))):
        path = save(gtav / folder / "00009.png", np.random.default_rng(0).integers(0, 30, (64, 64), np.uint8))
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(DataError, match="00009.png"):
            read(path)


def test_palette_label_is_read_as_ids(tmp_path):
    label = Image.fromarray(np.array([[7, 8], [26, 0]], np.uint8), "P")
    label.putpalette([255 - i // 3 for i in range(768)])
    label.save(tmp_path / "label.png")
    assert read_label(tmp_path / "label.png", "gtav").tolist() == [[0, 1], [13, 255]]


def test_ids_outside_the_table_and_colours_are_refused(tmp_path):
    with pytest.raises(DataError, match="a.png has ids that cityscapes does not define: 77"):
        read_label(save(tmp_path / "a.png", np.full((2, 2), 77, np.uint8)), "cityscapes")
    with pytest.raises(DataError, match="colour image"):
        read_label(save(tmp_path / "b.png", np.zeros((2, 2, 3), np.uint8)), "gtav")


def test_synthia_label_of_16_bits_is_read_exactly_and_8_bits_are_refused(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint16)
    pixels[..., 0] = [[3, 4, 1], [22, 21, 0]]
    pixels[..., 1] = 60000  # instances must not matter
    colour16(tmp_path / "label.png", pixels)
    assert read_label(tmp_path / "label.png", "synthia").tolist() == [[0, 1, 10], [255, 3, 255]]
    with pytest.raises(DataError, match="saved again and lost its ids"):
        read_label(save(tmp_path / "again.png", np.zeros((2, 2, 3), np.uint8)), "synthia")
    pixels[..., 0] = 300
    colour16(tmp_path / "label.png", pixels)
    with pytest.raises(DataError, match="300"):
        read_label(tmp_path / "label.png", "synthia")


def test_image_and_label_of_different_sizes_are_refused(gtav):
    pair(gtav, "00004.png")
    save(gtav / "labels/00004.png", np.full((4, 5), 7, np.uint8))
    folder = SegmentationDataset(find_samples("gtav", gtav), "gtav", EvalTransform(None), seed=0, domain=0)
    with pytest.raises(DataError, match="00004.png is 6x4, its label .* 5x4"):
        folder[3]
    assert folder[0]["label"].dtype == torch.uint8 and folder[0]["image"].shape == (3, 4, 6)


def test_label_that_is_needed_and_missing_is_named(gtav):
    (sample, *_) = find_samples("gtav", gtav)
    assert sample.label_file == sample.label
    with pytest.raises(DataError, match="00001.png has no label"):
        _ = replace(sample, label=None).label_file


def test_label_that_is_not_wanted_is_not_read(cityscapes):
    found = find_samples("cityscapes", cityscapes, labels="optional")[:1]
    found[0].label.unlink()
    found = find_samples("cityscapes", cityscapes, labels="optional")[:1]
    item = SegmentationDataset(found, "cityscapes", EvalTransform(None), seed=0, domain=1)[0]
    assert (item["label"] == 255).all() and item["valid"].all()
