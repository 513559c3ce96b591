"""``sh run.sh export``: the file gives what the network gives, and needs nothing of this project."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train_source_only
from dataset.labels import CITYSCAPES
from models import build_segmentor
from utils.commands import export
from utils.config.schema import ConfigError
from utils.inference import load
from utils.run_folder.checkpoint import CheckpointError
from utils.scoring import exported
from utils.scoring.exported import ExportError, PoolBySize, export_network, largest_difference, random_pictures

pytestmark = pytest.mark.slow(5)  # seconds

ELSEWHERE = """\
import json, sys, torch
import utils                                    # somebody else's
assert utils.MINE
extra = {"classes.json": ""}
network = torch.export.load("network.pt2", extra_files=extra).module()
pictures = torch.load("pictures.pt")
torch.save(network(pictures), "classes.pt")
ours = [name for name in sys.modules if name.startswith(("models", "dataset"))]
print(json.loads(extra["classes.json"])["names"][0], ours)
"""


def settled(encoder: str, decoder: str) -> nn.Module:
    """A network whose batch norms have seen a batch, so that its classes differ from place to place."""
    torch.manual_seed(0)
    model = build_segmentor(encoder, decoder, CITYSCAPES.num_classes, use_aux=decoder != "fcn8s")
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 96))
    return model.eval()


def test_needs_torch_alone_beside_another_utils(command, tmp_path, capsys):
    """With pyramid pooling, whose averages would fix the size."""
    keys = ["model.decoder=ppm_bilinear", "val.held_out=0", "train.num_steps=1"]
    train_source_only.main(command(tmp_path, "run", *keys))
    capsys.readouterr()
    assert export.main(command(tmp_path, "run", *keys, "--to", str(tmp_path / "network.pt2"))) == 0
    said = capsys.readouterr().out
    assert "pictures uint8 RGB (N, H, W, 3) -> classes uint8 (N, H, W)" in said and "get another class" in said
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/__init__.py").write_text("MINE = True\n")
    pictures = random_pictures(2, 50, 70, seed=5)
    torch.save(pictures, tmp_path / "pictures.pt")
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["road", "[]"]
    classes = torch.load(tmp_path / "classes.pt").numpy()
    predictor = load(tmp_path / "run", "cpu")
    expected = np.stack([predictor(picture.numpy()) for picture in pictures])
    assert classes.shape == (2, 50, 70) and (classes == expected).mean() > 0.999


def test_onnx_file_takes_any_size_and_has_the_names(tmp_path):
    for package in exported.ONNX_PACKAGES:
        pytest.importorskip(package)
    import onnx

    path = tmp_path / "network.onnx"
    said = export_network(settled("resnet10_dilated16", "ppm_bilinear"), CITYSCAPES, path, logits=True, size=None)
    assert "logits float32 (N, C, H, W); largest difference" in said
    assert exported.read_onnx(path)(random_pictures(3, 40, 77, seed=1)).shape == (3, 19, 40, 77)
    properties = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert properties["names"] == list(CITYSCAPES.names) and properties["palette"] == CITYSCAPES.palette.tolist()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 6), (8, 13)])
def test_pooling_by_size_is_adaptive_pooling(height, width):
    x = torch.randn(2, 3, height, width)
    for cells in (1, 2, 3, 6):
        assert torch.allclose(PoolBySize(cells)(x), nn.AdaptiveAvgPool2d(cells)(x), atol=1e-6)


def test_another_network_is_told_from_the_original(tmp_path, monkeypatch):
    model = settled("resnet10_dilated16", "fcn")
    for logits in (True, False):
        network = exported.ExportedNetwork(model, logits).eval()
        assert largest_difference(network, model, logits, [(1, 64, 96)])

        def bgr(pictures: torch.Tensor, right: nn.Module = network) -> torch.Tensor:
            return right(pictures.flip(3))

        with pytest.raises(ExportError, match="not the original"):
            largest_difference(bgr, model, logits, [(1, 64, 96)])
    said = export_network(model, CITYSCAPES, tmp_path / "right.pt2", logits=False, size=(96, 64))
    assert "(N, 64, 96, 3) -> classes" in said
    (tmp_path / "right.pt2").unlink()
    monkeypatch.setattr(exported, "IMAGENET_STD", (1.0, 1.0, 1.0))
    (tmp_path / "n.pt2").write_text("an earlier export")
    with pytest.raises(ExportError, match="not the original"):
        export_network(model, CITYSCAPES, tmp_path / "n.pt2", logits=True, size=(96, 64))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier export"]


def test_weights_to_pass_on(command, source_run, city, tmp_path, capsys):
    path = tmp_path / "to/weights.pth"
    export.main(command(source_run.parent, "source_only", "--to", str(path)))
    assert str(path) in capsys.readouterr().out
    kept, whole = (file.stat().st_size for file in (path, source_run / "best.pth"))
    assert kept < 0.55 * whole
    shutil.copy(path, tmp_path / "alone.pth")
    (picture, *_) = sorted((city / "gtav/images").glob("*.png"))
    assert np.array_equal(load(tmp_path / "alone.pth")(picture), load(source_run)(picture))
    content = torch.load(source_run / "best.pth", weights_only=True)
    del content["classes"]  # as older versions wrote it
    torch.save(content, tmp_path / "old.pth")
    export.main(command(tmp_path, "any", "--weights", str(tmp_path / "old.pth"), "--to", str(path)))
    assert torch.load(path, weights_only=True)["classes"]["names"] == list(CITYSCAPES.names)
    with pytest.raises(CheckpointError, match="is the checkpoint itself"):
        export.main(command(tmp_path, "any", "--weights", str(path), "--to", str(path)))


def test_nothing_but_an_earlier_export_is_replaced(command, source_run, tmp_path):
    run, network = shutil.copytree(source_run, tmp_path / "run"), {"weight": torch.zeros(2)}
    torch.save(network, tmp_path / "encoder.pth")
    shutil.copy(run / "last.pth", tmp_path / "copy.pth")
    (tmp_path / "link").symlink_to(run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pth")}
    names = ("last.pth", "best.pth", "last.previous.pth", "adabn.pth")  # some of which are not there
    files = [folder / name for folder in (run, tmp_path / "link") for name in names]
    for to in (*files, tmp_path / "copy.pth", tmp_path / "encoder.pth"):
        with pytest.raises(CheckpointError, match=f"{to.name} (is|exists) .*export to another name"):
            export.main(command(tmp_path, "run", "--to", str(to)))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pth")} == before
    for _ in range(2):
        export.main(command(tmp_path, "run", "--to", str(run / "passed_on.pth")))


def test_what_cannot_be_meant_is_said(command, source_run, tmp_path, monkeypatch):
    def run(file: str, *options: str) -> None:
        export.main(command(source_run.parent, "source_only", "--to", str(tmp_path / file), *options))

    for file, options, message in (
        ("a.pkl", [], "--to must end in .pt2, .onnx, .pth"),
        ("a.pth", ["--logits"], "do not go with a .pth file"),
        ("a.pt2", ["--size", "0", "5"], "--size must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(file, *options)
    monkeypatch.setattr(exported, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(ExportError, match="pip install onnxscript$"):
        run("a.onnx")
    assert not list(Path(tmp_path).iterdir())
