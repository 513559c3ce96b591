"""Commands that read by processes run where these are spawned (macOS) or forked from a server (Python 3.14)."""

import multiprocessing
from collections.abc import Iterator

import pytest

import evaluate
import test_adabn as convert
import train_pycda_spatial
from utils.commands import check, predict, report

pytestmark = pytest.mark.slow(5)  # seconds
# As on a platform that spawns: the new process imports the script once more.
SPAWNING = """
import multiprocessing, sys
import train_source_only

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    train_source_only.main(sys.argv[1:])
"""


@pytest.fixture
def forked_from_a_server() -> Iterator[None]:
    """What a process is given is pickled, as where it is spawned; the server of the tests has imported torch."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_every_command_runs(forked_from_a_server, command, city, source_run, tmp_path, capsys):
    usual = command(
        tmp_path, "spatial", "train.num_workers=1", "test.num_workers=1", "target.crop_size=null", "val.held_out=0"
    )
    start = [f"model.weights={source_run}", "curriculum.image_target=source", "source.crop_size=null"]
    assert check.main([*usual, "--workers", "2"]) == 0 and "0 errors" in capsys.readouterr().out
    train_pycda_spatial.main([*usual, *start, f"train.cache_dir={tmp_path}/cache"])
    assert (tmp_path / "spatial/last.pth").is_file()
    convert.main(usual)
    assert evaluate.main(usual) == 0
    assert predict.main([*usual, str(city / "gtav/images"), "--save", str(tmp_path / "out")]) == 0
    report.main(usual)
    assert (tmp_path / "spatial/report.html").is_file()


def test_training_runs_where_a_loader_is_spawned(command, fork, tmp_path):
    (tmp_path / "spawning.py").write_text(SPAWNING)
    keys = ["train.num_workers=1", "val.held_out=0", "train.num_steps=1"]
    status, output = fork(str(tmp_path / "spawning.py"), command(tmp_path, "run", *keys)).ended()
    assert status == 0 and (tmp_path / "run/last.pth").is_file(), output


# The program ends while its loader still has a process.
ENDING = """
import multiprocessing
from dataset.loader import MapDataset, eval_loader

class Numbers(MapDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return index

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    batches = iter(eval_loader(Numbers(), num_workers=1))
    print(next(batches))
"""


def test_program_ends_where_a_loader_is_forked_from_a_server(fork, tmp_path):
    (tmp_path / "ending.py").write_text(ENDING)
    status, output = fork(str(tmp_path / "ending.py"), []).ended()
    assert status == 0 and "tensor([0])" in output
