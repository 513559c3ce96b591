"""Mistakes that fuzzing found, one case of each kind. These tests do not need hypothesis."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dataset.messages import UserError
from models.weights import WeightsError, load_checkpoint_weights, load_tensors, read_file
from utils.config.command_line import load_config
from utils.config.schema import Config, ConfigError
from utils.run_folder.checkpoint import DamagedError, class_table_of, find_state, load_training_state
from utils.run_folder.manifest import RunData
from utils.run_folder.summary import read_summary
from utils.scoring.predictor import config_of


@pytest.mark.slow
def test_message_is_one_line_whatever_it_quotes():
    quoted = "a  b.png \x85 is none:\n\tno\u2028 way\x1b[2J\udcff"
    assert str(UserError(quoted)) == r"a  b.png is none: no way\x1b[2J\udcff"
    assert str(UserError("a  b.png\tc")) == "a  b.png\\tc"
    with pytest.raises(ConfigError, match=r"'train.amp \[31m=' is not") as error:
        load_config(["--config", "cfgs/pycda_exp001.yaml", "train.amp\n[31m="], None, "train_pycda")
    assert str(error.value).isprintable()


def test_id_table_of_16_bit_labels_names_the_key():
    config = Config()
    config.follow_target()
    config.source.dataset, config.source.id_table = "synthia", "ids.yaml"
    with pytest.raises(ConfigError, match="source.id_table: id_table ids.yaml: a table is for 8-bit labels"):
        _ = config.class_table


def test_file_of_before_the_zip_format_cut_off_within_a_number(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3), "b": 2**40}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="old.pth is damaged"):
            read_file(path)


@pytest.mark.parametrize("tensors", [torch.ones(3), [1], {1: torch.ones(1)}, {"weight": torch.ones(1, 2).to_sparse()}])
def test_something_else_than_named_tensors(tensors):
    linear = nn.Linear(2, 1, bias=False)
    with pytest.raises(WeightsError, match="^some.pth") as error:
        load_tensors(linear, tensors, "network", "some.pth")
    assert "\n" not in str(error.value)


CONTENTS = {
    "bn_updates": {"model": {}, "bn_updates": [1]},
    "text": {"config": "a: ["},
    "number": {"config": 5},
    "list": {"config": "- 1"},
}
CLASSES = {"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "export_ids": [1, 2]}
READERS: dict[str, Callable[[Path], object]] = {
    "weights": lambda path: load_checkpoint_weights(nn.Module(), read_file(path), path),
    "configuration": lambda path: config_of(read_file(path), str(path)),
    "summary": read_summary,
}
PAIRS = [("bn_updates", "weights")]
PAIRS += [(content, reader) for content in ("text", "number", "list") for reader in ("configuration", "summary")]


@pytest.mark.parametrize(("content", "reader"), PAIRS)
def test_checkpoint_with_wrong_entries(tmp_path, content, reader):
    path = tmp_path / "run.pth"
    torch.save(CONTENTS[content], path)
    with pytest.raises(UserError, match="run.pth"):
        READERS[reader](path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("palette", [[1, 2, 300], [4, 5, 6]]),
        ("palette", [[1, 2, 3], [4, 5]]),
        ("palette", [[1, 2, 3], "red"]),
        ("export_ids", [1, 256]),
        ("export_ids", [1, math.inf]),
        ("export_ids", 5),
        ("names", [1] * 2),
        ("names", ["a"]),
        ("names", ["a", "a"]),
        ("names", ["a", ""]),
        ("names", ["a", "\x1b[2J"]),
        ("names", ["a", torch.ones(2)]),
    ],
)
def test_classes_of_a_checkpoint_are_checked_like_an_id_table(tmp_path, entry, value):
    path = tmp_path / "run.pth"
    torch.save({"classes": CLASSES | {entry: value}}, path)
    with pytest.raises(WeightsError, match="^[^\x1b\n]*run.pth is damaged in its classes: [^\x1b\n]*$"):
        class_table_of(read_file(path), Config(), str(path))


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict:
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    standing = {"step": 1, "best_miou": -1.0, "skipped": 0}
    return {"model": model.state_dict(), "bn_updates": {}, "optimizer": optimizer.state_dict(), "scaler": {}} | standing


@pytest.mark.parametrize("setting", [{"momentum": [1]}, {"nesterov": torch.ones(2)}, {"momentum": "missing"}])
def test_settings_of_the_optimiser_that_its_next_step_would_reject(setting):
    model = nn.Linear(2, 1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), torch.amp.GradScaler("cpu")
    state = state_of(optimizer, model)
    load_training_state(state, model, optimizer, scaler)
    group = state["optimizer"]["param_groups"][0]
    group |= setting
    if group["momentum"] == "missing":
        del group["momentum"]
    with pytest.raises(UserError, match=f"the setting {next(iter(setting))} of its optimiser"):
        load_training_state(state, model, optimizer, scaler)


def test_negative_step_is_refused(tmp_path):
    path, config = tmp_path / "last.pth", Config(resume=str(tmp_path / "last.pth"))
    state = {"model": {}, "bn_updates": {}, "config": "", "optimizer": {}, "scaler": {}, "step": -5}
    torch.save(state | {"best_miou": 0.0, "skipped": 0}, path)
    with pytest.raises(DamagedError, match="last.pth is no training state: step missing"):
        find_state(RunData(config, {}), "train_pycda", lambda text: None)
