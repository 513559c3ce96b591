"""Strict YAML: every mistake is named; a configuration can be written and read again."""

from pathlib import Path

import pytest

import evaluate
import train_pycda
from utils.config.read import ConfigError, build_config, to_yaml

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "cfgs").rglob("*.yaml") if path.name != "classes.yaml")  # an id table


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(path.parents[1])))
def test_every_shipped_config_loads_and_survives_writing(path, tmp_path):
    config = build_config(path)
    assert build_config(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {encodr: resnet18_dilated8}", r"unknown key 'model.encodr'; the nearest is 'model.encoder'"),
        ("train.learning_rate: 1", r"the nearest is 'train.lr_encoder'"),
        ("test: {Image-Size: [8, 8]}", r"the nearest is 'test.input_size'"),
        ("gpus: 4", r"the nearest is 'NPROC=2"),
        ("lambda_pseudo: 1.0", r"unknown key 'lambda_pseudo'; the nearest is 'curriculum.lambda_pseudo'"),
        ("train: {num_steps: many}", r"'train.num_steps' must be int, at least 1, got 'many'"),
        ("train: {num_steps: 1.5}", r"'train.num_steps' must be int"),
        ("source: {crop_size: [1, 2, 3]}", r"'source.crop_size'"),
        ("curriculum: {box_size: big}", r"'curriculum.box_size'"),
        ("train: {schedule: nonsense}", r"'train.schedule' must be poly [|] drop.*, got 'nonsense'"),
        ("seed: 1\nmodel: {}\nseed: 2", r"key 'seed' is in line 1 and again in line 3"),
        ("seed: [1", "is not YAML"),
        ("- seed", "expected keys and values"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        build_config(write(tmp_path, text))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        build_config(tmp_path / "nowhere.yaml")


def test_command_line_wins_over_file_and_file_over_script(tmp_path):
    path = write(tmp_path, "train: {momentum: 0.5, lr_encoder: 1e-4}\nsource: {crop_size: '64,32'}")
    defaults = {"train.momentum": 0.0, "train.weight_decay": 0.0}
    keys = ["train.lr_decoder=2e-3", "train.amp=off", "target.crop_size=null", "curriculum.box_size=[]"]
    config = build_config(path, keys, defaults)
    assert (config.train.momentum, config.train.weight_decay) == (0.5, 0.0)
    assert (config.train.lr_encoder, config.train.lr_decoder, config.train.amp) == (1e-4, 2e-3, "off")
    assert config.source.crop_size == (64, 32) and config.target.crop_size is None and config.curriculum.box_size == ()
    assert config.exp_name == "config"


def test_override_without_value_is_named(tmp_path):
    with pytest.raises(ConfigError, match="'seed' is not key=value"):
        build_config(write(tmp_path, "seed: 1"), ["seed"])


@pytest.mark.parametrize("script", [train_pycda, evaluate])
def test_help_lists_the_keys_and_print_config_the_values(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "curriculum.conf_threshold (float, 0 to 1, default 0.5)" in text and "poly | drop" in text
    own = "0.0" if script is train_pycda else "0.9"
    assert f"train.momentum (float, at least 0 and below 1, default {own})" in text
    with pytest.raises(SystemExit) as stopped:
        script.main(["--config", str(write(tmp_path, "seed: 3")), "--print-config", "train.num_steps=7"])
    printed = write(tmp_path, capsys.readouterr().out)
    assert stopped.value.code == 0 and build_config(printed).seed == 3 and build_config(printed).train.num_steps == 7
    if script is train_pycda:
        assert build_config(printed).train.momentum == 0  # the script's default; the released script fixes it
