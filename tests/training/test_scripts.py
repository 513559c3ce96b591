"""Every script for a few steps on toy-city data: results, files and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import evaluate
import test_adabn as convert
import train_adabn
import train_pycda
import train_pycda_spatial
import train_source_only
from dataset.folders import find_samples
from dataset.labels import id_lookup
from dataset.reading import read_label
from models.weights import WeightsError
from tests.data.png import colour16
from utils.config.schema import ConfigError
from utils.metrics import ConfusionMatrix

WHOLE = ["target.crop_size=null", "target.input_size=[96, 64]"]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["model"]


def records(run: Path) -> list[dict]:
    """Losses and scores, without the class shares of the predictions."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in found if "target/share/prediction/road" not in record]


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def test_run_folder_holds_config_logs_lists_and_checkpoints(source_run):
    expected = {"best.pth", "last.pth", "config.yaml", "log.txt", "log.jsonl", "tensorboard", "lists", "run.json"}
    assert expected <= {path.name for path in source_run.iterdir()}
    assert yaml.safe_load((source_run / "config.yaml").read_text())["train"]["num_steps"] == 2
    losses, _, validation = records(source_run)
    assert losses["source/total"] == pytest.approx(losses["source/main"] + 0.4 * losses["source/aux"], rel=1e-5)
    scores = {"val/miou", "val/miou_16", "val/miou_13", "val/pixel_accuracy"}
    assert scores <= validation.keys() or "val/miou" in records(source_run)[-1]
    held_out, target = ((source_run / "lists" / f"{n}.txt").read_text().split() for n in ("held_out", "target"))
    assert len(held_out) == 3 and len(target) == 6 and not set(held_out) & set(target)
    log = (source_run / "log.txt").read_text()
    assert "road" in log and "1 process(es) on cpu, " in log and " thread(s), 0 loader process(es)" in log
    assert f"done: {source_run / 'best.pth'}; next: sh run.sh evaluate.py {source_run / 'config.yaml'}" in log


def test_command_that_the_end_of_a_training_names_works(source_run, capsys):
    log = (source_run / "log.txt").read_text()
    script, *arguments = log.split("next: sh run.sh ")[1].splitlines()[0].split()
    assert script == "evaluate.py"
    evaluate.main(arguments)
    assert "pixel_accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_source_loss_has_a_weight(command, tmp_path):
    """Of the whole loss, like the released ``lambda_trade_off``. Half the loss at twice the rates is the same step."""
    plain = ["train.num_steps=1", "val.held_out=0", "train.momentum=0", "train.weight_decay=0"]
    rates = {"whole": (0.01, 0.02, 1), "half": (0.02, 0.04, 0.5)}
    for name, (encoder, decoder, weight) in rates.items():
        keys = [f"train.lr_encoder={encoder}", f"train.lr_decoder={decoder}", f"train.lambda_source={weight}"]
        train_source_only.main(command(tmp_path, name, *plain, *keys))
    whole, half = (records(tmp_path / name)[0] for name in rates)
    assert half["source/total"] == 0.5 * whole["source/total"] and half["source/aux"] == whole["source/aux"]
    a, b = (weights(tmp_path / name / "last.pth") for name in rates)
    assert all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-7) for name in a)


@pytest.mark.slow
def test_training_fits_two_images(command, city, tmp_path):
    (tmp_path / "two.txt").write_text("00001.png\n00002.png\n")
    keys = ["train.num_steps=15", "val.held_out=0", f"source.data_list={tmp_path}/two.txt", "source.crop_size=[96, 64]"]
    train_source_only.main(command(tmp_path, "fit", *keys, "train.lr_encoder=0.01", "train.lr_decoder=0.05"))
    main = [record["source/main"] for record in records(tmp_path / "fit")]
    assert np.mean(main[-3:]) < 0.5 * main[0]
    assert not (tmp_path / "fit/best.pth").exists()  # no validation: the last checkpoint is the result


@pytest.mark.slow
def test_adabn_moves_the_statistics_and_nothing_else(command, source_run, tmp_path):
    """After one step: the same weights as source only, other statistics."""
    train_source_only.main(command(tmp_path, "without", "train.num_steps=1"))
    train_adabn.main(command(tmp_path, "with", "train.num_steps=1"))
    without, with_ = weights(tmp_path / "without/last.pth"), weights(tmp_path / "with/last.pth")
    assert all(torch.equal(without[name], with_[name]) for name in without if not is_statistic(name))
    assert not torch.equal(without["encoder.bn1.running_mean"], with_["encoder.bn1.running_mean"])


@pytest.mark.slow
def test_pycda_starts_from_source_only_and_steps_twice(command, source_run, tmp_path):
    start = f"model.weights={source_run}"
    keys = ["train.num_steps=1", "train.momentum=0.0", "train.weight_decay=0.0"]
    train_adabn.main(command(tmp_path, "control", start, *keys))
    train_pycda.main(command(tmp_path, "pycda", start, "train.num_steps=1"))
    config = yaml.safe_load((tmp_path / "pycda/config.yaml").read_text())["train"]
    assert config["momentum"] == config["weight_decay"] == 0
    losses = records(tmp_path / "pycda")[0]
    total = losses["target/pixel"] + losses["target/region"] + losses["target/image"]
    assert losses["target/total"] == pytest.approx(total, rel=1e-5)
    assert losses["source/total"] == records(tmp_path / "control")[0]["source/total"]
    pycda, control = weights(tmp_path / "pycda/last.pth"), weights(tmp_path / "control/last.pth")
    assert not torch.equal(pycda["encoder.conv1.weight"], control["encoder.conv1.weight"])


def test_spatial_ratio_computes_its_prior_beside_the_run(command, source_run, tmp_path):
    keys = [f"model.weights={source_run}", "train.num_steps=1", "curriculum.lambda_balance=0.4"]
    train_pycda_spatial.main(command(tmp_path, "spatial", *WHOLE, *keys))
    (prior,) = (tmp_path / "spatial/priors").iterdir()
    assert np.load(prior).shape == (64, 96, 19)
    losses = records(tmp_path / "spatial")[0]
    total = 0.4 * losses["target/image"] + losses["target/region"] + 0.4 * losses["target/spatial"]
    assert losses["target/total"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("script", "keys", "message"),
    [
        (train_pycda, ["curriculum.lambda_eq=0.4"], "train_pycda_spatial.py"),
        (train_pycda_spatial, ["curriculum.lambda_eq=0"], "train_pycda.py"),
        (train_pycda_spatial, ["target.crop_size=[64, 32]"], "whole images"),
    ],
)
def test_wrong_script_names_the_right_one(command, source_run, tmp_path, script, keys, message):
    with pytest.raises(ConfigError, match=message):
        script.main(command(tmp_path, "wrong", f"model.weights={source_run}", *keys))


@pytest.mark.slow
def test_synthia_is_read_by_the_same_script(command, city, tmp_path):
    shutil.copytree(city / "synthia", tmp_path / "synthia_data")
    for label in (tmp_path / "synthia_data/GT/LABELS").iterdir():  # as in the original, with an instance number
        ids = np.array(Image.open(label))
        colour16(label, np.stack([ids, ids == 8, 0 * ids], 2).astype(np.uint16))
    keys = ["source.dataset=synthia", f"source.data_dir={tmp_path}/synthia_data", "train.num_steps=1"]
    train_source_only.main(command(tmp_path, "synthia", *keys))
    train_source_only.main(command(tmp_path, "gtav", "train.num_steps=1"))
    synthia, gtav = records(tmp_path / "synthia")[0], records(tmp_path / "gtav")[0]
    assert 0 < synthia["source/main"] != gtav["source/main"]  # the same scenes, but terrain is no SYNTHIA class
    assert synthia["source/main"] == pytest.approx(gtav["source/main"], rel=0.2)


def test_target_without_labels_needs_none(command, city, source_run, tmp_path):
    shutil.copytree(city / "cityscapes/leftImg8bit", tmp_path / "data/leftImg8bit")
    train_pycda.main(command(tmp_path, "pycda", f"model.weights={source_run}", f"target.data_dir={tmp_path}/data"))
    assert "the last checkpoint is the result" in (tmp_path / "pycda/log.txt").read_text()
    assert (tmp_path / "pycda/last.pth").is_file() and not (tmp_path / "pycda/best.pth").exists()
    with pytest.raises(RuntimeError, match="3 of 3 images .* have no label"):
        evaluate.main(command(tmp_path, "pycda", f"target.data_dir={tmp_path}/data"))


@pytest.mark.parametrize(
    "keys",
    [[], ["adabn.mode=ema", "adabn.images=crops", "adabn.epochs=2"], ["adabn.domains=both"]],
)
def test_conversion_saves_the_same_weights_with_other_statistics(command, source_run, tmp_path, keys):
    convert.main(command(tmp_path, "converted", f"adabn.weights={source_run}", "adabn.batch_size=2", *keys))
    before, after = weights(source_run / "best.pth"), weights(tmp_path / "converted/adabn.pth")
    assert all(torch.equal(before[name], after[name]) for name in before if not is_statistic(name))
    moved = {name for name in before if is_statistic(name) and not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if is_statistic(name)}
    log = (tmp_path / "converted/log.txt").read_text()
    assert "before conversion" in log and "after conversion" in log


def test_evaluation_agrees_with_the_pictures_it_writes(command, city, source_run, tmp_path):
    outputs = ["--json", str(tmp_path / "s.json"), "--save", str(tmp_path / "p")]
    evaluate.main(command(tmp_path, "any", "--weights", str(source_run), *outputs))
    result = json.loads((tmp_path / "s.json").read_text())
    matrix = ConfusionMatrix(19)
    samples = find_samples("cityscapes", city / "cityscapes", split="val")
    for sample in samples:
        ids = np.array(Image.open(tmp_path / f"p/label_ids/{sample.name}.png"))
        label = read_label(sample.label, "cityscapes")
        matrix.update(torch.from_numpy(label), torch.from_numpy(id_lookup("cityscapes")[ids]))
        assert Image.open(tmp_path / f"p/panels/{sample.name}.png").size[0] == 3 * label.shape[1] + 8
        assert Image.open(tmp_path / f"p/colour/{sample.name}.png").size == label.shape[::-1]
    assert result["images"] == len(samples) == 3
    assert result["miou"] == pytest.approx(100 * matrix.miou())
    thirteen = [c for c in range(19) if c not in (3, 4, 5, 9, 14, 16)]
    assert result["miou_13"] == pytest.approx(100 * matrix.miou(thirteen))
    assert result["iou"]["road"] == pytest.approx(100 * matrix.iou()[0].item())


def test_eval_classes_restrict_the_mean(command, source_run, tmp_path):
    json_file = tmp_path / "s.json"
    arguments = ["test.eval_classes=[road, sky]", "--weights", str(source_run), "--json", str(json_file)]
    evaluate.main(command(tmp_path, "any", *arguments))
    result = json.loads(json_file.read_text())
    assert result["iou"].keys() == {"road", "sky"}
    assert result["miou"] == pytest.approx((result["iou"]["road"] + result["iou"]["sky"]) / 2)


def test_weights_that_do_not_fit_are_listed(command, source_run, tmp_path):
    keys = [f"model.weights={source_run}", "model.encoder=resnet50_dilated16", "model.fc_dim=2048"]
    with pytest.raises(WeightsError, match=r"missing: encoder.layer1.0.bn3"):
        train_source_only.main(command(tmp_path, "other", *keys))


def test_compiled_recomputation_is_refused(command, tmp_path):
    with pytest.raises(ValueError, match="train.compile cannot compile .* train.checkpoint_encoder"):
        train_source_only.main(command(tmp_path, "both", "train.compile=true", "train.checkpoint_encoder=true"))


def test_missing_run_is_named(command, tmp_path):
    with pytest.raises(FileNotFoundError, match="best.pth.*train that run first"):
        train_pycda.main(command(tmp_path, "pycda", f"model.weights={tmp_path}/nowhere"))
