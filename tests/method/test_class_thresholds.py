"""Thresholds per class are running quantiles of the confidences, the same on all processes."""

import math

import pytest
import torch
from torch import Tensor

import train_pycda
from models.weights import read_file
from tests.training.test_resume import stop_after
from utils.builders.curriculum import build_curriculum
from utils.config.schema import Curriculum
from utils.pycda.class_thresholds import BINS, ClassThresholds
from utils.pycda.curriculum import PyramidCurriculum

C, QUANTILE, MOMENTUM, MAXIMUM = 4, 0.4, 0.8, 0.9


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Confidences, labels and valid mask; class 3 is never predicted."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 8, 8)
    confidence, label = torch.rand(shape, generator=generator), torch.randint(3, shape, generator=generator)
    return confidence, label, torch.rand(shape, generator=generator) < 0.8


def thresholds(**options: object) -> ClassThresholds:
    return ClassThresholds(C, ["pixel"], quantile=QUANTILE, momentum=MOMENTUM, maximum=MAXIMUM, **options)


def plain_quantile(confidences: Tensor) -> float:
    """The ``QUANTILE`` quantile of the confidences, in whole bins."""
    ordered = sorted(math.floor(value * BINS) for value in confidences.tolist())
    return ordered[math.floor(QUANTILE * len(ordered))] / BINS


def test_running_quantiles_are_those_of_the_formula():
    ours, running = thresholds(), [math.nan] * C
    for seed in range(5):
        confidence, label, valid = batch(seed)
        found = ours("pixel", confidence, label, valid)
        for c in range(3):
            new = plain_quantile(confidence[(label == c) & valid].double())
            running[c] = new if seed == 0 else MOMENTUM * running[c] + (1 - MOMENTUM) * new
        expected = torch.tensor([min(value, MAXIMUM) for value in running], dtype=torch.float64)
        assert torch.allclose(ours.running[0], torch.tensor(running, dtype=torch.float64), equal_nan=True)
        assert torch.allclose(found.double(), expected[label])


def test_evaluation_does_not_change_the_thresholds_and_a_state_restores_them():
    ours, other = thresholds(), thresholds()
    ours("pixel", *batch(0))
    other.load_state_dict(ours.state_dict())
    before = ours.running.clone()
    ours.eval()("pixel", *batch(1))
    assert torch.equal(ours.running[0, :3], before[0, :3])
    assert torch.equal(ours.train()("pixel", *batch(1)), other("pixel", *batch(1)))


def test_two_processes_have_the_thresholds_of_one():
    whole, parts = thresholds(), batch(0)
    whole("pixel", *parts)
    halves = [tuple(tensor[i : i + 1] for tensor in parts) for i in range(2)]
    counts: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        counts.append(tensor)
        return tensor

    for half in halves:
        thresholds(all_reduce=collect)("pixel", *half)
    total = sum(counts)
    for half in halves:
        one = thresholds(all_reduce=lambda _: total)
        one("pixel", *half)
        assert torch.equal(one.running[0, :3], whole.running[0, :3])


def test_curriculum_labels_the_more_confident_part_of_each_class():
    torch.manual_seed(0)
    Z = torch.randn(2, C, 64, 64) * torch.tensor([4.0, 1.0, 2.0, 1.0])[:, None, None]
    layers = build("class_balanced").pseudo_labels(Z)
    for _, label, mask in (layers["pixel"], layers["square_4"]):
        shares = [mask[label == c].double().mean().item() for c in range(C)]
        assert all(abs(share - (1 - QUANTILE)) < 0.03 for share in shares), shares
    constant, default = build("constant"), PyramidCurriculum(None)
    for name, value in constant(Z).items():
        assert torch.equal(value, default(Z)[name])
    assert constant.state_dict() == {}


def build(threshold: str) -> PyramidCurriculum:
    """As a configuration builds it."""
    return build_curriculum(Curriculum(threshold=threshold, threshold_quantile=QUANTILE), C)


@pytest.mark.slow
def test_resumed_run_keeps_its_thresholds(command, source_run, tmp_path, monkeypatch):
    keys = [f"model.weights={source_run}", "curriculum.threshold=class_balanced", "train.num_steps=4", "val.held_out=0"]
    train_pycda.main(command(tmp_path, "whole", *keys))
    stop_after(2, monkeypatch)
    with pytest.raises(SystemExit):
        train_pycda.main(command(tmp_path, "resumed", *keys))
    monkeypatch.undo()
    train_pycda.main(command(tmp_path, "resumed", *keys))
    whole, resumed = (read_file(tmp_path / f"{name}/last.pth") for name in ("whole", "resumed"))
    running = [state["curricula"]["target"]["class_thresholds.running"] for state in (whole, resumed)]
    assert running[0].shape == (3, 19) and running[0].isfinite().any()
    assert torch.equal(running[0].nan_to_num(-1), running[1].nan_to_num(-1))
    assert all(torch.equal(tensor, resumed["model"][name]) for name, tensor in whole["model"].items())
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "resumed/log.jsonl").read_text()
