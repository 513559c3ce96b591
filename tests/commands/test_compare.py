"""Did it help, without labels: the numbers of the networks are correct, and a lost class is named."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import evaluate
import train_adabn
import train_pycda
import train_source_only
from dataset.folders import find_samples
from dataset.labels import CITYSCAPES
from dataset.priors import class_prior
from utils.commands import report
from utils.commands.report import compare
from utils.commands.report_page import verdict_without_labels
from utils.run_folder.summary import distinct_names, read_summary, starting_run
from utils.scoring.without_labels import CAVEAT, Comparison, describe


@pytest.fixture(scope="module")
def unlabelled(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target's training images without labels, and no test set."""
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
    assert {path: path.stat().st_mtime_ns for path in adapted.rglob("*")} == before  # may be on a read-only disk
    table = capsys.readouterr().out
    found, text = columns(table), " ".join(table.split())
    assert list(found) == list(CITYSCAPES.names) and "on 4 of 9 unlabelled target training images" in text
    source, before, after, labels = np.array(list(found.values())).T
    assert np.allclose([source.sum(), before.sum(), after.sum(), labels.sum()], 100, atol=0.2)
    expected = 100 * class_prior(find_samples("gtav", city / "gtav"), "gtav", 19)
    assert np.allclose(source, expected, atol=0.006)
    assert re.search(r"mIoU on 4 of 6 source images: .*source_only \d+.*They were trained on all of them", text)
    assert CAVEAT in text
    # the pictures of evaluate.py give the same shares: the labelled city has the same images
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


@pytest.mark.slow
def test_the_control_is_found_among_the_runs(command, unlabelled, source_run, adapted, capsys):
    keys = [f"target.data_dir={unlabelled}", f"model.weights={source_run}"]
    train_adabn.main(command(adapted.parent, "control", *keys))
    capsys.readouterr()
    arguments = command(adapted.parent, "pycda", *keys)
    compare([*arguments, str(source_run), str(adapted.parent / "control"), str(adapted), "--images", "2"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Effect of the curriculum of pycda, relative to the control control: " in text


def test_runs_of_another_version_are_compared_and_reported(command, source_run, tmp_path, capsys):
    run = tmp_path / "old"
    shutil.copytree(source_run, run)
    keys = yaml.safe_load((run / "config.yaml").read_text())
    del keys["model"]["weights"], keys["train"]["print_freq"]
    keys |= {"key_of_another_version": 3, "curriculum": keys["curriculum"] | {"gone": "x"}, "group": {"of_keys": 1}}
    (run / "config.yaml").write_text(yaml.safe_dump(keys))
    compare([*command(tmp_path, "any"), str(run), str(source_run), "--images", "2"])
    assert "source_only took no common class away from old" in " ".join(capsys.readouterr().out.split())
    report.main([*command(tmp_path, "old"), "--images", "2"])
    page = (run / "report.html").read_text()
    assert "key_of_another_version: 3  (not a key now)" in page and "curriculum.gone: x  (not a key now)" in page


def compared(source: list[float], *predicted: list[float], **others: object) -> Comparison:
    """Comparison of networks "before", "after", ... that predict these shares of road, vegetation and rider."""
    count = len(predicted)
    comparison = Comparison(
        classes=("road", "vegetation", "rider"),
        networks=("before", "after", "third", "fourth")[:count],
        starts=[0] * count,
        controls=[None] * count,
        images=1,
        available=1,
        source=source,
        predicted=list(predicted),
        labels=None,
        agreement=[[1 if i == j else 0.9 for j in range(count)] for i in range(count)],
        source_miou=[60.0, 50.0, 40.0, 30.0][:count],
        source_images=1,
        source_available=1,
        trained_on=None,
    )
    return replace(comparison, **others)


def said(comparison: Comparison) -> str:
    return " ".join(describe(comparison).split())


SIGN = "This is a sign that it did not help"


def test_classes_that_were_taken_away_are_named_as_a_sign():
    comparison = compared([0.9, 0.01, 0.01], [0.94, 0.048, 0.012], [0.997, 0.003, 0.0])
    assert re.search(r"vegetation +1\.00 +4\.80 +0\.30  <- after: taken away\n", describe(comparison))
    text = said(comparison)
    assert "after took away classes that before had: vegetation (source 1.0, 4.8 -> 0.3 %)." in text and SIGN in text
    assert "It is not known whether" in text and "pseudo-labels" not in text
    kept = said(replace(comparison, predicted=[comparison.predicted[0]] * 2))
    assert "<-" not in kept and SIGN not in kept and "after took no common class away from before" in kept
    # back to its share of the source: a class with too much before was not taken away
    assert SIGN not in said(compared([0.9, 0.01, 0.01], [0.8, 0.19, 0.01], [0.98, 0.01, 0.01]))


def test_classes_gone_before_are_no_sign_and_classes_brought_back_are_named():
    text = said(compared([0.70, 0.25, 0.05], [0.985, 0.013, 0.002], [0.944, 0.053, 0.003]))
    assert "vegetation 25.00 1.30 5.30 <- after: brought back" in text and SIGN not in text
    assert "rider 5.00 0.20 0.30 <- after: gone before" in text
    brought_back = "vegetation (source 25.0, 1.3 -> 5.3 %)"
    assert f"after brought back classes of the source that before had lost: {brought_back}" in text
    assert "already gone in before: rider (source 5.0, 0.2 -> 0.3 %)" in text
    alone = said(compared([0.70, 0.25, 0.05], [0.985, 0.013, 0.002]))
    assert "already gone in before: vegetation" in alone and SIGN not in alone and "took" not in alone


def test_only_classes_taken_away_are_a_warning_in_the_report():
    taken = verdict_without_labels("PyCDA", compared([0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.95, 0.05, 0.0]))
    assert re.search(r'<p class="warning">after took away classes that before had: rider .*not help\.</p>', taken)
    gone = verdict_without_labels("PyCDA", compared([0.9, 0.05, 0.05], [0.95, 0.05, 0.0], [0.95, 0.05, 0.0]))
    assert 'class="warning"' not in gone and "already gone in before: rider" in gone


def test_each_network_is_judged_against_the_one_that_it_started_from():
    shares = [0.70, 0.25, 0.05], [0.985, 0.013, 0.002], [0.7, 0.25, 0.05], [0.9, 0.1, 0.0], [0.986, 0.012, 0.002]
    text = describe(compared(*shares, starts=[0, 0, 1, 0]))
    assert re.search(r"rider .*<- after: brought back, third: taken away, fourth: gone before\n", text)
    text = " ".join(text.split())
    assert "third took away classes that after had: rider (source 5.0, 5.0 -> 0.0 %)" in text and text.count(SIGN) == 1


def test_effect_of_a_curriculum_is_shown_beside_its_control():
    shares = [0.7, 0.25, 0.05], [0.7, 0.25, 0.05], [0.7, 0.25, 0.05], [0.799, 0.2, 0.001]
    text = said(compared(*shares, controls=[None, None, 1]))
    assert "Effect of the curriculum of third, relative to the control after: 10.0 % of the pixels get another" in text
    assert "road +9.9, vegetation -5.0, rider -4.9 (taken away); -10.0 mIoU on the source." in text
    assert "curriculum of" not in said(compared(*shares))


def test_heads_keep_the_end_of_a_name_and_marks_all_of_it():
    names = ("rendered_streets_source_only", "rendered_streets_pycda")
    comparison = compared([0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.95, 0.05, 0.0], networks=names)
    text = describe(replace(comparison, labels=[0.9, 0.05, 0.05]))
    assert text.splitlines()[1].split()[2:4] == ["…_source_only", "…treets_pycda"]
    assert "<- rendered_streets_pycda: taken away" in text
    assert "in train mode" in text and "in eval mode" in text  # why the column of pseudo-labels differs


def test_summary_of_a_run(source_run, adapted):
    found = read_summary(adapted / "last.pth")
    assert (found.method, found.start, found.step, found.seed) == ("PyCDA", "source_only", 2, 0)
    assert found.images == {"source": 6, "target": 9, "held_out": 0}
    assert starting_run(adapted) == str(source_run) and starting_run(source_run) is None
    assert found.commit == torch.load(adapted / "last.pth", weights_only=True)["git"][:10]  # or unknown


def test_networks_are_called_by_their_runs_and_by_their_files_where_these_are_the_same():
    best, other = Path("runs/a/best.pth"), Path("runs/b/last.pth")
    assert distinct_names([best, other, Path("runs/a/adabn.pth")]) == ["a", "b", "a/adabn.pth"]
    assert distinct_names([best, Path("runs/a/last.pth")]) == ["a/best.pth", "a/last.pth"]
    assert distinct_names([best, Path("old/a/best.pth")]) == ["runs/a/best.pth", "old/a/best.pth"]


def test_a_run_from_scratch_has_no_start(command, tmp_path):
    train_source_only.main(command(tmp_path, "run", "model.weights=scratch", "val.held_out=0"))
    assert read_summary(tmp_path / "run/last.pth").start is None
