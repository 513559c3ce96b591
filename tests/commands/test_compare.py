"""Did it help, without labels: the numbers are those of the networks, and a class that is gone is named."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train_pycda
import train_source_only
from dataset.folders import find_samples
from dataset.labels import CITYSCAPES
from dataset.priors import class_prior
from utils.commands.report import compare
from utils.run_folder.summary import distinct_names, read_summary, starting_run
from utils.scoring.without_labels import CAVEAT, Comparison, describe


@pytest.fixture(scope="module")
def unlabelled(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target's training images without a label, and no test set."""
    root = tmp_path_factory.mktemp("unlabelled")
    shutil.copytree(city / "cityscapes/leftImg8bit/train", root / "leftImg8bit/train")
    return root


@pytest.fixture(scope="module")
def adapted(command, unlabelled: Path, source_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("adapted")
    keys = [f"target.data_dir={unlabelled}", f"model.weights={source_run}", "curriculum.conf_threshold=0.1"]
    train_pycda.main(command(runs, "pycda", *keys))
    return runs / "pycda"


def columns(text: str) -> dict[str, list[float]]:
    """Percent by class, in the order of the table's columns."""
    rows = re.findall(r"^([a-z ]+?) +((?:\d+\.\d\d *)+)", text, re.MULTILINE)
    return {name: [float(cell) for cell in cells.split()] for name, cells in rows}


@pytest.mark.slow
def test_a_run_is_compared_with_what_it_started_from(command, city, unlabelled, source_run, adapted, tmp_path, capsys):
    arguments = command(adapted.parent, "pycda", f"target.data_dir={unlabelled}")
    before = {path: path.stat().st_mtime_ns for path in adapted.rglob("*")}
    compare([*arguments, "--images", "4"])
    assert {path: path.stat().st_mtime_ns for path in adapted.rglob("*")} == before  # it may be on a read-only disk
    table = capsys.readouterr().out
    found, text = columns(table), " ".join(table.split())
    assert list(found) == list(CITYSCAPES.names) and "on 4 of 9 unlabelled target training images" in text
    source, before, after, labels = np.array(list(found.values())).T
    assert np.allclose([source.sum(), before.sum(), after.sum(), labels.sum()], 100, atol=0.2)
    expected = 100 * class_prior(find_samples("gtav", city / "gtav"), "gtav", 19)
    assert np.allclose(source, expected, atol=0.006)
    assert re.search(r"mIoU on 4 of 6 source images: .*source_only \d+.*They were trained on all of them", text)
    assert CAVEAT in text
    # the same shares by the pictures of evaluate.py: of the labelled city, whose images are the same
    chosen = find_samples("cityscapes", city / "cityscapes", split="train")
    listed = "\n".join(str(chosen[i * 9 // 4].image) for i in range(4))
    (tmp_path / "list.txt").write_text(listed)
    keys = ["test.split=train", f"test.data_list={tmp_path}/list.txt", "--weights", str(adapted)]
    evaluate.main(command(tmp_path, "any", *keys, "--save", str(tmp_path / "p")))
    ids = np.concatenate([np.asarray(Image.open(path)).ravel() for path in (tmp_path / "p/label_ids").rglob("*.png")])
    counted = [100 * (ids == CITYSCAPES.export_ids[c]).mean() for c in range(19)]
    assert np.allclose(after, counted, atol=0.006)


@pytest.mark.slow
def test_runs_are_compared_in_the_order_given_and_unseen_source_images_are_said_to_be(
    command, city, unlabelled, source_run, adapted, capsys
):
    shutil.copy(adapted / "last.pth", adapted / "copy.pth")
    arguments = command(adapted.parent, "pycda", f"target.data_dir={unlabelled}", f"source.data_dir={city}/gtav_val")
    compare([*arguments, str(adapted / "copy.pth"), str(source_run), str(adapted)])
    text = " ".join(capsys.readouterr().out.split())
    assert "mIoU on 2 of 2 source images" in text and "trained on none of them" in text
    agreement = re.findall(r"give ([\d.]+) % of the pixels the same class", text)
    assert len(agreement) == 2 and float(agreement[0]) == 100 > float(agreement[1])  # the first and last are one
    assert "copy.pth and pycda give" in text and "source_only and pycda give" in text


def test_a_common_class_that_is_nearly_gone_is_named():
    comparison = Comparison(
        classes=("road", "vegetation", "rider"),
        networks=("before", "after"),
        images=1,
        available=1,
        source=[0.9, 0.01, 0.01],
        predicted=[[0.94, 0.048, 0.012], [0.997, 0.003, 0.0]],
        labels=None,
        agreement=[[1, 0.9], [0.9, 1]],
        source_miou=[60.0, 50.0],
        source_images=1,
        source_available=1,
        trained_on=None,
    )
    text = describe(comparison)
    assert re.search(r"vegetation +1\.00 +4\.80 +0\.30  <- nearly gone", text) and "or before: vegetation." in text
    text = " ".join(text.split())
    assert "It is not known whether" in text and "pseudo-labels" not in text
    kept = replace(comparison, predicted=[comparison.predicted[0]] * 2)
    assert "<- nearly gone" not in describe(kept) and kept.lost() == []


def test_summary_of_a_run(source_run, adapted):
    found = read_summary(adapted / "last.pth")
    assert (found.method, found.start, found.step, found.seed) == ("PyCDA", "source_only", 2, 0)
    assert found.images == {"source": 6, "target": 9, "held_out": 0} and len(found.commit) == 10
    assert starting_run(adapted) == str(source_run) and starting_run(source_run) is None
    assert torch.load(adapted / "last.pth", weights_only=True)["git"].startswith(found.commit)


def test_networks_are_called_by_their_runs_and_by_their_files_where_these_are_the_same():
    best, other = Path("runs/a/best.pth"), Path("runs/b/last.pth")
    assert distinct_names([best, other, Path("runs/a/adabn.pth")]) == ["a", "b", "a/adabn.pth"]
    assert distinct_names([best, Path("runs/a/last.pth")]) == ["a/best.pth", "a/last.pth"]
    assert distinct_names([best, Path("old/a/best.pth")]) == ["runs/a/best.pth", "old/a/best.pth"]


def test_a_run_from_scratch_has_no_start(command, tmp_path):
    train_source_only.main(command(tmp_path, "run", "model.weights=scratch", "val.held_out=0"))
    assert read_summary(tmp_path / "run/last.pth").start is None
