"""The Python blocks of the documents run as a reader has them: in a folder with a configuration, runs and a photo."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train_pycda
from models.encoder import Encoder
from tests.test_docs import DOCUMENTS, blocks
from tests.training.test_resume import assert_same_run
from utils import pycda
from utils.commands import export
from utils.config.read import parse_overrides
from utils.pycda import PyramidCurriculum

SIZE = (96, 64)  # (W, H) of the photo
BLOCKS = {block: str(document) for document in DOCUMENTS for block in blocks(document, "python")}
# What each block contains, so that its test finds it
LOAD, GRAPH, ENCODER, RULE, NOTEBOOK, ELSEWHERE = MARKS = (
    'load("runs/own_pycda")',
    "torch.export.load",
    "AdoptedEncoder(",
    "nn.Module",
    "build_trainer(",
    "from pycda import",
)


def run(mark: str, **given: Any) -> dict[str, Any]:
    """Run the one block that contains ``mark``; its variables, which ``given`` are the first of."""
    ((block, document),) = ((block, document) for block, document in BLOCKS.items() if mark in block)
    exec(compile(block, document, "exec"), given)
    return given


@pytest.fixture
def reader(
    command: Callable[..., list[str]], city: Path, source_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working folder: cfgs/own.yaml, runs/own_source, runs/own_pycda, photo.jpg."""
    _, base, *keys = command(Path("runs"), "own")
    (tmp_path / "cfgs").mkdir()
    (tmp_path / "cfgs/own.yaml").write_text(yaml.safe_dump({"base": base, **parse_overrides(keys)}))
    for name in ("own_source", "own_pycda"):
        shutil.copytree(source_run, tmp_path / "runs" / name)
    photo = next((city / "cityscapes/leftImg8bit/val").rglob("*.png"))
    Image.open(photo).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_run():
    assert sorted(mark for block in BLOCKS for mark in MARKS if mark in block) == sorted(MARKS)
    assert all(any(mark in block for mark in MARKS) for block in BLOCKS)


def test_a_run_is_loaded(reader, capsys):
    classes = run(LOAD)["classes"]
    assert classes.shape == SIZE[::-1] and "(19, 64, 96)" in capsys.readouterr().out
    assert Image.open(reader / "colours.png").size == SIZE


@pytest.mark.slow(5)
def test_an_exported_graph_is_loaded(reader, command):
    export.main(command(reader / "runs", "own_source", "--to", "own.pt2"))
    array = np.array(Image.open("photo.jpg"))
    assert run(GRAPH, array=array)["classes"].shape == array.shape[:2]


@pytest.mark.slow
def test_a_network_becomes_an_encoder():
    encoder = run(ENCODER)["mobilenet_v3_large"](16)
    assert isinstance(encoder, Encoder) and encoder.strides == (4, 8, 16, 16)


def test_a_rule_chooses_half_of_the_labels():
    logits = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    layers = PyramidCurriculum(None, class_thresholds=run(RULE)["MostConfidentHalf"]()).pseudo_labels(logits)
    assert [layer.mask.double().mean().item() for layer in layers.values()] == pytest.approx([0.5] * 3, abs=0.2)


@pytest.mark.slow(3)
def test_a_notebook_trains_as_the_script_does(reader):
    run(NOTEBOOK)
    assert Image.open(reader / "colours.png").size == SIZE
    train_pycda.main(["cfgs/own.yaml", "exp_name=script", "model.weights=runs/own_source"])
    assert_same_run(reader / "runs/own_notebook", reader / "runs/script")


def test_the_curriculum_is_copied_into_another_program(tmp_path, monkeypatch, capsys):
    shutil.copytree(Path(pycda.__file__).parent, tmp_path / "pycda")
    monkeypatch.syspath_prepend(tmp_path)
    losses = run(ELSEWHERE)["losses"]
    for name in [name for name in sys.modules if name.split(".")[0] == "pycda"]:
        monkeypatch.delitem(sys.modules, name)
    assert losses["image"] > 0 and losses["total"].isfinite()
    assert capsys.readouterr().out.count("'total'") == 2
