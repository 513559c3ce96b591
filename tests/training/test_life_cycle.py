"""Run folders: other methods, other data, failed starts, stops at any moment, and what remains after them."""

import json
import os
import shutil
import subprocess
import sys
import time
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
from dataset.folders import DataError, find_samples, hold_out, write_list
from dataset.labels import read_id_table
from models.weights import WeightsError, read_file
from tests.training.test_resume import KEYS, assert_same_run, stop_after, uninterrupted  # noqa: F401
from utils.config.read import ConfigError, to_yaml
from utils.config.schema import Config
from utils.run_folder.checkpoint import CheckpointError, load_training_state
from utils.run_folder.manifest import RunData, config_changes, git_revision
from utils.run_folder.summary import read_summary


@pytest.fixture
def finished(source_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished source-only run; its command is ``command(tmp_path, "run")``."""
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
    assert torch.load(finished / "last.pth", weights_only=True)["method"] == "train_source_only"


def test_checkpoint_of_an_older_version_is_resumed_and_reported(command, finished, tmp_path):
    rewrite(finished / "last.pth", lambda state: [state.pop(name) for name in ("method", "data", "validated")])
    train_source_only.main(command(tmp_path, "run"))
    assert "is of an older version" in log_of(finished) and "already trained for 2 steps" in log_of(finished)


def test_checkpoint_with_data_in_the_older_form_is_resumed_and_reported(command, finished, tmp_path):
    old = {"digest": "0" * 64, "content": torch.zeros(9, dtype=torch.uint8)}
    rewrite(finished / "last.pth", lambda state: state.update(data=old))
    train_source_only.main(command(tmp_path, "run"))
    assert "saved another digest of the data: the data are not compared" in log_of(finished)


def test_key_of_a_newer_version_counts_as_its_default():
    old = to_yaml(Config()).replace("  lambda_seg: 0.4\n", "")
    assert "lambda_seg" not in old and config_changes(old, Config()) == ("", "")
    newer = Config()
    newer.train.lambda_seg = 0.5
    assert config_changes(old, newer) == ("train.lambda_seg: 0.4 -> 0.5", "")


def write_id_table(path: Path, ids: list[int]) -> None:
    classes = [{"name": name, "colour": [0, 0, 0], "ids": [raw]} for name, raw in zip("ab", ids, strict=True)]
    path.write_text(json.dumps({"classes": classes}))
    read_id_table.cache_clear()


SAME_NAMES = "the same names, but other labels or image sizes"


def test_changed_data_is_named(city, tmp_path):
    shutil.copytree(city, tmp_path / "city")
    config, table = Config(num_classes=2), tmp_path / "ids.yaml"
    write_id_table(table, [1, 2])
    for part in (config.source, config.target, config.test):
        part.dataset, part.id_table = "list", str(table)
    config.source.data_dir, config.target.data_dir = (f"{tmp_path}/city/{name}" for name in ("gtav", "cityscapes"))
    config.snapshot_dir, config.exp_name = str(tmp_path), "run"
    source = find_samples("gtav", config.source.data_dir)
    target, held_out = hold_out(find_samples("cityscapes", config.target.data_dir), 3, 0)
    lists = {"source": source, "target": target, "held_out": held_out}
    for name, samples in lists.items():
        (tmp_path / "run/lists").mkdir(parents=True, exist_ok=True)
        root = config.source.data_dir if name == "source" else config.target.data_dir
        write_list(samples, tmp_path / f"run/lists/{name}.txt", root)
    saved = RunData(config, lists).digests
    assert RunData(config, lists).changes(saved, tmp_path / "run") == ""
    os.utime(source[0].label, (1, 1))  # copies have other times
    assert RunData(config, lists).changes(saved, tmp_path / "run") == ""
    with source[0].image.open("ab") as stream:
        stream.write(b" ")
    assert RunData(config, lists).changes(saved, tmp_path / "run") == f"source: {SAME_NAMES}"
    label = np.array(Image.open(source[2].label))
    Image.fromarray(np.roll(label, 9)).save(source[2].label)
    write_id_table(table, [2, 1])
    changed = RunData(config, {"source": source, "target": target[::-1], "held_out": held_out[:2] + target[:1]})
    assert changed.changes(saved, tmp_path / "run") == (
        f"held_out: 1 image(s) removed ({relative(held_out[2], config)}), 1 image(s) added "
        f"({relative(target[0], config)}); source: {SAME_NAMES}; source.id_table; "
        "target: the same images in another order; target.id_table"
    )
    assert "source: the change is unknown because" in changed.changes(saved, tmp_path)
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
    assert "resume_force: resuming although the checkpoint was written with other data" in log_of(tmp_path / "run")


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
    shutil.copytree(finished / "tensorboard", finished / "earlier-1")  # from the user or an earlier start
    train_source_only.main(command(tmp_path, "run", "train.num_steps=1"))
    aside = finished / "earlier-2"
    assert f"results are now in {aside}" in log_of(finished)
    assert (aside / "best.pth").read_bytes() == (aside / "adabn.pth").read_bytes() == best
    assert (aside / "log.jsonl").read_text() == records and (aside / "tensorboard").is_dir()
    assert torch.load(finished / "last.pth", weights_only=True)["step"] == 1 and not (finished / "adabn.pth").exists()


def test_resume_from_a_file_elsewhere(command, source_run, finished, tmp_path):
    convert.main(command(tmp_path, "converted", f"adabn.weights={source_run}"))
    adabn = tmp_path / "converted/adabn.pth"
    with pytest.raises(CheckpointError, match="no training state .*model.weights=.*adabn.pth starts a new"):
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
    with pytest.raises(DataError, match="all pixels of the 6 source labels .* are void"):
        train_source_only.main(command(tmp_path, "source", f"source.data_dir={tmp_path}/city/gtav"))
    void(tmp_path / "city/cityscapes/gtFine/train", "*labelIds.png")
    keys = [f"target.data_dir={tmp_path}/city/cityscapes", "train.num_steps=1"]
    train_source_only.main(command(tmp_path, "target", *keys))
    log = log_of(tmp_path / "target")
    assert log.count("all pixels of the 3 held-out labels are void") == 1 and "nan" not in log
    assert "classes that do not occur in the 6 of 6 source labels that were read: " in log
    assert (tmp_path / "target/last.pth").is_file() and not (tmp_path / "target/best.pth").exists()


def flip(path: Path) -> None:
    """Flip one bit of a tensor in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_bit_is_found_and_the_previous_checkpoint_used(command, finished, tmp_path):
    shutil.copy(finished / "last.pth", finished / "last.previous.pth")
    flip(finished / "last.pth")
    torch.load(finished / "last.pth", weights_only=True)  # no warning
    with pytest.raises(WeightsError, match="last.pth is damaged"):
        read_file(finished / "last.pth")
    train_source_only.main(command(tmp_path, "run"))
    assert "damaged checkpoint" in log_of(finished) and "last.previous.pth after step 2" in log_of(finished)


def test_without_git_the_code_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_revision.__wrapped__() == "unknown"


def test_scaler_of_a_run_without_one_is_left_as_it_is():
    model = nn.Linear(2, 1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    state = {"model": model.state_dict(), "bn_updates": {}, "optimizer": optimizer.state_dict(), "scaler": {}}
    progress = load_training_state(state | {"step": 3, "best_miou": 1.5, "skipped": 0}, model, optimizer, scaler)
    assert optimizer.state_dict() == state["optimizer"]
    assert progress.step == 3 and scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()
    with pytest.raises(CheckpointError, match="does not fit this network and optimiser: .*weight"):
        load_training_state(state | {"model": {}}, model, optimizer, scaler)


FULL = """
import resource, sys
from pathlib import Path
from PIL import Image
from utils.run_folder.log import RunLog
folder = Path(sys.argv[1])
with RunLog(folder) as log:
    log.restart(0)
    log.text("before")
    log.record(0, {"source/total": 1.0})
    if sys.argv[2] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    picture = Image.effect_noise((300, 300), 50).convert("RGB")
    for step in range(1, 200):
        log.text(f"step {step}")
        log.record(step, {"source/total": 1.0, "source/share/pixel": {"road": 0.5, "sky": 0.5}})
        if step < 5:
            log.picture(step, "panel", picture)
print("goes on", file=sys.stderr)
"""


def run_full(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    code, root = [sys.executable, "-c", FULL, str(folder), *arguments], Path(__file__).parents[2]
    return subprocess.run(code, cwd=root, stderr=subprocess.PIPE, text=True, timeout=120, **options)


@pytest.mark.slow
def test_full_output_is_disabled_with_a_warning(tmp_path):
    """In its own process, because the output stays disabled."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "log.jsonl").touch()
    with open("/dev/full", "w") as full:
        done = run_full(tmp_path, "room", stdout=full)
    assert done.returncode == 0 and done.stderr == "goes on\n"
    assert log_of(tmp_path).count("cannot write to standard output: [Errno 28]") == 1
    assert "step 199" in log_of(tmp_path)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 200


@pytest.mark.slow
def test_no_file_that_cannot_be_written_stops_or_stalls_a_training(tmp_path):
    """No file can be longer than 2000 bytes. A picture is larger than the queue of the writing thread."""
    done = run_full(tmp_path, "full", stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr == "goes on\n"
    for name in ("log.txt", "log.jsonl", "tensorboard"):
        assert done.stdout.count(f"cannot write to {tmp_path / name}: ") == 1, name
    assert "step 199" in done.stdout and (tmp_path / "log.jsonl").stat().st_size <= 2000


def test_manifest_has_the_facts_and_the_time_of_the_run(command, tmp_path, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    stop_after(1, monkeypatch)
    arguments = command(tmp_path, "run", "val.held_out=0")
    with pytest.raises(SystemExit):
        train_source_only.main(arguments)
    monkeypatch.undo()
    first = json.loads((tmp_path / "run/run.json").read_text())
    state = torch.load(tmp_path / "run/last.pth", weights_only=True)
    assert first["method"] == state["method"] == "train_source_only" and first["start"] is None
    assert first["digests"] == state["data"] and set(first["digests"]) == {"source", "target", "held_out"}
    assert first["images"] == {"source": 6, "target": 9, "held_out": 0}
    assert first["versions"]["torch"] == torch.__version__ and first["seconds"] >= 1
    train_source_only.main(arguments)
    second = json.loads((tmp_path / "run/run.json").read_text())
    assert second["started"] == first["started"] and first["seconds"] < second["seconds"] < first["seconds"] + 120
    train_source_only.main([*arguments, "resume=off"])
    third = json.loads((tmp_path / "run/run.json").read_text())
    assert third["seconds"] < 120 and json.loads((tmp_path / "run/earlier-1/run.json").read_text()) == second


def test_missing_facts_of_an_older_run_folder_are_unknown(command, finished, tmp_path):
    (finished / "run.json").unlink()
    (finished / "last.pth").unlink()
    (finished / "best.pth").rename(finished / "last.pth")
    train_source_only.main(command(tmp_path, "run"))
    found = read_summary(finished / "last.pth")
    assert (found.method, found.date, found.seconds) == ("source only", "-", None)
    rewrite(finished / "last.pth", lambda state: state.pop("method"))
    (finished / "run.json").unlink()
    found = read_summary(finished / "last.pth")
    assert (found.method, found.images) == ("-", {})
    (finished / "run.json").write_text('{"method": ')
    with pytest.raises(DataError, match="run.json is damaged: delete it"):
        read_summary(finished / "last.pth")
