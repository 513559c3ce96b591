"""Class shares of the predictions on the target during training: for every method, without effect on it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train_adabn
import train_pycda
from dataset.folders import evenly_spaced, find_samples
from dataset.labels import CITYSCAPES
from dataset.priors import class_prior
from utils.builders import network
from utils.builders.data import Data
from utils.config.read import build_config
from utils.engine.watch import TargetShares
from utils.run_folder.log import PREDICTION, RunLog, last_labels, read_shares
from utils.scoring.evaluation import predictions_on
from utils.scoring.predictor import Predictor

CPU = torch.device("cpu")


def shares(run: Path) -> list[tuple[int, dict[str, float]]]:
    return read_shares(run / "log.jsonl", PREDICTION)


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_adabn, train_pycda])
def test_predictions_at_every_save(command, source_run, tmp_path, script):
    script.main(command(tmp_path, "run", f"model.weights={source_run}", "train.num_steps=3"))
    found = shares(tmp_path / "run")
    assert [step for step, _ in found] == [2, 3] and found[0][1] != found[-1][1]
    assert all(list(s) == list(CITYSCAPES.names) and sum(s.values()) == pytest.approx(1) for _, s in found)
    assert [step for step, _ in shares(source_run)] == [2]
    assert (last_labels(tmp_path / "run/log.jsonl") is None) == (script is train_adabn)


@pytest.mark.slow
def test_a_run_that_starts_anew_forgets_the_predictions_before_the_earlier_one(command, source_run, tmp_path):
    for keys in ([], ["resume=off", "seed=1"]):
        train_adabn.main(command(tmp_path, "run", f"model.weights={source_run}", "train.num_steps=1", *keys))
    assert [step for step, _ in shares(tmp_path / "run")] == [1]


def test_looking_changes_neither_the_network_nor_the_random_numbers(command, city, tmp_path):
    config = build_config(command(tmp_path, "x")[1], command(tmp_path, "x")[2:])
    model = network.build_network(config, CPU).train()
    source = find_samples("gtav", city / "gtav")
    labels = class_prior(source, "gtav", config.num_classes)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with RunLog(tmp_path) as log:
        watched = TargetShares(Data(config), CPU, log)
        assert list(watched.expected().values()) == pytest.approx(labels.tolist())
        watched.record(model, 0)
        watched.record(model, 1)
        expected = watched.expected()
    first, second = (s for _, s in shares(tmp_path))
    assert first == second and model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert list(expected.values()) == pytest.approx(np.maximum(labels, list(first.values())).tolist())


@pytest.mark.slow
def test_a_missing_class_that_should_be_labelled_is_reported_in_the_log(command, source_run, tmp_path, monkeypatch):
    expected = dict.fromkeys(CITYSCAPES.names, 0.0) | {"train": 0.3}  # the toy city has no trains
    monkeypatch.setattr(TargetShares, "expected", lambda self: expected)
    keys = [f"model.weights={source_run}", "train.num_steps=14", "val.every=14", "train.lr_decoder=0"]
    train_pycda.main(command(tmp_path, "run", *keys, "train.lr_encoder=0"))
    lines = [line for line in (tmp_path / "run/log.txt").read_text().splitlines() if "losing classes" in line]
    labels = last_labels(tmp_path / "run/log.jsonl")
    assert labels["train"] < 0.03 and len(lines) == 1 and "train: 30.0%" in lines[0] and "road" not in lines[0]


class Fixed(torch.nn.Module):
    """Predicts one class on the left half and another on the right."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.classes = left, right

    def stride_logits(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 19, *image.shape[-2:])
        half = image.shape[-1] // 2
        logits[:, self.classes[0], :, :half] = logits[:, self.classes[1], :, half:] = 1
        return logits


def test_shares_and_agreement_are_of_the_valid_pixels(command, tmp_path):
    config = build_config(command(tmp_path, "x")[1])
    valid = torch.ones(1, 4, 8, dtype=torch.bool)
    valid[:, :, 6:] = False  # of 6 columns, 4 are on the left
    loader = [{"image": torch.zeros(1, 3, 4, 8), "valid": valid}]
    predictors = [Predictor(Fixed(*classes), CITYSCAPES, CPU, config.test) for classes in ((0, 1), (0, 2))]
    found = predictions_on(predictors, loader)
    assert found.shares[0, :3].tolist() == pytest.approx([2 / 3, 1 / 3, 0]) and found.shares[1, 2] == 1 / 3
    assert found.agreement.tolist() == [[1, pytest.approx(2 / 3)], [pytest.approx(2 / 3), 1]]


def test_evenly_spaced():
    assert evenly_spaced(range(10), 3) == [0, 3, 6] and evenly_spaced("ab", 5) == ["a", "b"]
    assert len(evenly_spaced(range(300), 100)) == 100


def test_last_labels_are_a_mean_of_the_finest_layer(tmp_path, capsys):
    records = [{"step": i, "target/share/pixel/road": float(i), "target/share/square_4/road": 9.0} for i in range(30)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert last_labels(tmp_path / "log.jsonl") == {"road": 24.5}
    squares = {f"target/share/square_{b}/road": float(b) for b in (16, 4)}
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1} | squares))
    assert last_labels(tmp_path / "log.jsonl") == {"road": 4.0} and not capsys.readouterr().out
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write("\n{damaged")
    assert last_labels(tmp_path / "log.jsonl") == {"road": 4.0}
    assert capsys.readouterr().out.count("damaged line") == 1
