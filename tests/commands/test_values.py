"""Values of keys: ranges, words with another meaning in YAML, names outside of the folder, text that is no YAML."""

from pathlib import Path

import pytest

from dataset.messages import UserError
from utils.builders.curriculum import build_curriculum
from utils.builders.data import Data
from utils.commands.export import parse as parse_export
from utils.config.command_line import load_config
from utils.config.read import ConfigError, build_config
from utils.config.values import KEYS

OUT_OF_RANGE = {
    "seed=-1": "at least 0",
    "num_classes=0": "1 to 254",
    "num_classes=255": "1 to 254",
    "model.fc_dim=0": "at least 1",
    "model.bn_momentum=0": "above 0 and at most 1",
    "model.bn_momentum=1.5": "above 0 and at most 1",
    "model.dropout=1": "at least 0 and below 1",
    "source.crop_size=[0, 64]": "at least 1",
    "target.input_size=[64, -1]": "at least 1",
    "source.scale=[0, 1]": "above 0",
    "source.scale=[1.5, 0.5]": "give the smaller number first",
    "source.rotate=[10, -10]": "give the smaller number first",
    "val.held_out=-1": "at least 0",
    "val.every=0": "at least 1",
    "test.input_size=[0, 0]": "at least 1",
    "test.num_workers=-1": "at least 0",
    "test.eval_classes=[]": "needs at least one entry",
    "tta.scales=[]": "needs at least one entry",
    "tta.scales=[1, 0]": "above 0",
    "train.num_steps=-5": "at least 1",
    "train.batch_size=0": "at least 1",
    "train.iter_size=0": "at least 1",
    "train.lr_encoder=-0.1": "at least 0",
    "train.lr_encoder=nan": "must be float",
    "train.lr_decoder=inf": "must be float",
    "train.momentum=1": "at least 0 and below 1",
    "train.print_freq=0": "at least 1",
    "train.skip_bad_samples=-1": "at least 0",
    "curriculum.box_size=[4, 0]": "at least 1",
    "curriculum.conf_threshold=1.1": "0 to 1",
    "curriculum.lambda_pseudo=.nan": "must be float",
    "adabn.batch_size=0": "at least 1",
    "adabn.num_steps=0": "at least 1",
    "adabn.scale=[2, 1]": "give the smaller number first",
    "source.crop_size=[true, 64]": "must be tuple",
    "source.crop_size=[64.5, 64]": "must be tuple",
    "source.crop_size=64": "must be tuple",
    "source.crop_size=a,b": "must be tuple",
    "train.batch_size=true": "must be int",
    "source.flip=1": "must be bool",
    f"train.lr_pow={10**400}": "must be float",
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.yaml"
    path.write_text("num_classes: 19\n")
    return path


@pytest.mark.parametrize(("override", "message"), OUT_OF_RANGE.items(), ids=lambda text: text[:40])
def test_what_is_out_of_range_is_named_with_its_range(config_file, override, message):
    name = override.split("=")[0]
    with pytest.raises(ConfigError, match=f"command line: .*'{name}'.*{message}") as error:
        build_config(config_file, [override])
    assert "\n" not in str(error.value)


def test_every_number_has_a_range():
    numbers = [k for k in KEYS.values() if k.kind.startswith(("int", "float", "tuple[int", "tuple[float"))]
    assert len(numbers) > 40 and all(k.kind.endswith(tuple("0123456789")) for k in numbers)


def test_ends_of_a_range_are_admitted(config_file):
    keys = ["curriculum.conf_threshold=1", "seed=0", "train.batch_size=1", "source.scale=[1, 1]", "val.held_out=0"]
    config = build_config(config_file, [*keys, "curriculum.box_size=[]", "train.lr_encoder=0", "model.bn_momentum=1"])
    assert config.curriculum.conf_threshold == 1 and config.source.scale == (1, 1) and config.curriculum.box_size == ()


@pytest.mark.parametrize("word", ["no", "off", "yes", "123", "2024-05-01", "1e3", "a: b", "[a", "@x", "true"])
def test_text_on_the_command_line_is_used_unchanged(config_file, word):
    assert build_config(config_file, [f"exp_name={word}"]).exp_name == word
    assert build_config(config_file, [f"target.data_list={word}"]).target.data_list == word


def test_words_for_truth_and_nothing(config_file):
    config_file.write_text(
        "exp_name: no\ntrain: {amp: off}\nsource: {flip: yes, data_dir: 2024-05-01, split: 007}\ntarget:\nval: {}"
    )
    config = build_config(config_file, ["target.flip=on", "tta.flip=NO", "target.data_list=null", "val.data_dir="])
    assert (config.exp_name, config.train.amp, config.source.data_dir) == ("no", "off", "2024-05-01")
    assert config.source.split == "007"
    assert config.source.flip and config.target.flip and not config.tta.flip
    assert config.target.data_list is None and config.val.data_dir is None


def test_home_folder_is_expanded(config_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config_file.write_text("source: {data_dir: ~/GTAV}\nexp_name: ~x")
    config = build_config(config_file, ["target.data_dir=~/Cityscapes", "model.weights=runs/~"])
    assert (config.source.data_dir, config.target.data_dir) == ("/home/somebody/GTAV", "/home/somebody/Cityscapes")
    assert (config.model.weights, config.exp_name) == ("runs/~", "~x")


def test_variables_of_the_environment_are_expanded(config_file, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA", "~/data")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "$NOWHERE").mkdir()
    config_file.write_text("source: {data_dir: $DATA/GTAV}\nsnapshot_dir: '${DATA}2'\nexp_name: $DATA")
    config = build_config(config_file, [f"target.data_dir={tmp_path}/$NOWHERE"])
    assert (config.source.data_dir, config.snapshot_dir) == ("/home/somebody/data/GTAV", "/home/somebody/data2")
    assert (config.target.data_dir, config.exp_name) == (f"{tmp_path}/$NOWHERE", "$DATA")
    with pytest.raises(ConfigError, match=r"key 'train.cache_dir': the variable \$\{NOWHERE\} in .* is not set"):
        build_config(config_file, ["train.cache_dir=${NOWHERE}/cache"])
    with pytest.raises(ConfigError, match=r"argument --to: the variable \$NOWHERE .* is not set"):
        parse_export([str(config_file), "--to", "$NOWHERE/own.pt2"])
    assert parse_export([str(config_file), "--to", "$DATA/own.pt2"])[0].to == Path("/home/somebody/data/own.pt2")


@pytest.mark.parametrize("override", ["train.num_steps=[1", "tta.scales={", "train.lr_pow=@1", "source.flip='no"])
def test_broken_override_names_its_key(config_file, override):
    with pytest.raises(ConfigError, match=f"command line: key '{override.split('=')[0]}'.* is not YAML") as error:
        build_config(config_file, [override])
    assert "\n" not in str(error.value)


def test_classes_and_squares_are_checked_at_the_start(config_file, tmp_path):
    with pytest.raises(ConfigError, match="test.eval_classes: unknown class 'rode'; the nearest is 'road'"):
        load_config([str(config_file), "test.eval_classes=[rode]"], "", "evaluate")
    with pytest.raises(ConfigError, match="num_classes is 5, the data sets have 19"):
        load_config([str(config_file), "num_classes=5"], "", "evaluate")
    config = build_config(config_file, ["target.crop_size=[64, 32]", "curriculum.box_size=[4, 40]"])
    with pytest.raises(ConfigError, match=r"curriculum.box_size is \[4, 40\], .* images of \(64, 32\)"):
        build_curriculum(config.curriculum, config.num_classes, Data(config))


@pytest.mark.parametrize("name", ["a/../../escape", "..", "/somewhere", ".", "a/.."])
def test_run_folder_lies_below_snapshot_dir(config_file, name):
    with pytest.raises(ConfigError, match="must lie below snapshot_dir"):
        build_config(config_file, [f"exp_name={name}"])
    assert build_config(config_file, ["exp_name=group/run..2"]).run_folder == Path("runs/group/run..2")


def test_byte_order_mark_is_dropped(config_file):
    config_file.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert build_config(config_file).seed == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\n".encode("utf-16"), "is not UTF-8 .*UTF-16.*save it as UTF-8"),
        (b"seed: 1\nexp_name: caf\xe9\n", "line 2, is not UTF-8 .*save it as UTF-8"),
        (b"seed: 1\nmodel:\n\tencoder: x\n", "is not YAML, line 3: .*indent with spaces"),
        (b"seed: [1\n", "is not YAML"),
        (b"seed: !!python/name:os.system\n", "'seed' must be int"),
        (b'seed: "\\UFFFFFFFF"\n', "is not YAML"),
        (b"a: \x00\n", "is not YAML"),
        (b"a: \x01\n", "is not YAML"),
        (b"seed: &a {b: *a}\n", "contains itself"),
        (b"[" * 1000, "nested too deeply"),
        (b"seed: {}\n", "'seed' must be int"),
        (b"1: 2\n", "unknown key '1'"),
        (b"common: 3\n", "common: expected keys and values"),
        (b"common: {1: 2, x: 3}\n", "no released script has the keys: 1, x"),
        (b"common: {decrease_lr: x}\n", "common.decrease_lr: key 'train.decrease_lr' must be int"),
        (b"common: {num_steps: 0}\n", "common.num_steps: key 'train.num_steps' must be int, at least 1"),
    ],
)
def test_file_that_is_no_configuration_is_named_on_one_line(config_file, content, message):
    config_file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        build_config(config_file, script="train_pycda_spatial")
    assert str(error.value).startswith(str(config_file)) and "\n" not in str(error.value)
