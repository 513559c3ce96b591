"""The authors' YAML files with their kinds of list files, in the Cityscapes layout: check, training and scores."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import evaluate
import test_adabn as convert
import train_adabn
import train_pycda
import train_pycda_spatial
import train_source_only
from dataset.folders import find_samples, hold_out
from models import build_segmentor
from models.batchnorm import bn_updates
from models.weights import load_encoder_decoder, official_part
from utils.commands import check

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:keys", "ignore:the released")]
RELEASED = {
    "arch_encoder": "resnet101_dilated8",
    "arch_decoder": "ppm_bilinear_deepsup",
    "weights_encoder": "",
    "weights_decoder": "",
    "fc_dim": 2048,
    "use_aux": True,
    "num_gpus": 4,
    "batch_size": 8,
    "iter_size": 1,
    "num_workers": 4,
    "input_size": "1024,560",
    "input_size_target": "1024,512",
    "input_size_crop": "560,480",
    "input_size_target_crop": "560,480",
    "input_size_test": "1024,512",
    "com_size": "2048,1024",
    "set": "train",
    "num_classes": 19,
    "ignore_label": 255,
    "lr_encoder": 0.0016,
    "lr_decoder": 0.016,
    "lr_pow": 0.9,
    "beta1": 0.9,
    "weight_decay": 0.0005,
    "lambda_seg": 0.4,
    "lambda_trade_off": 1,
    "conf_threshold": 0.5,
    "box_size": [4, 8],
    "merge_1x1": False,
    "lambda_pseudo": 1,
    "lambda_balance": 1,
    "lambda_eq": 0.4,
    "decrease_lr": -1,
    "scale_min": 0.5,
    "scale_max": 1.5,
    "rotate_min": -10,
    "rotate_max": 10,
    "num_steps": 35000,
    "save_pred_every": 1000,
    "print_freq": 20,
    "syncbn": True,
}
SPATIAL = {"merge_1x1": True, "lambda_balance": 0.4, "decrease_lr": 1500, "batch_size": 4, "save_pred_every": 500}
FILES = {
    "source_only": (train_source_only, {}),
    "adabn": (train_adabn, {}),
    "pycda": (train_pycda, {"lr_encoder": 0.00016, "lr_decoder": 0.0016}),
    "spatial": (train_pycda_spatial, SPATIAL),
}
SMALL = [
    *(
        "model.encoder=resnet10_dilated16",
        "model.fc_dim=512",
        "source.input_size=[96, 64]",
        "target.input_size=[96, 64]",
    ),
    *("test.input_size=[96, 64]", "test.num_workers=0", "val.every=2", "train.num_steps=2", "train.batch_size=2"),
    *("train.num_workers=0", "train.print_freq=1", "adabn.num_steps=2", "adabn.batch_size=2", "adabn.score_every=0"),
]
CROPS = ["source.crop_size=[64, 32]", "target.crop_size=[64, 32]"]


@pytest.fixture(scope="module")
def paths(city: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The authors' keys of files: image lists are relative to the data folder, label lists to the label folder."""
    folder, root = tmp_path_factory.mktemp("lists"), city / "cityscapes"
    train, held_out = hold_out(find_samples("cityscapes", root), 3, 0)
    val = find_samples("cityscapes", root, split="val")
    keys = {
        "snapshot_dir": str(folder / "snapshots"),
        "data_dir": str(city / "gtav"),
        "data_dir_target": str(root),
        "data_dir_target_val": str(root / "gtFine/train"),
        "data_dir_target_test": str(root / "gtFine/val"),
    }
    lists = {
        "data_list": [sample.image.relative_to(city / "gtav") for sample in find_samples("gtav", city / "gtav")],
        "data_list_target": [sample.image.relative_to(root) for sample in train],
        "data_list_target_val": [sample.image.relative_to(root) for sample in held_out],
        "label_path_list_val": [sample.label_file.relative_to(root / "gtFine/train") for sample in held_out],
        "data_list_target_test": [sample.image.relative_to(root) for sample in val],
        "label_path_list_test": [sample.label_file.relative_to(root / "gtFine/val") for sample in val],
    }
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        keys[name] = str(folder / f"{name}.txt")
    return keys


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder and a decoder file in the form of the released code."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("pair"), build_segmentor("resnet10_dilated16", "ppm_bilinear")
    files = {}
    for part in ("encoder", "decoder"):
        files[f"weights_{part}"] = str(folder / f"{part}.pth")
        tensors = official_part(getattr(model, part))
        torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, folder / f"{part}.pth")
    return files


def write(folder: Path, name: str, *changes: dict[str, object]) -> str:
    common: dict[str, object] = {"exp_name": name}
    for keys in changes:
        common |= keys
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"common": common}))
    return str(folder / f"{name}.yaml")


@pytest.mark.parametrize("name", FILES)
def test_released_file_with_other_paths_is_checked_trained_and_scored(name, paths, pair, tmp_path, capsys):
    script, own = FILES[name]
    adapts = name in ("pycda", "spatial")
    path = write(tmp_path, name, RELEASED, own, paths, pair if adapts else {})
    keys = [
        *SMALL,
        *([] if name == "spatial" else CROPS),
        *([] if adapts else ["model.weights=scratch", "model.decoder=fcn"]),
    ]
    assert check.main([path, *keys, "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "0 errors" in out and "held_out: 3 images, 3 labels" in out and "test: 3 images, 3 labels" in out
    script.main([path, *keys])
    assert evaluate.main([path, *keys, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    run = Path(paths["snapshot_dir"]) / name
    assert scores["images"] == 3 and scores["pixel_accuracy"] > 0 and (run / "best.pth").is_file()
    assert len((run / "lists/held_out.txt").read_text().split()) == 3


def test_released_conversion_takes_a_pair_and_writes_one(paths, pair, tmp_path):
    """The written pair is the network of adabn.pth, with running sums that the released code can continue."""
    path = write(tmp_path, "converted", RELEASED, paths, pair)
    convert.main([path, *SMALL, *CROPS])
    folder = Path(paths["snapshot_dir"]) / "converted"
    own = torch.load(folder / "adabn.pth", weights_only=True)
    files = [folder / "adabn_encoder.pth", folder / "adabn_decoder.pth"]
    model = build_segmentor("resnet10_dilated16", "ppm_bilinear")
    load_encoder_decoder(model, *map(str, files))
    assert all(torch.equal(tensor, own["model"][name]) for name, tensor in model.state_dict().items())
    assert bn_updates(model) == own["bn_updates"] and set(own["bn_updates"].values()) == {2}
    for file, before in zip(files, pair.values(), strict=True):
        written, given = (torch.load(f, weights_only=True) for f in (file, before))
        assert {f"module.{name}": tensor.shape for name, tensor in written.items()} == {
            name: tensor.shape for name, tensor in given.items()
        }
    encoder = torch.load(files[0], weights_only=True)
    total = sum(0.999**k for k in range(3))  # two updates, and the initial value
    assert encoder["bn1._running_iter"].tolist() == pytest.approx([total])
    assert torch.allclose(encoder["bn1._tmp_running_mean"], encoder["bn1.running_mean"] * total)


def test_conversion_without_run_or_pair_names_both(paths, pair, tmp_path):
    for missing, weights in (("decoder", {"weights_encoder": pair["weights_encoder"]}), ("both", {})):
        path = write(tmp_path, f"without_{missing}", paths, weights)
        with pytest.raises(FileNotFoundError, match="model.weights_encoder and model.weights_decoder"):
            convert.main([path, *SMALL, *CROPS])
