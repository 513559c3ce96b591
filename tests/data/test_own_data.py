"""Own data with list files and an id table, with other classes than Cityscapes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import test_adabn
import train_pycda
import train_pycda_spatial
import train_source_only
from dataset.folders import DataError, find_samples
from dataset.labels import id_lookup, read_id_table
from dataset.reading import read_label
from models.weights import WeightsError
from utils.builders.data import Data
from utils.builders.network import build_model, build_network, load_network
from utils.commands import check, export, predict, report
from utils.config.read import build_config
from utils.config.schema import Config
from utils.inference import load
from utils.run_folder.checkpoint import model_state

TABLE = """\
classes:
  - {name: ground, colour: [128, 64, 128], ids: [7, 8, 22]}
  - {name: built, colour: [70, 70, 70], ids: [11, 12, 13]}
  - {name: plants, colour: [107, 142, 35], ids: [21]}
  - {name: moving, colour: [0, 0, 142], ids: [26, 24, 28, 33]}
void: [0, 17, 19, 20, 23]
"""


@pytest.fixture
def own(city: Path, tmp_path: Path) -> Path:
    """List files of the toy city's pictures, and an id table of four classes."""
    (tmp_path / "classes.yaml").write_text(TABLE)
    source = [f"gtav/images/{i:05d}.png gtav/labels/{i:05d}.png" for i in range(1, 7)]
    (tmp_path / "source.txt").write_text("\n".join(source))
    for split in ("train", "val"):
        images = sorted((city / f"cityscapes/leftImg8bit/{split}").rglob("*.png"))
        lines = [str(path) for path in images]
        if split == "val":  # the target training images are unlabelled
            labels = [line.replace("leftImg8bit", "gtFine", 1) for line in lines]
            labels = [label.replace("_leftImg8bit", "_gtFine_labelIds") for label in labels]
            lines = [f"{image} {label}" for image, label in zip(lines, labels, strict=True)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    return tmp_path


def keys(own: Path, city: Path) -> list[str]:
    domains = {"source": "source", "target": "train", "test": "val"}
    found = ["num_classes=4"]
    for name, file in domains.items():
        found += [f"{name}.dataset=list", f"{name}.id_table={own}/classes.yaml"]
        found += [f"{name}.data_list={own}/{file}.txt", f"{name}.data_dir={city}"]
    return found


@pytest.mark.slow
def test_four_classes_through_the_whole_recipe(command: Callable[..., list[str]], city, own):
    mine = keys(own, city)
    train_source_only.main(command(own, "source_only", *mine))
    whole = ["target.crop_size=null", "target.input_size=[96, 64]", "source.crop_size=null"]
    start = f"model.weights={own}/source_only"
    train_pycda_spatial.main(command(own, "spatial", *mine, *whole, start))
    evaluate.main(command(own, "spatial", *mine, "--json", str(own / "s.json"), "--save", str(own / "p")))
    result = json.loads((own / "s.json").read_text())
    assert list(result["iou"]) == ["ground", "built", "plants", "moving"] and "miou_16" not in result
    assert np.array(result["confusion_matrix"]).shape == (4, 4) and (own / "p/confusion.png").is_file()
    assert '"target/share/pixel/plants"' in (own / "spatial/log.jsonl").read_text()
    assert "no labelled held-out" in (own / "spatial/log.txt").read_text()


def test_checkpoint_of_other_classes_is_refused_and_says_which(command, city, own):
    def config_of(table: str, *more: str) -> Config:
        (own / "other.yaml").write_text(table)
        read_id_table.cache_clear()
        _, file, *overrides = command(
            own, "run", *(key.replace("classes.", "other.") for key in keys(own, city)), *more
        )
        return build_config(file, overrides)

    def refused(table: str, *more: str) -> str:
        config = config_of(table, *more)
        with pytest.raises(WeightsError) as error:
            load_network(config, [file], cpu)
        model = replace(config.model, weights=str(file))
        with pytest.raises(WeightsError, match=re.escape(str(error.value))):
            build_model(replace(config, model=model), print, cpu)
        return str(error.value)

    file, cpu, config = own / "run.pth", torch.device("cpu"), config_of(TABLE)
    state = model_state(config, build_network(config, cpu))
    torch.save(state, file)
    first, *others = TABLE.splitlines(keepends=True)
    swapped = "".join([first, others[1], others[0], *others[2:]])
    assert "class 0 is ground there, built here; class 1 is built there, ground here" in refused(swapped)
    assert "configuration: class 2 is plants there, Grün here" in refused(TABLE.replace("plants", "Grün"))
    fewer = "".join([first, *others[:3]])
    assert refused(fewer, "num_classes=3") == f"{file} has 4 classes, the configuration has 3: set the same classes"
    load_network(config_of(TABLE.replace("128, 64", "1, 2").replace("ids: [7,", "ids: [9,")), [file], cpu)
    torch.save({name: value for name, value in state.items() if name != "classes"}, file)  # like older versions
    load_network(config_of(swapped), [file], cpu)
    assert refused(fewer, "num_classes=3") == f"{file} has 4 classes, the configuration has 3: set the same classes"
    torch.save(state | {"classes": {name: entry[:3] for name, entry in state["classes"].items()}}, file)
    with pytest.raises(WeightsError, match="run.pth names 3 classes, its network has 4"):
        load(file)


def test_ids_become_classes_and_unknown_ones_are_named(city, own):
    (sample, *_) = find_samples("list", city, data_list=own / "source.txt")
    table = str(own / "classes.yaml")
    cityscapes, mine = read_label(sample.label, "cityscapes"), read_label(sample.label, table)
    assert ((mine == 0) == np.isin(cityscapes, [0, 1, 9])).all() and (mine[cityscapes == 10] == 255).all()
    (own / "less.yaml").write_text(TABLE.replace("void: [0, 17, 19, 20, 23]", ""))
    with pytest.raises(DataError, match="ids that .*less.yaml does not define: .*23"):
        read_label(sample.label, str(own / "less.yaml"))
    assert read_id_table(table)[0].export_ids[:4].tolist() == [7, 11, 21, 26] and id_lookup(table)[28] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ids: [21]", "ids: [21, 7]"), "repeated: .7"),
        (("ids: [21]", "ids: [300]"), "wrong: .300"),
        (("ids: [21]", "ids: []"), "at least one raw id"),
        (("colour: [70, 70, 70], ", ""), "class 2 has no colour"),
        (("classes:", "klasses:"), "unknown key 'klasses'; the nearest is 'classes'"),
    ],
)
def test_bad_id_table_is_named(tmp_path, change, message):
    (tmp_path / "bad.yaml").write_text(TABLE.replace(*change))
    with pytest.raises(DataError, match=message):
        read_id_table(str(tmp_path / "bad.yaml"))


def test_bad_lists_and_settings_are_named(command, city, own):
    with pytest.raises(DataError, match="needs a data_list"):
        find_samples("list", city)
    with pytest.raises(DataError, match="write 'image_path label_path'"):
        find_samples("list", city, data_list=own / "train.txt")
    assert all(s.label is None for s in find_samples("list", city, data_list=own / "train.txt", labels="optional"))
    with pytest.raises(ValueError, match="num_classes is 19, the data sets have 4"):
        train_source_only.main(command(own, "x", *keys(own, city), "num_classes=19"))
    with pytest.raises(ValueError, match="the classes of source"):
        train_source_only.main(command(own, "x", *keys(own, city), "test.dataset=cityscapes", "test.id_table=null"))
    with pytest.raises(ValueError, match="dataset list needs an id_table"):
        train_source_only.main(command(own, "x", "source.dataset=list"))
    assert build_config(command(own, "x")[1]).source.id_table is None


def test_test_set_has_the_targets_classes_by_default(command, city, own):
    given = [key for key in keys(own, city) if not key.startswith("test.")]
    config = build_config(command(own, "x")[1], given)
    assert config.test.label_kind == f"{own}/classes.yaml" and config.class_table.names[0] == "ground"
    assert Data(config).test("optional") == []  # no list is given
    with pytest.raises(DataError, match="needs a data_list"):
        Data(config).test()
    unlabelled = build_config(command(own, "x")[1], [*given, f"test.data_list={own}/train.txt"])
    assert len(Data(unlabelled).test("optional")) == 9
    assert build_config(command(own, "x")[1], [*given, "test.dataset=gtav"]).test.label_kind == "gtav"


def test_folder_layout_with_own_classes(command, city, own):
    table, given = f"{own}/classes.yaml", ["num_classes=4"]
    for name, layout in (("source", "gtav"), ("target", "cityscapes")):
        given += [f"{name}.id_table={table}", f"{name}.data_dir={city}/{layout}"]
    config = build_config(command(own, "x")[1], given)
    assert config.class_table.names == ("ground", "built", "plants", "moving")
    data = Data(config)
    for samples, options in ((data.source, config.source), (data.test(), config.test)):
        assert options.label_kind == table
        label, cityscapes = (read_label(samples[0].label_file, kind) for kind in (table, "cityscapes"))
        assert (label == 2).any() and ((label == 2) == (cityscapes == 8)).all()
    with pytest.raises(ValueError, match="SYNTHIA has 16-bit"):
        build_config(command(own, "x")[1], [*given, "source.dataset=synthia"]).class_table  # noqa: B018


def test_own_test_images_keep_their_size_unless_one_is_set(command, city, own):
    config = command(own, "x")[1]
    mine = [key for key in keys(own, city) if not key.startswith("test.input_size")]
    assert build_config(config).test.input_size == (1024, 512)
    assert build_config(config, mine).test.input_size is None
    assert build_config(config, [*mine, "test.input_size=[96, 64]"]).test.input_size == (96, 64)


@pytest.mark.slow
def test_predictions_have_the_ids_and_colours_of_the_test_set(command, city, own):
    other = TABLE.replace("[7, 8, 22]", "[22, 8, 7]").replace("[70, 70, 70], ids: [11, 12", "[1, 2, 3], ids: [12, 11")
    (own / "source.yaml").write_text(other)
    mine = [*keys(own, city), f"source.id_table={own}/source.yaml"]
    train_source_only.main(command(own, "run", *mine))
    evaluate.main(command(own, "run", *mine, "--save", str(own / "p"), "--json", str(own / "a.json")))
    evaluate.main(command(own, "run", *mine, "--predictions", str(own / "p"), "--json", str(own / "b.json")))
    network, files = (json.loads((own / name).read_text())["confusion_matrix"] for name in ("a.json", "b.json"))
    assert network == files
    (line, *_) = (own / "val.txt").read_text().splitlines()
    predict.main(command(own, "run", *mine, line.split()[0], "--save", str(own / "q")))
    (picture,) = (own / "q/label_ids").glob("*.png")
    saved = next((own / "p/label_ids").rglob(f"*{picture.name}"))
    assert picture.read_bytes() == saved.read_bytes()
    assert load(own / "run").table.export_ids[:4].tolist() == [7, 11, 21, 26]
    assert load(own / "run").palette.tolist()[1] == [70, 70, 70]
    content = torch.load(own / "run/last.pth", weights_only=True)
    content["classes"] |= {"export_ids": [22, 12, 21, 26]}  # older versions wrote the source's ids
    torch.save(content, own / "run/last.pth")
    export.main(command(own, "run", *mine, "--to", str(own / "to.pth")))
    assert load(own / "to.pth").table.export_ids[:4].tolist() == [7, 11, 21, 26]


@pytest.mark.slow
def test_readme_case_without_a_test_set_from_check_to_export(city, own, tmp_path, monkeypatch, capsys):
    """Own classes, photographs without a label, and no ``test:`` section."""
    domain = "{dataset: list, id_table: classes.yaml, crop_size: [64, 32], data_dir: %s, data_list: %s.txt}"
    lines = ["num_classes: 4", "model: {encoder: resnet10_dilated16, decoder: fcn}"]
    lines += [f"{name}: {domain % (city, file)}" for name, file in (("source", "source"), ("target", "train"))]
    lines += ["train: {num_steps: 2, batch_size: 2, num_workers: 0}"]
    monkeypatch.chdir(own)
    Path("own.yaml").write_text("\n".join(lines))
    assert check.main(["own.yaml", "--workers", "0"]) == 0 and "there is no test set" in capsys.readouterr().out
    train_source_only.main(["own.yaml", "exp_name=own_source"])
    train_pycda.main(["own.yaml", "exp_name=own_pycda", "model.weights=runs/own_source"])
    capsys.readouterr()
    report.compare(["own.yaml", "runs/own_source", "runs/own_pycda", "--images", "3"])
    table = capsys.readouterr().out
    assert re.search(r"^plants( +\d+\.\d\d){3,4}", table, re.MULTILINE) and "own_source and own_pycda give" in table
    test_adabn.main(["own.yaml", "exp_name=own_pycda"])
    assert "converted without scores" in Path("runs/own_pycda/log.txt").read_text()
    report.main(["own.yaml", "exp_name=own_pycda", "--images", "3"])
    page = re.sub(r"base64,[^\"]*", "", Path("runs/own_pycda/report.html").read_text())  # pictures may contain any word
    assert "PyCDA, without test labels: predicts" in page and "nan" not in page
    image = Path("train.txt").read_text().splitlines()[0]
    assert predict.main(["own.yaml", image, "--weights", "runs/own_pycda", "--save", "segmented"]) == 0
    assert export.main(["own.yaml", "--weights", "runs/own_pycda", "--to", "own.pth"]) == 0
    assert load("own.pth").names == ("ground", "built", "plants", "moving")
    with pytest.raises(DataError, match="needs a data_list"):
        evaluate.main(["own.yaml", "exp_name=own_pycda"])
