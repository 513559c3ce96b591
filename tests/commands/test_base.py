"""``base: other.yaml``: a file inherits the keys that it does not set; the shipped files keep their values."""

import json
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import train_pycda
import train_source_only
from models.segmentor import ENCODERS
from utils.config.read import ConfigError, build_config, flatten, read_yaml, to_yaml

ROOT = Path(__file__).parents[2]
FILES = (path for path in (ROOT / "cfgs").rglob("*.yaml") if path.name != "classes.yaml")  # an id table
SHIPPED = sorted(str(path.relative_to(ROOT)) for path in FILES)
WHOLE = ["adabn_exp001", "pycda_exp001", "pycda_spatial_ratio_exp001", "source_only_exp001"]
MAX_LINES = 700  # of all shipped files together
# The values of the files at commit 2ca95db, when no file inherited: for each file its script and, by dotted name, the
# values that differ from the defaults of that commit. Made by the code of that commit:
#   build_config(path, script=script, defaults=the script's DEFAULTS), then to_yaml
# Without the files of cfgs/demo: their recipe has changed since.
BEFORE = json.loads((ROOT / "tests/golden/configs.json").read_text())


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@cache
def fc_dim(encoder: str) -> int:
    return ENCODERS[encoder]().channels[-1]


def printed(script: str, path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """The output of ``script --print-config``, by dotted name."""
    with pytest.raises(SystemExit) as stopped:
        import_module(script).main(["--config", str(path), "--print-config"])
    assert stopped.value.code == 0
    return flatten(yaml.safe_load(capsys.readouterr().out))


@pytest.mark.parametrize("name", BEFORE["files"])
def test_shipped_files_print_what_they_printed_before_they_inherited(name, capsys):
    """One change is wanted: ``model.fc_dim`` is null, which means the encoder's own number, instead of that number."""
    expected = BEFORE["defaults"] | BEFORE["files"][name]["keys"]
    found = printed(BEFORE["files"][name]["script"], ROOT / name, capsys)
    assert (found.pop("model.fc_dim"), expected.pop("model.fc_dim")) == (None, fc_dim(found["model.encoder"]))
    missing = object()
    assert not {k: (v, found.get(k)) for k, v in expected.items() if found.get(k, missing) != v}


def test_four_shipped_files_are_whole_and_all_are_short():
    whole = [Path(name).stem for name in SHIPPED if read_yaml(ROOT / name, "evaluate").base is None]
    assert whole == WHOLE
    assert sum(len((ROOT / name).read_text().splitlines()) for name in SHIPPED) < MAX_LINES


@pytest.mark.parametrize("name", [name for name in SHIPPED if Path(name).stem not in WHOLE])
def test_inheriting_shipped_files_set_only_what_differs(name):
    file = read_yaml(ROOT / name, "evaluate")
    mine, inherited = (flatten(yaml.safe_load(to_yaml(build_config(path)))) for path in (file.path, file.base))
    repeated = {key for key in file.keys if mine[key] == inherited[key]}
    # The paper's variant is written there in full, because the demo also combines it with the spatial recipe.
    assert repeated == ({"curriculum.lambda_balance"} if name == "cfgs/pycda_paper.yaml" else set())


def test_chain_of_files_then_the_command_line(tmp_path):
    write(
        tmp_path / "root.yaml",
        "exp_name: root\nseed: 1\nnum_classes: 5\ntrain: {momentum: 0.1, num_steps: 1, batch_size: 2, lr_pow: 0.5}\n"
        "curriculum: {box_size: [2, 3, 4]}\nsource: {scale: [0.5, 2]}",
    )
    write(tmp_path / "sub/middle.yaml", "base: ../root.yaml\ntrain: {num_steps: 2, batch_size: 3}\nseed: 2")
    leaf = write(
        tmp_path / "leaf.yaml",
        "base: sub/middle.yaml\ntrain: {batch_size: 4}\ncurriculum: {box_size: [8]}\nsource: {scale: null}\nseed: 3",
    )
    c = build_config(leaf, ["seed=4"], {"train.momentum": 0.0, "train.weight_decay": 0.0})
    assert (c.seed, c.train.batch_size, c.train.num_steps, c.num_classes, c.train.lr_pow) == (4, 4, 2, 5, 0.5)
    assert (c.train.momentum, c.train.weight_decay) == (0.1, 0.0)  # a base wins over the script, like its heir
    assert c.curriculum.box_size == (8,) and c.source.scale is None


def test_exp_name_is_not_inherited(tmp_path):
    write(tmp_path / "root.yaml", "exp_name: root\nsnapshot_dir: elsewhere")
    heir = write(tmp_path / "heir.yaml", "base: root.yaml")
    config = build_config(heir)
    assert (config.exp_name, config.snapshot_dir) == ("heir", "elsewhere")
    assert build_config(write(heir, "base: root.yaml\nexp_name: mine")).exp_name == "mine"
    assert build_config(write(tmp_path / "third.yaml", "base: heir.yaml")).exp_name == "third"
    write(tmp_path / "root.yaml", "common: {exp_name: theirs}")
    assert build_config(write(heir, "base: root.yaml")).exp_name == "heir"


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"a": "a"}, ["a", "a"]),
        ({"a": "b", "b": "../{folder}/a"}, ["a", "b", "a"]),
        ({"a": "b", "b": "c", "c": "b"}, ["a", "b", "c", "b"]),
    ],
)
def test_cycle_is_refused_and_named(tmp_path, files, chain):
    for name, base in files.items():
        write(tmp_path / f"{name}.yaml", f"base: {base.format(folder=tmp_path.name)}.yaml")
    with pytest.raises(ConfigError) as error:
        build_config(tmp_path / "a.yaml")
    message = str(error.value)
    assert [Path(part).stem for part in message.split(": ")[1].split(" -> ")] == chain


def test_missing_base_names_both_files(tmp_path):
    write(tmp_path / "sub/middle.yaml", "base: root.yaml")
    write(tmp_path / "root.yaml", "seed: 1")  # not in the folder of middle.yaml
    leaf = write(tmp_path / "leaf.yaml", "base: sub/middle.yaml")
    with pytest.raises(ConfigError, match=r"sub/middle.yaml: no config file .*/sub/root.yaml"):
        build_config(leaf)


def test_base_in_the_home_folder_or_among_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home/root.yaml", "seed: 7")
    assert build_config(write(tmp_path / "own.yaml", "base: ~/root.yaml")).seed == 7
    for name in ("pycda_paper", "cfgs/pycda_paper.yaml"):
        shipped = build_config(write(tmp_path / "own.yaml", f"base: {name}"))
        assert shipped.curriculum.image_target == "source" and shipped.exp_name == "own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [root.yaml, other.yaml]", r"base must be the path of one file, got \['root.yaml', 'other.yaml'\]"),
        ("base:", "base must be the path of one file, got ''"),
        ("base: ''", "base must be the path of one file, got ''"),
        ("base: root.yaml\nbase: root.yaml", "key 'base' is in line 1 and again in line 2"),
        ("model: {base: root.yaml}", "unknown key 'model.base'"),
        ("common: {base: root.yaml}", "no released script has the keys: base"),
    ],
)
def test_base_is_one_path_at_the_top(tmp_path, text, message):
    write(tmp_path / "root.yaml", "seed: 1")
    leaf = write(tmp_path / "leaf.yaml", text)
    with pytest.raises(ConfigError, match=rf"leaf.yaml: {message}"):
        build_config(leaf)
    with pytest.raises(ConfigError, match="command line: unknown key 'base'"):
        build_config(tmp_path / "root.yaml", ["base=leaf.yaml"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {num_steps: many}", "'train.num_steps' must be int"),
        ("train: {num_step: 1}", "unknown key 'train.num_step'"),
        ("train: {schedule: nonsense}", "'train.schedule' must be poly"),
        ("seed: 1\nseed: 2", "key 'seed' is in line"),
        ("common: {ignore_label: 0}", "common.ignore_label is 0"),
        ("- seed", "expected keys and values"),
    ],
)
def test_mistake_is_named_with_the_file_in_which_it_stands(tmp_path, text, message):
    """Also if the heir sets the key again."""
    write(tmp_path / "root.yaml", text)
    good = "train: {num_steps: 1, schedule: poly}\nseed: 1"
    leaf = write(tmp_path / "leaf.yaml", f"base: root.yaml\n{good}")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/root.yaml: .*{message}"):
        build_config(leaf)
    if not text.startswith("-"):
        write(tmp_path / "root.yaml", good)
        write(leaf, f"base: root.yaml\n{text}")
        with pytest.raises(ConfigError, match=rf"^{tmp_path}/leaf.yaml: .*{message}"):
            build_config(leaf)


def test_the_authors_files_inherit_and_are_inherited(tmp_path):
    """Each file is translated alone: a file with ``common:`` also gets the values that the released script fixes."""
    theirs = "common: {num_steps: 10, lambda_pseudo: 0.5, decrease_lr: 7}\n"
    ours = "train: {num_steps: 20, schedule: poly, lr_pow: 0.5}\nseed: 3\n"
    configs = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # this script uses each key of common:
        warnings.filterwarnings("ignore", "the released train_pycda_spatial needs keys")
        for inherited, own in ((theirs, ours), (ours, theirs)):
            write(tmp_path / "root.yaml", inherited)
            heir = write(tmp_path / "heir.yaml", f"base: root.yaml\n{own}")
            configs.append(build_config(heir, script="train_pycda_spatial"))
    first, second = configs
    for c in configs:
        assert (c.seed, c.curriculum.lambda_pseudo, c.train.decrease_lr, c.train.lr_pow) == (3, 0.5, 7, 0.5)
    assert (first.train.num_steps, first.train.schedule) == (20, "poly")
    assert (second.train.num_steps, second.train.schedule) == (10, "drop")


@pytest.mark.slow
def test_the_whole_configuration_is_printed_and_kept(command: Callable[..., list[str]], tmp_path, capsys):
    write(tmp_path / "root.yaml", "train: {lr_pow: 0.5}\ncurriculum: {box_size: [2]}")
    leaf = write(tmp_path / "leaf.yaml", "base: root.yaml\nseed: 3")
    found = printed("train_pycda", leaf, capsys)
    assert found == flatten(yaml.safe_load(to_yaml(build_config(leaf, defaults=train_pycda.DEFAULTS))))
    assert (found["train.lr_pow"], found["curriculum.box_size"], found["seed"]) == (0.5, [2], 3) and "base" not in found
    _, _, *keys = command(tmp_path, "run", "train.num_steps=1")
    train_source_only.main(["--config", str(leaf), *keys])
    kept = tmp_path / "run/config.yaml"
    assert read_yaml(kept, "evaluate").base is None
    assert build_config(kept) == build_config(leaf, keys) and build_config(kept).train.lr_pow == 0.5
