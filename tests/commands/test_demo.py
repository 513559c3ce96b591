"""The demo calls the scripts and collects their results; tested on tiny data with one or two steps."""

import importlib
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset.toy_city import Plan
from utils.commands import demo
from utils.config.read import build_config

TINY = [
    *("model.encoder=resnet10_dilated16", "train.num_steps=1", "train.batch_size=2"),
    *("train.num_workers=0", "test.num_workers=0"),
    *("val.held_out=3", "val.every=1", "adabn.batch_size=2", "train.amp=off"),
]


@pytest.fixture
def small_city(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"size": (96, 64), "num_source": 3, "num_source_val": 2, "num_target": 6, "num_target_val": 2}
    monkeypatch.setattr(demo, "Plan", partial(Plan, **tiny))


@pytest.mark.slow
def test_table_and_picture_of_every_stage(small_city, tmp_path, monkeypatch, capsys):
    ran = []
    run = demo.Demo.run

    def record(self, script: str, config: str, *arguments: str) -> None:
        ran.append((script, config))
        run(self, script, config, *arguments)

    monkeypatch.setattr(demo.Demo, "run", record)
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(call=in_this_process))
    monkeypatch.setitem(demo.STAGES, "table", (demo.SOURCE_ONLY, demo.DEMO[1], demo.PYCDA))  # two trainings are enough
    demo.main(["--seed", "5", "--out", str(tmp_path), *TINY])
    folder = tmp_path / "seed5"
    scores = json.loads((folder / "table.json").read_text())
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[2].startswith(f"| source only | {scores[0]['miou']:.1f} |")
    assert lines[4].startswith(f"| PyCDA | {scores[2]['miou']:.1f} |")
    assert "seed 5" in lines[-1] and (folder / "source_only/adabn.pth").is_file()
    assert all(str(folder / name) in lines[-1] and (folder / name).is_file() for name in ("panel.png", "pyramid.png"))
    assert ("train_pycda.py", "pycda") in ran and Path(scores[0]["name"]).name == "source_only"
    commands = [line for line in capsys.readouterr().out.splitlines() if "$ sh run.sh" in line]
    scripts = ("train_source_only", "test_adabn", "train_pycda", "evaluate", "evaluate")
    expected = [f"[{number} of 5] $ sh run.sh {script}.py" for number, script in enumerate(scripts, 1)]
    assert [line.split(".py")[0] + ".py" for line in commands] == expected


def in_this_process(command: list[str], **_: object) -> int:
    """Run the command ``sh run.sh SCRIPT.py CONFIG ...`` here instead of in a process."""
    importlib.import_module(Path(command[2]).stem).main(command[3:])
    return 0


@pytest.mark.parametrize("stages", demo.STAGES.values(), ids=demo.STAGES)
def test_every_stage_has_its_config_and_accepts_its_keys(stages):
    runs = [stage.run for stage in stages if not stage.weights]
    assert len(set(runs)) == len(runs)
    for stage in stages:
        config = build_config(demo.CONFIGS / f"{stage.config}.yaml", [key.format(data="x") for key in stage.keys])
        assert (Path(demo.ROOT) / stage.script).is_file() and config.train.num_steps <= 400


@pytest.mark.parametrize("config", sorted({stage.config for stage in demo.DEMO}))
def test_quick_has_fewer_steps_unless_a_key_sets_them(config):
    path = demo.CONFIGS / f"{config}.yaml"
    full, quick = build_config(path), build_config(path, demo.quick_keys(config))
    assert quick.train.num_steps == quick.val.every == full.train.num_steps // demo.QUICK_STEPS
    assert quick.train.schedule != "drop" or 0 < quick.train.decrease_lr < quick.train.num_steps
    assert quick.val.held_out + quick.train.batch_size <= demo.QUICK.num_target
    own = build_config(path, [*demo.quick_keys(config), "train.num_steps=3"])
    assert own.train.num_steps == 3


def test_released_and_paper_variants_are_those_of_the_shipped_configurations():
    released = build_config(demo.CONFIGS / "pycda.yaml", demo.RELEASED).curriculum
    assert released == build_config(demo.CONFIGS.parent / "pycda_exp001.yaml").curriculum
    for demo_config, shipped in (("pycda", "pycda_paper"), ("pycda_spatial", "pycda_spatial_paper")):
        ours = build_config(demo.CONFIGS / f"{demo_config}.yaml", demo.PAPER_KEYS)
        paper = build_config(demo.CONFIGS.parent / f"{shipped}.yaml")
        assert ours.curriculum == paper.curriculum and ours.train.momentum == paper.train.momentum


def test_ablation_switches_off_what_its_titles_leave_out():
    by_title = {}
    for stage in demo.ABLATION[2:]:
        by_title[stage.title] = build_config(demo.CONFIGS / f"{stage.config}.yaml", stage.keys).curriculum
    layers = {t: (bool(c.lambda_balance), c.use_pixels, bool(c.box_size)) for t, c in by_title.items()}
    assert layers == {
        "top only": (True, False, False),
        "pixels only": (False, True, False),
        "top + pixels": (True, True, False),
        "top + squares": (True, False, True),
        "pixels + squares": (False, True, True),
        "all: PyCDA": (True, True, True),
    }
