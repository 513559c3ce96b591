"""The shell blocks of the documents are run as they stand, on small data.

A shell runs each block in a folder like a working copy. What stands there for Python notes the commands, which are then
run in this process, so that each does not import torch. Keys after the document's own make networks and images small.
"""

import os
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import utils.commands.__main__
from models.segmentor import ENCODERS
from tests.conftest import TINY
from tests.test_docs import DOCUMENTS, ROOT, blocks
from utils.config.read import build_config

NOT_RUN = {  # commands, as the documents have them without comments, and why no test runs them
    "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt": "needs the network",
    "pip install -r requirements.txt -r .ci/tools.txt": "needs the network",
    "sh run.sh demo": "minutes; tests/commands/test_demo.py runs it on small data",
    "sh run.sh test": "runs this test",
    'sh run.sh test -m "not slow"': "runs tests",
    "sh run.sh test tests/method": "runs tests",
    "ruff check . && ruff format .": "rewrites files",
    "mypy": "checks types; no test needs it",
    ".ci/run": "runs this test",
}
NOTED = "noted.txt"  # the commands that a block gives to Python: their arguments, each followed by an empty line
LANGUAGES = {"sh", "python", "yaml", "text", "bibtex"}
# In place of Python. The data set is needed at once: the lines that follow list its files.
PYTHON = """\
#!/bin/sh
[ "$2" != dataset.toy_city ] || exec cp -r {city} "$3"
printf '%s\\n' "$@" '' >> {noted}
"""
WHOLE_IMAGES = ["source.crop_size=null", "target.crop_size=null", "target.input_size=[96, 64]"]
SMALL = {"train_pycda_spatial": WHOLE_IMAGES, "check": ["--workers", "0"]}  # further arguments, by command
PRETRAINED = ("resnet101-imagenet", "mobilenet_v2_features")
RUN = "runs/rendered_kitti/seed0/source_only"  # of the documents' RUN, which a reader replaces
CLASSES = {"ground": [7, 8, 22], "built": [11, 12, 13], "plants": [21], "sky": [23], "people": [24], "moving": [26]}


def command_of(line: str) -> str:
    """A line without its comment."""
    return re.sub(r"(^|\s+)#.*", "", line).rstrip()


def runnable(document: Path) -> list[str]:
    """The shell blocks of a document without the lines of ``NOT_RUN``."""
    lines = (block.splitlines(keepends=True) for block in blocks(document, "sh"))
    kept = ("".join(line for line in block if command_of(line) not in NOT_RUN) for block in lines)
    return [block for block in kept if block]


@pytest.fixture
def copy(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working copy with small data under the names of the documents; the working folder is there."""
    for path in (ROOT / "run.sh", ROOT / "utils", *ROOT.glob("*.py")):
        (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "cfgs", tmp_path / "cfgs")
    for folder in ("data", "pretrained", "photos", "my", "bin"):
        (tmp_path / folder).mkdir()
    for name in ("GTAV", "rendered_as_gtav", "camvid_as_gtav"):
        (tmp_path / "data" / name).symlink_to(city / "gtav")
    for name in ("Cityscapes", "kitti_as_cityscapes"):
        (tmp_path / "data" / name).symlink_to(city / "cityscapes")
    for name in ("train", "held_out"):  # the lists of the experiments name more images than there are
        (tmp_path / f"cfgs/rendered_kitti/{name}.txt").write_text("".join(f"images/{i:05d}.png\n" for i in range(1, 7)))
    encoder = next(key.partition("=")[2] for key in TINY if key.startswith("model.encoder="))
    for name in PRETRAINED:
        torch.save(ENCODERS[encoder]().state_dict(), tmp_path / f"pretrained/{name}.pth")
    (tmp_path / "RUN").symlink_to(RUN)
    write_own_data(city, tmp_path)
    python = tmp_path / "bin/python"
    python.write_text(PYTHON.format(city=city, noted=tmp_path / NOTED))
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", "python")
    monkeypatch.delenv("NPROC", raising=False)
    return tmp_path


def write_own_data(city: Path, folder: Path) -> None:
    """``my/`` and ``photos/`` of the section "Own data" of the first page, which has the configuration itself."""
    classes = [{"name": name, "colour": [40 * i, 90, 9], "ids": ids} for i, (name, ids) in enumerate(CLASSES.items())]
    (folder / "my/classes.yaml").write_text(yaml.safe_dump({"classes": classes, "void": [0, 17, 19, 20, 28, 33]}))
    labelled = [f"{path} {city}/gtav/labels/{path.name}" for path in sorted((city / "gtav/images").iterdir())]
    (folder / "my/source.txt").write_text("\n".join(labelled))
    for number, path in enumerate(sorted((city / "cityscapes/leftImg8bit/train").rglob("*.png"))):
        Image.open(path).save(folder / f"photos/{number}.{('png', 'jpg')[number % 2]}")
    for block in blocks(Path("README.md"), "yaml"):
        if name := re.match(r"# (\S+\.yaml)\n", block):
            (folder / name[1]).write_text(block)


def run(arguments: list[str], folder: Path) -> None:
    """What ``run.sh`` gives to Python, in this process."""
    if arguments[:3] == ["-P", "-m", "utils.commands"]:
        main, name, others = utils.commands.__main__.main, arguments[3], arguments[3:]
    else:
        name = ".".join(Path(arguments[0]).relative_to(folder).with_suffix("").parts)
        main, others = import_module(name).main, arguments[1:]
    assert not main([*others, *TINY, *SMALL.get(name, [])])


@pytest.mark.slow(17)
@pytest.mark.parametrize("document", [document for document in DOCUMENTS if runnable(document)], ids=str)
def test_shell_blocks_run(document, copy):
    for block in runnable(document):
        (copy / NOTED).write_text("")
        subprocess.run(["sh", "-eu", "-c", block], check=True)
        for command in (copy / NOTED).read_text().split("\n\n")[:-1]:
            run(command.split("\n"), copy)


def test_lines_that_are_not_run_are_in_a_document():
    there = {
        command_of(line) for document in DOCUMENTS for block in blocks(document, "sh") for line in block.splitlines()
    }
    assert set(NOT_RUN) <= there


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_blocks_name_their_language(document):
    """Else commands would not be seen here."""
    fences = re.findall(r"^ *```(.*)$", (ROOT / document).read_text(), re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES and set(fences[1::2]) <= {""}


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if blocks(document, "yaml")], ids=str)
def test_yaml_blocks_are_configurations(document, copy):
    for number, block in enumerate(blocks(document, "yaml")):
        path = copy / f"cfgs/{number}.yaml"
        path.write_text(block)
        build_config(path)
