"""Prediction files of other programs: which file belongs to which image, and the meaning of the ids."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.folders import Sample
from dataset.labels import DATA_SETS, id_lookup
from dataset.messages import DataError
from utils.scoring.predictions import find_predictions, score_files

FRANKFURT = "frankfurt_000000_000294"


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), 7, np.uint8)).save(root / name)
    return root


def found(root: Path, *names: str) -> list[str]:
    samples = [Sample(name, Path(name), None) for name in names]
    return [str(path.relative_to(root)) for path in find_predictions(root, samples).values()]


@pytest.mark.parametrize(
    ("files", "names", "expected"),
    [
        (["run_1.png", "run_1_2.png"], ["run_1", "run_1_2"], ["run_1.png", "run_1_2.png"]),
        (["run_1_pred.png", "run_1_2_pred.png"], ["run_1", "run_1_2"], ["run_1_pred.png", "run_1_2_pred.png"]),
        (["a.png", "a_colour.png"], ["a"], ["a.png"]),
        ([f"{FRANKFURT}_leftImg8bit.png"], [FRANKFURT], [f"{FRANKFURT}_leftImg8bit.png"]),
        ([f"frankfurt/{FRANKFURT}.png"], [FRANKFURT], [f"frankfurt/{FRANKFURT}.png"]),
        ([f"{FRANKFURT}.PNG"], [FRANKFURT], [f"{FRANKFURT}.PNG"]),
        (["x/mon/3.png", "x/tue/3.png"], ["mon/3", "tue/3"], ["x/mon/3.png", "x/tue/3.png"]),
        (["mon/3_pred.png", "tue/3.png"], ["mon/3", "tue/3"], ["mon/3_pred.png", "tue/3.png"]),
        (["label_ids/3.png", "colour/3.png", "panels/3.png", "worst/01_3.1_3.png"], ["3"], ["label_ids/3.png"]),
    ],
    ids=str,
)
def test_each_image_has_its_file(tmp_path, files, names, expected):
    assert found(write(tmp_path, *files), *names) == expected


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        (["run_1_2.png"], ["run_1", "run_1_2"], "0 predictions for run_1 below"),
        (["3.png"], ["mon/3"], "0 predictions for mon/3 below .*: exactly one mon/3.png or mon/3_.*.png is needed"),
        (["00010.png"], ["0001"], "0 predictions for 0001"),
        (["a_ids.png", "a_colour.png"], ["a"], "2 predictions for a .*a_colour.png, .*a_ids.png"),
        (["one/label_ids/3.png", "two/label_ids/3.png"], ["3"], "2 predictions for 3"),
    ],
    ids=str,
)
def test_none_or_several_are_an_error(tmp_path, files, names, message):
    with pytest.raises(DataError, match=message):
        found(write(tmp_path, *files), *names)


def test_linked_folders_are_searched_once(tmp_path):
    write(tmp_path / "out/label_ids", "a.png")
    write(tmp_path / "out/colour", "a.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/model").symlink_to(tmp_path / "out")
    (tmp_path / "out/label_ids/back").symlink_to(tmp_path / "links")
    assert found(tmp_path / "links", "a") == ["model/label_ids/a.png"]


@pytest.fixture
def scene(tmp_path: Path) -> Sample:
    """A label of the seven ids 7, 8, 11, 21, 23, 24, 26 and void."""
    label = np.array([[7, 8, 11, 21], [23, 24, 26, 0]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(label).save(tmp_path / "label.png")
    return Sample("a", tmp_path / "a.png", tmp_path / "label.png")


def score(scene: Sample, tmp_path: Path, ids: np.ndarray) -> float:
    (tmp_path / "p").mkdir(exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "p/a.png")
    return score_files(tmp_path / "p", [scene], "cityscapes", 19).miou()


def test_train_ids_are_refused_instead_of_scored_with_nothing(scene, tmp_path, capsys):
    label = np.array(Image.open(scene.label))
    assert score(scene, tmp_path, label) == 1 and "no class" not in capsys.readouterr().out
    with pytest.raises(DataError, match="look like train ids: write label ids .7, 8, 11"):
        score(scene, tmp_path, id_lookup("cityscapes")[label])
    with pytest.raises(DataError, match="ids that cityscapes does not define: 100"):
        score(scene, tmp_path, label + 100 * (label == 26) - 26 * (label == 26))


def test_predictions_have_the_ids_of_cityscapes_whatever_ids_the_labels_have(tmp_path, monkeypatch):
    train_ids = {c: c for c in range(19)}
    own = replace(DATA_SETS["gtav"], train_ids=train_ids, known_ids=frozenset(train_ids))
    monkeypatch.setitem(DATA_SETS, "own", own)
    Image.fromarray(np.array([[0, 13]], np.uint8)).save(tmp_path / "label.png")
    (tmp_path / "p").mkdir()
    Image.fromarray(np.array([[7, 26]], np.uint8)).save(tmp_path / "p/a.png")
    matrix = score_files(tmp_path / "p", [Sample("a", tmp_path / "a.png", tmp_path / "label.png")], "own", 19)
    assert matrix.miou() == 1


def test_many_ids_of_no_class_are_reported(scene, tmp_path, capsys):
    score(scene, tmp_path, np.where(np.arange(32) < 16, 4, 7)[None].repeat(16, 0) + 16)  # 20 and 23
    assert "no class" not in capsys.readouterr().out
    score(scene, tmp_path, np.where(np.arange(32) < 16, 4, 23)[None].repeat(16, 0))
    assert "% of the labelled pixels are predicted as ids that are no class" in capsys.readouterr().out
