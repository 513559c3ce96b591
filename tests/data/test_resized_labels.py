"""GTAV labels with another size than their image: resized only for training, as in the released code."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_source_only
from dataset.folders import Sample, find_samples
from dataset.loader import SegmentationDataset
from dataset.messages import DataError
from dataset.reading import read_label, read_pair, resized_pairs
from dataset.transforms import JointTransform, normalise, planes
from utils.commands import check

LARGER, OTHER = (97, 65), (96, 62)  # aspects 0.5 % and 3.2 % from that of 96x64


@pytest.fixture
def gtav(city: Path, tmp_path: Path) -> Path:
    """Six pictures with labels; two labels are larger than their images."""
    shutil.copytree(city / "gtav", tmp_path / "gtav")
    for name in ("00002", "00005"):
        resize(tmp_path / f"gtav/labels/{name}.png", LARGER)
    return tmp_path / "gtav"


def resize(path: Path, size: tuple[int, int]) -> None:
    Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)


def samples(gtav: Path) -> list[Sample]:
    return find_samples("gtav", gtav)


def test_image_and_label_are_resized_each_by_itself(gtav):
    """As in the released code, before random augmentation."""
    found, size = samples(gtav), (80, 50)
    read = partial(read_pair, resizable=True)
    data = SegmentationDataset(found, "gtav", JointTransform(size=size), seed=0, domain=0, read=read)
    image = Image.open(found[1].image).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    label = Image.fromarray(read_label(found[1].label_file, "gtav")).resize(size, Image.Resampling.NEAREST)
    assert torch.equal(data[1]["image"], normalise(planes(image)))
    assert np.array_equal(data[1]["label"].numpy(), np.asarray(label))
    whole = SegmentationDataset(found, "gtav", JointTransform(), seed=0, domain=0, read=read)
    assert whole[1]["image"].shape[1:] == whole[1]["label"].shape == (64, 96)


def test_those_of_a_training_are_counted_and_others_are_errors(gtav):
    found = samples(gtav)
    assert [sample.name for sample in resized_pairs(found * 2, "gtav")] == ["00002", "00005"]
    assert resized_pairs(found, "cityscapes") == []
    for options in ({"kind": "gtav"}, {"kind": "cityscapes", "resizable": True}):
        with pytest.raises(DataError, match=r"00002.png is 96x64, its label .* 97x65 \(W x H\)"):
            read_pair(found[1], **options)
    resize(found[3].label_file, OTHER)
    with pytest.raises(DataError, match=r"00004.png is 96x64, its label .* 96x62"):
        resized_pairs(found, "gtav")
    assert len(resized_pairs(found, "gtav", skip_bad=True)) == 2
    with pytest.raises(DataError, match="96x62"):
        read_pair(found[3], "gtav", resizable=True)


def test_training_says_how_many_and_refuses_another_aspect_at_the_start(command, gtav, tmp_path):
    keys = [f"source.data_dir={gtav}", "source.input_size=[90, 60]", "train.num_steps=3", "val.held_out=0"]
    train_source_only.main(command(tmp_path, "run", *keys))
    log = (tmp_path / "run/log.txt").read_text()
    assert "2 of 6 source labels have another size than their images" in log and "step 3 " in log
    resize(gtav / "labels/00001.png", OTHER)
    with pytest.raises(DataError, match="00001.png is 96x64, its label"):
        train_source_only.main(command(tmp_path, "refused", *keys))
    assert not (tmp_path / "refused").exists()


def test_check_remarks_on_them(command, gtav, tmp_path, capsys):
    arguments = [*command(tmp_path, "x", f"source.data_dir={gtav}"), "--workers", "0"]
    assert check.main(arguments) == 0
    out = capsys.readouterr().out
    assert "remark: 2 labels have another size than their images" in out and "0 errors, 1 remarks" in out
    resize(gtav / "labels/00001.png", OTHER)
    assert check.main(arguments) == 1
    assert "the image is 96x64, the label 96x62" in capsys.readouterr().out
    as_test = ["test.dataset=gtav", f"test.data_dir={gtav}"]
    assert check.main([*arguments, *as_test]) == 1
    assert "4 errors, 1 remarks" in capsys.readouterr().out  # in a test set, labels of another size are errors too
