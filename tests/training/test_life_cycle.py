"""What a run is and what is left of it: other methods, other data, failed starts, stops at any moment."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import test_adabn as convert
import train_adabn
import train_pycda
import train_source_only
from dataset.folders import DataError, find_samples, hold_out
from dataset.labels import read_id_table
from models.weights import WeightsError, read_file
from tests.training.test_resume import KEYS, assert_same_run, start, stop_after, uninterrupted, wait_for  # noqa: F401
from utils.config.read import ConfigError, to_yaml
from utils.config.schema import Config
from utils.engine.state import load_training_state
from utils.run_folder.checkpoint import CheckpointError
from utils.run_folder.identity import config_changes, data_changes, data_identity, git_revision


@pytest.fixture
def finished(source_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished source-only run, whose command is ``command(tmp_path, "run")``."""
    shutil.copytree(source_run, tmp_path / "run")
    return tmp_path / "run"


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text()


def test_another_method_in_the_same_folder_is_refused_by_name(command, finished, tmp_path):
    with pytest.raises(CheckpointError, match="written by train_source_only.py, this is train_adabn.py"):
        train_adabn.main(command(tmp_path, "run", "resume_force=true"))
    assert torch.load(finished / "last.pth", weights_only=True)["phases"] == ["source"]


def test_checkpoint_of_an_older_version_is_gone_on_from_and_told(command, finished, tmp_path):
    rewrite(
        finished / "last.pth", lambda state: [state.pop(name) for name in ("method", "data", "phases", "validated")]
    )
    train_source_only.main(command(tmp_path, "run"))
    assert "is of an older version" in log_of(finished) and "already trained for 2 steps" in log_of(finished)


def test_key_of_a_newer_version_counts_as_its_default():
    old = to_yaml(Config()).replace("  lambda_seg: 0.4\n", "")
    assert "lambda_seg" not in old and config_changes(old, Config()) == ""
    newer = Config()
    newer.train.lambda_seg = 0.5
    assert config_changes(old, newer) == "train.lambda_seg: 0.4 -> 0.5"


def write_id_table(path: Path, ids: list[int]) -> None:
    classes = [{"name": name, "colour": [0, 0, 0], "ids": [raw]} for name, raw in zip("ab", ids, strict=True)]
    path.write_text(json.dumps({"classes": classes}))
    read_id_table.cache_clear()


def test_changed_data_is_named(city, tmp_path):
    shutil.copytree(city, tmp_path / "city")
    config = Config(num_classes=2)
    write_id_table(tmp_path / "ids.yaml", [1, 2])
    config.source.dataset, config.source.id_table = "list", str(tmp_path / "ids.yaml")
    config.target.dataset, config.target.id_table = config.test.dataset, config.test.id_table = (
        "list",
        str(tmp_path / "ids.yaml"),
    )
    config.source.data_dir, config.target.data_dir = (f"{tmp_path}/city/{name}" for name in ("gtav", "cityscapes"))
    source = find_samples("gtav", config.source.data_dir)
    target, held_out = hold_out(find_samples("cityscapes", config.target.data_dir), 3, 0)
    before = data_identity(config, source, target, held_out)
    assert data_changes(before, data_identity(config, source, target, held_out)) == ""
    label = np.array(Image.open(source[2].label))
    Image.fromarray(np.roll(label, 9)).save(source[2].label)
    write_id_table(tmp_path / "ids.yaml", [2, 1])
    found = data_changes(before, data_identity(config, source[1:], target[::-1], held_out[:2] + target[:1]))
    assert found == (
        "source: 1 image(s) removed (images/00001.png), 1 image(s) with another label file (images/00003.png); "
        f"target: the same images in another order; held out: 1 image(s) removed ({relative(held_out[2], config)}), "
        f"1 image(s) added ({relative(target[0], config)}); source.id_table: a [1], b [2] -> a [2], b [1]; "
        "target.id_table: a [1], b [2] -> a [2], b [1]"
    )
    read_id_table.cache_clear()


def relative(sample, config: Config) -> str:
    return str(sample.image.relative_to(config.target.data_dir))


def test_changed_data_is_refused_unless_forced(command, city, tmp_path):
    shutil.copytree(city / "gtav", tmp_path / "gtav")
    keys = [f"source.data_dir={tmp_path}/gtav", "val.held_out=0", "train.num_steps=1"]
    train_source_only.main(command(tmp_path, "run", *keys))
    for folder in ("images", "labels"):
        (tmp_path / f"gtav/{folder}/00001.png").unlink()
    with pytest.raises(CheckpointError, match=r"other data \(source: 1 image\(s\) removed \(images/00001.png\)\)"):
        train_source_only.main(command(tmp_path, "run", *keys))
    train_source_only.main(command(tmp_path, "run", *keys, "resume_force=true"))
    assert "resume_force: going on although the checkpoint was written with other data" in log_of(tmp_path / "run")


def test_pycda_from_random_weights_only_on_purpose(command, source_run, tmp_path):
    for keys in ([], ["model.weights_encoder=imagenet.pth"]):
        with pytest.raises(ConfigError, match="model.weights is not set: .*model.weights=scratch"):
            train_pycda.main(command(tmp_path / "runs", "run", *keys))
    assert not (tmp_path / "runs").exists()
    train_pycda.main(command(tmp_path, "run", "model.weights=scratch", "train.num_steps=1"))
    assert "random weights" not in log_of(tmp_path / "run")
    assert "WARNING: training starts from random weights" in log_of(source_run)


def test_start_that_fails_leaves_no_folder_and_touches_no_result(command, finished, tmp_path):
    wrong = ["resume=off", f"source.data_dir={tmp_path}/nowhere"]
    with pytest.raises(DataError):
        train_source_only.main(command(tmp_path / "runs", "new", *wrong))
    assert not (tmp_path / "runs").exists()
    records = (finished / "log.jsonl").read_text()
    with pytest.raises(DataError):
        train_source_only.main(command(tmp_path, "run", *wrong))
    assert (finished / "best.pth").is_file() and (finished / "log.jsonl").read_text() == records


def test_results_without_last_checkpoint_are_moved_aside(command, finished, tmp_path):
    best, records = (finished / "best.pth").read_bytes(), (finished / "log.jsonl").read_text()
    (finished / "last.pth").unlink()
    shutil.copy(finished / "best.pth", finished / "adabn.pth")
    shutil.copytree(finished / "tensorboard", finished / "earlier-1")  # somebody's, or an earlier start's
    train_source_only.main(command(tmp_path, "run", "train.num_steps=1"))
    aside = finished / "earlier-2"
    assert f"results are now in {aside}" in log_of(finished)
    assert (aside / "best.pth").read_bytes() == (aside / "adabn.pth").read_bytes() == best
    assert (aside / "log.jsonl").read_text() == records and (aside / "tensorboard").is_dir()
    assert torch.load(finished / "last.pth", weights_only=True)["step"] == 1 and not (finished / "adabn.pth").exists()


def test_resume_from_a_file_elsewhere(command, source_run, finished, tmp_path):
    convert.main(command(tmp_path, "converted", f"adabn.weights={source_run}"))
    adabn = tmp_path / "converted/adabn.pth"
    with pytest.raises(CheckpointError, match="no state of a training .*model.weights=.*adabn.pth starts a new"):
        train_source_only.main(command(tmp_path, "new", f"resume={adabn}"))
    assert not (tmp_path / "new").exists()
    train_source_only.main(command(tmp_path, "new", f"resume={source_run}/best.pth"))
    states = [torch.load(tmp_path / name / "best.pth", weights_only=True) for name in ("new", "run")]
    assert states[0]["best_miou"] == states[1]["best_miou"] and (tmp_path / "new/last.pth").is_file()


def void(folder: Path, pattern: str) -> None:
    for path in folder.rglob(pattern):
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)


def test_labels_that_are_all_void_count_as_none(command, city, tmp_path):
    shutil.copytree(city, tmp_path / "city")
    void(tmp_path / "city/gtav/labels", "*.png")
    with pytest.raises(DataError, match="no pixel of the 6 source labels .* is of a class"):
        train_source_only.main(command(tmp_path, "source", f"source.data_dir={tmp_path}/city/gtav"))
    void(tmp_path / "city/cityscapes/gtFine/train", "*labelIds.png")
    keys = [f"target.data_dir={tmp_path}/city/cityscapes", "train.num_steps=1"]
    train_source_only.main(command(tmp_path, "target", *keys))
    log = log_of(tmp_path / "target")
    assert log.count("no pixel of the 3 held-out labels is of a class") == 1 and "nan" not in log
    assert "not labelled in the 6 of 6 source labels that were looked at: " in log
    assert (tmp_path / "target/last.pth").is_file() and not (tmp_path / "target/best.pth").exists()


def flip(path: Path) -> None:
    """One bit of a tensor in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_bit_is_found_and_the_checkpoint_before_taken(command, finished, tmp_path):
    shutil.copy(finished / "last.pth", finished / "last.previous.pth")
    flip(finished / "last.pth")
    torch.load(finished / "last.pth", weights_only=True)  # without a word
    with pytest.raises(WeightsError, match="last.pth is damaged"):
        read_file(finished / "last.pth")
    train_source_only.main(command(tmp_path, "run"))
    assert "damaged checkpoint" in log_of(finished) and "last.previous.pth after step 2" in log_of(finished)


def test_without_git_the_code_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_revision() == "unknown"


def test_scaler_of_a_run_without_one_is_left_as_it_is():
    model = nn.Linear(2, 1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    state = {"model": model.state_dict(), "bn_updates": {}, "optimizer": optimizer.state_dict(), "scaler": {}}
    progress = load_training_state(state | {"step": 3, "best_miou": 1.5, "skipped": 0}, model, optimizer, scaler)
    assert optimizer.state_dict() == state["optimizer"]
    assert progress.step == 3 and scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()
    with pytest.raises(CheckpointError, match="does not fit this network and optimiser: .*weight"):
        load_training_state(state | {"model": {}}, model, optimizer, scaler)


@pytest.mark.slow
def test_no_log_stops_or_stalls_a_training(tmp_path):
    """A full disk behind the output and all three logs, in a process of its own as the output is switched off."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    code = """
import sys
from pathlib import Path
from tensorboardX.record_writer import RecordWriter
from utils.run_folder.log import RunLog
def full(*arguments): raise OSError(28, "No space left on device")
with RunLog(Path(sys.argv[1])) as log:
    RecordWriter.write = full
    for step in range(1, 100):
        log.text(f"step {step}")
        log.record(step, {"source/total": 1.0})
print("goes on", file=sys.stderr)
"""
    root = Path(__file__).parents[2]
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=root,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0 and "goes on" in done.stderr, done.stderr
    log = log_of(tmp_path)
    for name in ("standard output", "log.jsonl: ", "tensorboard: "):
        assert log.count(name) == 1, name
    assert "step 99" in log
