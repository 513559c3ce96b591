"""A trainer in the user's own program: steps, resuming from a state, and the same run as the script."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train_pycda
import train_source_only
from tests.training.test_resume import assert_same_run
from utils.config.read import build_config
from utils.config.schema import Config
from utils.curriculum import PyramidCurriculum
from utils.engine.experiment import Experiment, build_trainer
from utils.engine.losses import self_training
from utils.engine.trainer import Trainer
from utils.run_folder.checkpoint import read_file

KEYS = ["train.num_steps=4", "train.momentum=0.9"]


def config_of(arguments: list[str]) -> Config:
    """The configuration of the arguments of ``command``."""
    _, path, *keys = arguments
    return build_config(path, keys, script="train_source_only")


@pytest.fixture
def source_trainer(command: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Trainer]:
    def build(*keys: str) -> Trainer:
        config = config_of(command(tmp_path, "own", *KEYS, *keys))
        return build_trainer(config, train_source_only.phases, "train_source_only")

    return build


@pytest.mark.slow
def test_fit_is_the_run_of_the_script_also_after_it_was_left(command, tmp_path, source_trainer):
    train_source_only.main(command(tmp_path, "script", *KEYS))
    left = source_trainer()
    for _ in range(3):
        left.step()
    assert left.state.step == 3  # and nothing is saved
    source_trainer("train.num_steps=2").fit()
    source_trainer("resume_force=true").fit()
    assert_same_run(tmp_path / "own", tmp_path / "script")


def test_steps_continue_from_a_state_with_the_next_batches(command, tmp_path, source_trainer):
    whole, other = source_trainer("val.held_out=0"), source_trainer("val.held_out=0")
    whole.fit()
    state = read_file(tmp_path / "own/last.previous.pth") if (tmp_path / "own/last.previous.pth").exists() else None
    assert state is not None and state["step"] == 2
    other.load_state(state)
    other.step()
    other.step()
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.model.state_dict().items())


class Counting(PyramidCurriculum):
    """The user's own curriculum, with a state that lasts from step to step."""

    def __init__(self) -> None:
        super().__init__(None)
        self.register_buffer("seen", torch.zeros(()))

    def losses_and_labels(self, logits, valid=None):
        self.seen += 1
        return super().losses_and_labels(logits, valid)


def test_state_of_a_curriculum_is_part_of_the_checkpoint(command, tmp_path, source_run):
    made = []

    def phases(experiment: Experiment) -> list:
        made.append(Counting())
        target = experiment.target_phase(self_training(made[-1]), curriculum=made[-1])
        return [experiment.source_phase(), target]

    keys = ["val.held_out=0", f"model.weights={source_run}"]
    for steps in (2, 4):
        config = config_of(command(tmp_path, "own", *keys, f"train.num_steps={steps}", "resume_force=true"))
        build_trainer(config, phases, "own_method").fit()
    assert [int(curriculum.seen) for curriculum in made] == [2, 4]


def test_random_weights_are_refused_where_the_network_teaches_itself(command, tmp_path):
    config = config_of(command(tmp_path, "own"))
    with pytest.raises(ValueError, match="model.weights is not set"):
        build_trainer(config, train_pycda.phases, "train_pycda", self_trained=True)
