"""Two processes compute what one computes: losses, gradients, weights, scores. Processes are real ones, over gloo."""

import json
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import evaluate
import train_source_only
from dataset.messages import DataError
from tests.processes import Forked, as_two, ended, launch, launched
from tests.training import recorded
from utils import distributed

pytestmark = pytest.mark.slow(5)  # seconds

WHOLE = ["source.crop_size=null", "target.crop_size=null", "target.input_size=[72, 48]", "source.input_size=[72, 48]"]
STEPS = ["train.num_steps=5", "train.batch_size=4", "val.every=5", "model.dropout=0.0"]
CHANGED = [*STEPS, "val.every=2"]  # of a run whose number of processes changes
NETWORK = ["source.crop_size=null", "target.crop_size=null"]
LEARNING = ["train.lr_encoder=0.0002", "train.lr_decoder=0.001"]
RESTING = ["train.lr_encoder=0", "train.lr_decoder=0"]
RUNS = {  # each script once: keys; precision; steps; what may be apart: losses and weights, gradients
    "train_source_only": (
        ["source.scale=[0.7, 1.3]", "source.flip=true", "source.crop_size=[96, 64]", *LEARNING],
        *("float32", 3, 1e-4, 0.05),
    ),
    "train_pycda": (["curriculum.conf_threshold=0.2", *RESTING], "float32", 2, 1e-4, 1e-4),
    "train_pycda_spatial": (  # few squares: one at the threshold would show
        [*WHOLE, "curriculum.conf_threshold=0.0", *LEARNING],
        *("float64", 2, 1e-6, 1e-6),
    ),
}


def losses(run: Path) -> list[dict]:
    """Losses and scores; without the class shares of the predictions."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in found if "target/share/prediction/road" not in record]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def trained_run(command, tmp_path_factory) -> Path:
    """A network that has learnt something. Of one that has not, float32 training is chaotic: a value that rounding puts
    on the other side of a ReLU changes the gradient by half a percent, and the pseudo-labels are ties."""
    runs = tmp_path_factory.mktemp("trained")
    rates = ["train.lr_encoder=0.01", "train.lr_decoder=0.05"]
    keys = ["train.num_steps=20", "train.batch_size=4", "val.every=20", *rates]
    train_source_only.main(command(runs, "source_only", *NETWORK, *keys))
    return runs / "source_only"


@pytest.fixture(scope="module")
def pairs(command, trained_run, tmp_path_factory) -> Path:
    """Folder of the runs and gradients of ``RUNS``, by one process and by two: SCRIPT-PROCESSES.

    In the same start two processes score ``trained_run``, and begin the run ``changed``.
    """
    runs, jobs = tmp_path_factory.mktemp("pairs"), {1: [], 2: []}
    for processes in jobs:
        for script, (keys, dtype, steps, *_) in RUNS.items():
            name, steps_key = f"{script}-{processes}", f"train.num_steps={steps}"
            options = [*NETWORK, *STEPS, steps_key, *keys, f"model.weights={trained_run}"]
            job = {"script": script, "arguments": command(runs, name, *options)}
            jobs[processes].append(job | {"dtype": dtype, "file": f"{runs}/{name}.pth"})
    alone = [
        {"script": "evaluate", "arguments": scoring(command, runs, trained_run, 2)},
        {"script": "train_source_only", "arguments": command(runs, "changed", *CHANGED, "train.num_steps=2")},
    ]
    (runs / "jobs.json").write_text(json.dumps(jobs[2] + alone))
    two = as_two(Forked, recorded.main, *2 * [[str(runs / "jobs.json")]])
    try:
        for process in two:  # first: on two cores they would starve
            status, output = process.ended()
            assert status == 0, output
    finally:
        for process in two:
            process.kill()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has: a convolution shared by threads may sum in another order
    for job in jobs[1]:
        recorded.train(**job)
    torch.set_num_threads(threads)
    return runs


def scoring(command, runs: Path, weights: Path, processes: int) -> list[str]:
    """Arguments of ``evaluate.py``, which writes PROCESSES.json."""
    return command(runs, "e", "--weights", str(weights), "--json", str(runs / f"{processes}.json"))


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors, relative to the norm of the first."""
    assert one.keys() == two.keys()
    total = sum(one[name].double().square().sum() for name in one)
    difference = sum((one[name] - two[name]).double().square().sum() for name in one)
    return (difference / total).sqrt().item()


@pytest.mark.parametrize("script", RUNS)
def test_two_processes_train_as_one(pairs, trained_run, script):
    """Losses, gradients and weights of a few iterations. With the same weights, the gradients are the same in float32
    too; while these learn, rounding moves a value to the other side of a ReLU now and then, and the gradient by up to a
    few percent with it. In float64, where it cannot, gradients are the same all along."""
    keys, _, steps, value, gradient = RUNS[script]
    one, two = (losses(pairs / f"{script}-{processes}") for processes in (1, 2))
    assert [record["step"] for record in one] == [*range(1, steps + 1), steps]  # the last one: the scores
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        tie = any(a[name] != b[name] for name in a if "/labelled/" in name)  # a pixel at the threshold: one of 12,288
        for name in a:
            counted = 0.05 if name.startswith("val/") else 1e-6
            if "/labelled/" in name or "/share/" in name:
                counted = 10 * value
            assert a[name] == pytest.approx(b[name], rel=10 * value if tie else value, abs=counted, nan_ok=True), name
    one, two = (torch.load(pairs / f"{script}-{processes}.pth", weights_only=True) for processes in (1, 2))
    assert len(one) == len(two) == (steps if script == "train_source_only" else 2 * steps)
    assert all(apart(a, b) <= gradient for a, b in zip(one, two, strict=True))
    one, two = (weights(pairs / f"{script}-{processes}") for processes in (1, 2))
    assert all(apart({name: one[name]}, {name: two[name]}) <= value for name in one)
    start = torch.load(trained_run / "best.pth", weights_only=True)["model"]
    moved = [{name: end[name] - start[name] for name in start if "running_" not in name} for end in (one, two)]
    if RESTING[0] in keys:
        assert not any(move.any() for move in moved[0].values())
    else:
        assert apart(*moved) <= min(gradient, 0.01)  # what the gradients did agrees too, not only what they left alone


def test_scores_are_the_same_counts_on_one_process_and_on_two(command, pairs, trained_run):
    """Which do not share the three images evenly."""
    evaluate.main(scoring(command, pairs, trained_run, 1))
    one, two = (json.loads((pairs / f"{n}.json").read_text()) for n in (1, 2))
    assert one["confusion_matrix"] == two["confusion_matrix"]
    assert sum(map(sum, one["confusion_matrix"])) == 3 * 96 * 64


def test_run_goes_on_with_another_number_of_processes(command, pairs):
    train_source_only.main(command(pairs, "straight", *CHANGED))
    train_source_only.main(command(pairs, "changed", *CHANGED, "resume_force=true"))
    straight, changed = losses(pairs / "straight"), losses(pairs / "changed")
    assert [r["step"] for r in straight] == [r["step"] for r in changed]
    totals = [[r["source/total"] for r in run if "source/total" in r] for run in (straight, changed)]
    assert totals[0] == pytest.approx(totals[1], rel=0.05)


FAILING = """
import os, pathlib, sys, time
here, rank = pathlib.Path(__file__).parent, os.environ["RANK"]
if not (here / "failed").exists():
    (here / rank).touch()
    while not (here / "0").exists():
        time.sleep(0.01)
    if rank == "1":
        (here / "failed").touch()
        raise RuntimeError("this process is out of luck")
    time.sleep(100)
"""


def test_one_failing_process_ends_the_others_with_its_error_and_all_start_again(tmp_path, fork):
    """The other one would wait for it for ever."""
    (tmp_path / "failing.py").write_text(FAILING)
    status, output = fork(launched, ["5", str(tmp_path / "failing.py")], NPROC="2", MAX_RESTARTS="1").ended(90)
    assert status == 0, output
    assert "this process is out of luck" in output
    assert "rank 1 failed first, with status 1" in output and "restart 1 of 1" in output


@pytest.mark.parametrize("name", ["scheduler", "user"])
def test_launcher_passes_on_the_exit_status(command, tmp_path, name):
    """A wrong key is an error of the script; the launcher does not hide it, with one process or two."""
    keys = command(tmp_path, "x", "train.nmu_steps=1")
    status, output = ended(launch(1 if name == "user" else 2, "train_source_only.py", keys))
    assert status != 0 and "the nearest is 'train.num_steps'" in output


def _waiting(arguments: list[str]) -> None:
    distributed.LAST_CALL = timedelta(seconds=2)

    def slow() -> str:
        time.sleep(4)
        return "a prior"

    def damaged() -> None:
        raise DataError("a.png is damaged")

    with distributed.process_group(0.05, dict):  # three seconds
        print("got", distributed.from_first(slow), flush=True)
        try:
            distributed.from_first(damaged)
        except DataError as error:
            print(f"error: {error}.", flush=True)
        time.sleep(100 * distributed.rank())
        distributed.gather([1])


def test_the_first_process_may_take_longer_than_the_others_wait_for_a_message(fork_two):
    """Its error comes to all; who does not answer is named, and ends the run."""
    first, second = fork_two(_waiting, [], [])
    status, output = first.ended()
    for said in (output, second.output()):
        assert "got a prior" in said and "error: a.png is damaged." in said
    assert status == 69 and "rank 0: error: lost another process: [Rank 0]: Ranks 1 failed to pass" in output, output
