"""A run that was stopped anywhere and resumed equals an uninterrupted run."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train_source_only
from dataset.folders import DataError
from tests.processes import Forked
from utils.engine.trainer import Trainer
from utils.run_folder.checkpoint import CheckpointError, read_file
from utils.signals import STOPPED

pytestmark = pytest.mark.slow

STEPS = 6
KEYS = ["train.num_steps=6", "train.momentum=0.9"]


@pytest.fixture(scope="module")
def uninterrupted(command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("uninterrupted")
    train_source_only.main(command(runs, "run", *KEYS))
    return runs / "run"


def assert_same_run(folder: Path, other: Path) -> None:
    assert (folder / "log.jsonl").read_text() == (other / "log.jsonl").read_text()
    for name in ("best.pth", "last.pth"):
        a, b = (torch.load(run / name, weights_only=True) for run in (folder, other))
        assert a["step"] == b["step"] and a["best_miou"] == b["best_miou"] and a["bn_updates"] == b["bn_updates"]
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
        momenta = [state["optimizer"]["state"] for state in (a, b)]
        assert all(torch.equal(momenta[0][i]["momentum_buffer"], momenta[1][i]["momentum_buffer"]) for i in momenta[0])


def wait_for(process: Forked, folder: Path, step: int) -> None:
    """Wait until the log has the losses of ``step``."""
    while process.running():
        log = folder / "log.jsonl"
        if log.is_file() and any(json.loads(line)["step"] >= step for line in log.read_text().splitlines()[:-1]):
            return
        time.sleep(0.01)
    raise AssertionError(process.output())


def test_killed_run_resumes_bit_for_bit(command, uninterrupted, tmp_path, fork):
    """Between two checkpoints."""
    process = fork("train_source_only.py", command(tmp_path, "run", *KEYS, "train.num_workers=1"))
    wait_for(process, tmp_path / "run", 3)
    process.kill()
    train_source_only.main(command(tmp_path, "run", *KEYS))
    assert_same_run(tmp_path / "run", uninterrupted)


def killed_writing(arguments: list[str]) -> None:
    """A process that dies by SIGKILL in the middle of writing its second checkpoint."""
    whole, calls = torch.save, []

    def half(state, stream):
        calls.append(1)
        if len(calls) == 3:  # last.pth before the first validation, best.pth, last.pth
            stream.write(b"PK half a file")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        whole(state, stream)

    torch.save = half
    train_source_only.main(arguments)


def test_kill_while_a_checkpoint_is_written(command, uninterrupted, tmp_path, fork):
    status, output = fork(killed_writing, command(tmp_path, "run", *KEYS)).ended()
    assert status == -signal.SIGKILL, output
    assert list((tmp_path / "run").glob("*.pth.*.tmp"))
    train_source_only.main(command(tmp_path, "run", *KEYS))
    assert "after step 2" in (tmp_path / "run/log.txt").read_text()
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert_same_run(tmp_path / "run", uninterrupted)


def stop_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process during iteration ``number`` (from 1)."""
    step, calls = Trainer.step, []

    def signalled(self):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Trainer, "step", signalled)


def test_signal_finishes_the_step_saves_and_exits_with_its_own_status(command, uninterrupted, tmp_path, monkeypatch):
    stop_after(3, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        train_source_only.main(command(tmp_path, "run", *KEYS))
    assert stopped.value.code == STOPPED
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 3
    monkeypatch.undo()
    train_source_only.main(command(tmp_path, "run", *KEYS))
    assert_same_run(tmp_path / "run", uninterrupted)


def test_signal_to_all_processes_of_a_run_stops_it_politely(command, tmp_path, fork):
    """Like a scheduler's signal: the loader processes ignore it, and end with the main process."""
    arguments = command(tmp_path, "run", "train.num_steps=100000", "val.every=100000", "train.num_workers=2")
    process = fork("train_source_only.py", arguments)
    wait_for(process, tmp_path / "run", 1)
    os.killpg(process.pid, signal.SIGTERM)
    status, output = process.ended()
    assert status == STOPPED and "Run the same command to resume" in output


def test_second_signal_exits_at_once(command, tmp_path, fork):
    process = fork("train_source_only.py", command(tmp_path, "run", "train.num_steps=100000", "val.every=100000"))
    wait_for(process, tmp_path / "run", 1)
    os.kill(process.pid, signal.SIGSTOP)  # both signals arrive before the step can end
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert process.ended()[0] in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert not (tmp_path / "run/last.pth").exists()


def test_finished_run_is_not_trained_again_unless_asked(command, uninterrupted, tmp_path):
    keys = [*KEYS, "train.num_steps=2"]
    train_source_only.main(command(tmp_path, "run", *keys))
    before = (tmp_path / "run/last.pth").stat().st_mtime_ns
    train_source_only.main(command(tmp_path, "run", *keys))
    free = ["train.print_freq=7", "val.every=1", "test.split=train", "tta.flip=true", "adabn.epochs=2"]
    train_source_only.main(command(tmp_path, "run", *keys, *free, "model.fc_dim=null"))  # null is 512 here
    assert (tmp_path / "run/last.pth").stat().st_mtime_ns == before
    assert "already trained for 2 steps" in (tmp_path / "run/log.txt").read_text()
    train_source_only.main(command(tmp_path, "run", *KEYS, "resume=off"))
    assert f"the earlier run's results are now in {tmp_path}/run/earlier-1" in (tmp_path / "run/log.txt").read_text()
    assert (tmp_path / "run/earlier-1/last.pth").stat().st_mtime_ns == before
    assert_same_run(tmp_path / "run", uninterrupted)


def test_changed_configuration_is_refused_unless_forced(command, tmp_path):
    train_source_only.main(command(tmp_path, "run", "train.num_steps=2"))
    with pytest.raises(CheckpointError, match=r"train.lr_decoder: 0.016 -> 0.5, train.num_steps: 2 -> 3"):
        train_source_only.main(command(tmp_path, "run", "train.num_steps=3", "train.lr_decoder=0.5"))
    train_source_only.main(command(tmp_path, "run", "train.num_steps=2", "test.upsampling=direct", "val.every=1"))
    log = (tmp_path / "run/log.txt").read_text()
    assert "without effect on the weights: test.upsampling: released -> direct, val.every: 2 -> 1" in log
    train_source_only.main(command(tmp_path, "run", "train.num_steps=3", "train.lr_decoder=0.5", "resume_force=true"))
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 3
    other = tmp_path / "run/last.pth"
    with pytest.raises(CheckpointError, match="last.pthx"):
        train_source_only.main(command(tmp_path, "other", f"resume={other}x"))


def test_full_disk_names_the_file_and_leaves_the_checkpoint_before(command, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(state, stream):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        save(state, stream)

    monkeypatch.setattr(torch, "save", full)
    message = "cannot write .*: .*No space left on device.*run the same command again"
    with pytest.raises(CheckpointError, match=message):
        train_source_only.main(command(tmp_path, "run", *KEYS))
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert read_file(tmp_path / "run/last.pth")["step"] == 2  # it is whole


def spoil(city: Path, folder: Path) -> Path:
    """A copy of the source images; one of them is truncated."""
    shutil.copytree(city / "gtav", folder / "gtav")
    bad = folder / "gtav/images/00002.png"
    bad.write_bytes(bad.read_bytes()[:200])
    return bad


def test_unreadable_image_stops_the_run_or_is_counted(command, city, tmp_path):
    bad = spoil(city, tmp_path)
    keys = [f"source.data_dir={tmp_path}/gtav", "train.num_steps=6"]
    with pytest.raises(DataError, match=str(bad)):
        train_source_only.main(command(tmp_path, "stops", *keys, "train.num_workers=1"))
    train_source_only.main(command(tmp_path, "tolerates", *keys, "train.skip_bad_samples=2"))
    log = (tmp_path / "tolerates/log.txt").read_text()
    assert "skipped (2 of at most 2): cannot read image" in log and str(bad) in log
    with pytest.raises(DataError, match="skip_bad_samples allows 1"):
        train_source_only.main(command(tmp_path, "gives up", *keys, "train.skip_bad_samples=1"))


def test_image_deleted_during_the_run_is_named(command, city, tmp_path, monkeypatch):
    shutil.copytree(city / "gtav", tmp_path / "gtav")
    fit = Trainer.fit

    def delete_first(self, *arguments):
        shutil.rmtree(tmp_path / "gtav/images")
        return fit(self, *arguments)

    monkeypatch.setattr(Trainer, "fit", delete_first)
    with pytest.raises(DataError, match=f"cannot read image {tmp_path}/gtav/images"):
        train_source_only.main(command(tmp_path, "run", f"source.data_dir={tmp_path}/gtav"))


def test_run_folder_that_cannot_be_written_is_named(command, tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=f"cannot write into the run folder {tmp_path}/run"):
        train_source_only.main(command(tmp_path, "run"))


def poison_before(number: int, monkeypatch: pytest.MonkeyPatch, name: str = "decoder.conv_last.bias") -> None:
    """Set a value of the tensor ``name`` to NaN when iteration ``number`` (from 1) begins."""
    step, calls = Trainer.step, []

    def poisoned(self):
        calls.append(1)
        if len(calls) == number:
            self.model.state_dict()[name][0] = float("nan")
        return step(self)

    monkeypatch.setattr(Trainer, "step", poisoned)


def test_non_finite_loss_stops_with_every_term_and_keeps_the_last_good_checkpoint(command, tmp_path, monkeypatch):
    poison_before(3, monkeypatch)
    message = r"loss in the source step: total=nan, main=nan, aux=[\d.]+, .*last good checkpoint"
    with pytest.raises(FloatingPointError, match=message):
        train_source_only.main(command(tmp_path, "run", *KEYS))
    state = torch.load(tmp_path / "run/last.pth", weights_only=True)
    assert "FloatingPointError" in (tmp_path / "run/log.txt").read_text()
    assert state["step"] == 2 and all(tensor.isfinite().all() for tensor in state["model"].values())


def test_non_finite_weights_are_not_saved(command, tmp_path, monkeypatch):
    poison_before(4, monkeypatch, "encoder.bn1.running_mean")  # a training forward does not use it
    message = "after step 4 the network has non-finite weights: .*bn1.*last good checkpoint"
    with pytest.raises(FloatingPointError, match=message):
        train_source_only.main(command(tmp_path, "run", *KEYS))
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 2
