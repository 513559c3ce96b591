"""An image is identified by its path: same names in several folders, other spellings, lists that repeat an image."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from dataset.folders import find_samples, hold_out, read_list, write_list
from dataset.messages import DataError
from utils.builders.data import Data
from utils.config.schema import Config

DAYS = ("monday", "tuesday", "friday")
TABLE = "classes: [{name: a, colour: [0, 0, 0], ids: [7]}, {name: b, colour: [9, 9, 9], ids: [8]}]"


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Frames 0000 to 0005 of three days in the Cityscapes layout; each day has its own pictures and labels."""
    for split in ("train", "val"):
        for number, day in enumerate(DAYS):
            for i in range(6):
                stem = f"{split}/{day}/{i:04d}"
                save(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", np.full((32, 64, 3), 40 * number + i))
                save(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", np.full((32, 64), (7, 8, 11)[number]))
    return tmp_path


def own(root: Path, *lines: str) -> Config:
    """A configuration whose source and target are the lines of a list."""
    config = Config()
    (root / "list.txt").write_text("\n".join(lines))
    (root / "t.yaml").write_text(TABLE)
    for domain in (config.source, config.target):
        domain.dataset, domain.id_table = "list", str(root / "t.yaml")
        domain.data_dir, domain.data_list = str(root), str(root / "list.txt")
    return config


def pair(root: Path, name: str, label: int = 7) -> str:
    save(root / f"{name}.png", np.zeros((4, 6, 3)))
    save(root / f"labels/{name}.png", np.full((4, 6), label))
    return f"{name}.png labels/{name}.png"


def test_frames_of_one_number_are_several_images(days):
    found = find_samples("cityscapes", days)
    assert [s.name for s in found[:2]] == ["friday/0000", "friday/0001"] and len({s.name for s in found}) == 18
    kept, held_out = hold_out(found, 4, seed=0)
    assert len(kept) == 14 and len(held_out) == 4 and {s.image.parent.name for s in held_out} == set(DAYS)


def test_each_image_gets_its_files_and_its_score(command, days, source_run, tmp_path):
    keys = [f"target.data_dir={days}", "--weights", str(source_run), "--save", str(tmp_path / "p")]
    evaluate.main(command(tmp_path, "any", *keys, "--json", str(tmp_path / "a.json")))
    for kind in ("colour", "label_ids", "panels"):
        files = {str(path.relative_to(tmp_path / "p" / kind)) for path in (tmp_path / "p" / kind).rglob("*.png")}
        assert files == {f"{day}/{i:04d}.png" for day in DAYS for i in range(6)}
    for folder in ("p", "p/label_ids"):  # folders that --save wrote
        keys = [f"target.data_dir={days}", "--predictions", str(tmp_path / folder)]
        evaluate.main(command(tmp_path, "any", *keys, "--json", str(tmp_path / "b.json")))
        a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
        assert a["confusion_matrix"] == b["confusion_matrix"] and np.sum(b["confusion_matrix"]) == 18 * 32 * 64


def test_names_of_own_images_keep_folders_and_stay_distinct(tmp_path):
    root, outside = tmp_path / "set", save(tmp_path / "elsewhere/x.png", np.zeros((2, 2)))
    for name in ("a/1.png", "a/1.jpg", "b/1.png", "a_1.png"):
        save(root / name, np.zeros((2, 2)))
    (root / "list.txt").write_text("a/1.png\na/1.jpg\n./b/1.png\na_1.png\n../elsewhere/../elsewhere/x.png\n")
    found = find_samples("list", root, data_list=root / "list.txt", labels="optional")
    assert [s.name for s in found] == ["a/1.png", "a/1.jpg", "b/1", "a_1", str(outside.with_suffix(""))[1:]]
    assert not any(Path(s.name).is_absolute() or ".." in Path(s.name).parts for s in found)


def test_two_images_of_one_name_are_refused_with_both(tmp_path):
    for name in ("a.png", "a.jpg", "a.jpg.png"):
        save(tmp_path / name, np.zeros((2, 2)))
    (tmp_path / "list.txt").write_text("a.png\na.jpg\na.jpg.png\n")
    with pytest.raises(DataError, match="a.jpg and .*a.jpg.png would share the name a.jpg"):
        find_samples("list", tmp_path, data_list=tmp_path / "list.txt", labels="optional")


def test_held_out_images_are_left_out_however_their_paths_are_written(tmp_path):
    lines = [pair(tmp_path, f"v{i}") for i in range(6)]
    (tmp_path / "link").symlink_to(tmp_path)
    config = own(tmp_path, *lines)
    config.val.data_list = str(tmp_path / "val.txt")
    spelled = [f"{tmp_path}/v0.png {tmp_path}/labels/v0.png", "./v1.png labels/v1.png", "link/v2.png labels/v2.png"]
    Path(config.val.data_list).write_text("\n".join(spelled))
    target, held_out = Data(config).target, Data(config).held_out
    assert [s.image.name for s in target] == ["v3.png", "v4.png", "v5.png"] and len(held_out) == 3


def test_a_training_list_may_repeat_a_line_and_a_test_list_may_not(tmp_path):
    lines = [pair(tmp_path, f"v{i}") for i in range(4)]
    config = own(tmp_path, *lines, lines[0], lines[0])
    config.val.held_out = 2
    assert [s.name for s in Data(config).source].count("v0") == 3
    target, held_out = Data(config).target, Data(config).held_out
    assert (
        len(held_out) == 2
        and len(target) + len(held_out) in (4, 6)
        and not {s.name for s in held_out} & {s.name for s in target}
    )
    for text in ("\n".join([*lines, lines[0]]), "v0.png labels/v0.png\n./v0.png labels/v0.png"):
        (tmp_path / "test.txt").write_text(text)
        with pytest.raises(DataError, match="v0.*(more than once|share the name)"):
            find_samples("list", tmp_path, data_list=tmp_path / "test.txt")


def test_paths_with_spaces(tmp_path):
    save(tmp_path / "my pictures/a 1.png", np.zeros((2, 2, 3)))
    save(tmp_path / "my labels/a 1.png", np.zeros((2, 2)))
    for between in ("\t", " ", "   "):
        (tmp_path / "list.txt").write_text(f"my pictures/a 1.png{between}my labels/a 1.png\n")
        (sample,) = find_samples("list", tmp_path, data_list=tmp_path / "list.txt")
        assert (sample.name, sample.label) == ("my pictures/a 1", tmp_path / "my labels/a 1.png")
    (tmp_path / "list.txt").write_text("my pictures/a 1.png\n")
    (sample,) = find_samples("list", tmp_path, data_list=tmp_path / "list.txt", labels="optional")
    assert sample.image.name == "a 1.png" and sample.label is None
    for name in ("a", "b", "a b"):
        save(tmp_path / f"{name}.png", np.zeros((2, 2)))
    os.rename(tmp_path / "a.png", tmp_path / "a")
    (tmp_path / "list.txt").write_text("a b.png\n")
    with pytest.raises(DataError, match="can be read in 2 ways: put a tab between"):
        find_samples("list", tmp_path, data_list=tmp_path / "list.txt", labels="optional")


def test_written_lists_read_back_with_spaces_and_repetitions(tmp_path):
    lines = [pair(tmp_path, "a b").replace(" labels", "\tlabels"), pair(tmp_path, "c")]
    source = Data(own(tmp_path, *lines, lines[1])).source
    write_list(source, tmp_path / "used.txt", tmp_path)
    assert read_list(tmp_path / "used.txt", repeats=True) == ["a b.png", "c.png", "c.png"]


def test_encodings_of_list_files(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffä.png\r\nb.png\r\n".encode())
    assert read_list(tmp_path / "list.txt") == ["ä.png", "b.png"]
    for encoding, message in (("utf-16", "UTF-16"), ("latin-1", r"line 2, is not UTF-8 \(byte 0xe4")):
        (tmp_path / "list.txt").write_bytes("b.png\nä.png\n".encode(encoding))
        with pytest.raises(DataError, match=f"list.txt.*{message}"):
            read_list(tmp_path / "list.txt")


@pytest.mark.parametrize("header", ["image label", "image,label", "Bild\tMaske", "# path"])
def test_a_header_is_named_with_its_line(tmp_path, header):
    (tmp_path / "list.txt").write_text(f"\n{header}\n{pair(tmp_path, 'a')}\n{pair(tmp_path, 'b')}\n")
    with pytest.raises(DataError, match="list.txt, line 2, .* looks like a header"):
        find_samples("list", tmp_path, data_list=tmp_path / "list.txt")


@pytest.mark.parametrize("label", ["b.png", "./b.png", "link/b.png"])
def test_an_image_as_its_own_label_is_named_with_its_line(tmp_path, label):
    first, _ = pair(tmp_path, "a"), pair(tmp_path, "b")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "list.txt").write_text(f"{first}\n\nb.png {label}\n")
    for labels in ("required", "optional"):
        with pytest.raises(DataError, match="list.txt, line 3, .*b.png as its own label"):
            find_samples("list", tmp_path, data_list=tmp_path / "list.txt", labels=labels)


def test_a_repetition_in_a_long_list_is_found_at_once(tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{i}.png\n" for i in range(200_000)) + "7.png\n")  # quadratic: hours
    with pytest.raises(DataError, match="lists 7.png more than once"):
        read_list(tmp_path / "list.txt")


def test_labels_without_a_labelled_pixel_are_none(tmp_path):
    lines = [pair(tmp_path, f"v{i}", label=255) for i in range(4)]
    config, said = own(tmp_path, *lines), []
    config.val.held_out = 2
    data = Data(config, said.append)
    target, held_out = data.target, data.held_out
    assert (len(target), held_out, len(said)) == (4, [], 1) and "all pixels of the 2 held-out labels" in said[0]
    with pytest.raises(DataError, match="all pixels of the 4 source labels .* are void"):
        _ = Data(config).source
    pair(tmp_path, "v3")
    assert len(Data(config).source) == 4
