"""Logits are upsampled to the label's size as in the released code; strips give the same as the whole."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dataset.labels import CITYSCAPES
from models import build_segmentor
from tests.upsampled import MODES, classes_at
from utils.config.schema import AtTestTime, Evaluation
from utils.scoring.predictor import Predictor
from utils.scoring.upsampling import View, upsample

MARGIN = 1e-4  # between the two highest logits; if it is smaller, rounding decides


def plain(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int], mode: str) -> Tensor:
    """The released order of operations, or one step, with torch only."""
    if mode == "direct":
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)
    seen = F.interpolate(logits, input_size, mode="bilinear", align_corners=False)
    return F.interpolate(seen, size, mode="bilinear", align_corners=True)


def blobs(shape: tuple[int, ...], seed: int) -> Tensor:
    """Logits with similar neighbours."""
    noise = torch.randn(*shape[:2], shape[2] + 4, shape[3] + 4, generator=torch.Generator().manual_seed(seed))
    return 5 * F.avg_pool2d(noise, 5, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("stride_size", "input_size", "size"),
    [
        ((16, 32), (128, 256), (256, 512)),
        ((17, 33), (130, 261), (377, 613)),  # nothing divides
        ((16, 32), (128, 256), (100, 180)),  # a label smaller than the input
        ((16, 32), (128, 256), (128, 256)),
        ((1, 1), (8, 8), (5, 7)),
        ((4, 64), (32, 512), (32, 2000)),
    ],
)
def test_strips_are_cut_out_of_the_whole(stride_size, input_size, size, mode):
    logits = blobs((2, 6, *stride_size), seed=stride_size[0])
    expected = plain(logits, input_size, size, mode)
    assert torch.equal(upsample(logits, input_size, size, mode), expected)
    found = classes_at([View(logits, input_size)], size, mode)
    best, second = expected.topk(2, dim=1).values.unbind(1)
    clear = best - second > MARGIN
    assert clear.float().mean() > 0.99 and torch.equal(found[clear].long(), expected.argmax(1)[clear])


@pytest.mark.parametrize("mode", MODES)
def test_probabilities_of_several_views_are_averaged(mode):
    views = [View(blobs((1, 5, 8, 16), 0), (64, 128)), View(blobs((1, 5, 12, 24), 1), (96, 192))]
    size = (70, 150)
    expected = sum(plain(view.logits, view.input_size, size, mode).softmax(1) for view in views) / 2
    best, second = expected.topk(2, dim=1).values.unbind(1)
    clear = best - second > MARGIN
    assert torch.equal(classes_at(views, size, mode)[clear].long(), expected.argmax(1)[clear])


class LargestFloats(TorchDispatchMode):
    """Counts the floats of the largest tensor that is made inside the context."""

    most = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **options or {})
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.most = max(self.most, tensor.numel())
        return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("input_size", [(128, 256), (512, 1024)])
@pytest.mark.parametrize("views", [1, 2])
def test_logits_are_never_held_at_the_size_of_the_label(mode, input_size, views, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # each has a strip of its own
    stride_size, size = (input_size[0] // 8, input_size[1] // 8), (512, 1024)
    logits = blobs((1, 19, *stride_size), seed=0).to(memory_format=torch.channels_last).requires_grad_()
    whole = logits.new_empty(1, 19, *size).numel()
    with LargestFloats() as strips:
        found = classes_at([View(logits, input_size)] * views, size, mode)
    with LargestFloats() as plainly, torch.no_grad():
        expected = plain(logits, input_size, size, mode)
    assert strips.most <= whole / 8 and plainly.most == whole
    best, second = expected.topk(2, dim=1).values.unbind(1)
    clear = best - second > MARGIN
    assert torch.equal(found[clear].long(), expected.argmax(1)[clear])


def ideal_city() -> tuple[Tensor, Tensor, Tensor]:
    """Perfect logits of a scene at stride 8.

    Returns:
        one-hot logits (1, C, 32, 64); labels (512, 1024) at twice the size of the network's input; mask of the labels
        that have no other class within 3 pixels.
    """
    cells = np.random.default_rng(0).integers(0, 19, (8, 16)).repeat(4, 0).repeat(4, 1)
    label = cells.repeat(16, 0).repeat(16, 1)
    same = np.ones_like(label, bool)
    for axis in (0, 1):
        for shift in range(-3, 4):
            same &= np.roll(label, shift, axis) == label
    return (
        F.one_hot(torch.from_numpy(cells), 19).permute(2, 0, 1)[None].float(),
        torch.from_numpy(label),
        torch.from_numpy(same),
    )


@pytest.mark.parametrize("mode", MODES)
def test_network_that_knows_every_cell_is_right_away_from_class_borders(mode):
    logits, label, inner = ideal_city()
    found = classes_at([View(logits, (256, 512))], (512, 1024), mode)[0]
    assert (found == label)[inner].float().mean() > 0.999
    shifted = F.interpolate(logits, (512, 1024), mode="bilinear", align_corners=True).argmax(1)[0]
    assert (shifted == label)[inner].float().mean() < 0.99  # upsampled in one step with aligned corners


@pytest.mark.parametrize("mode", MODES)
def test_network_and_evaluation_agree_at_the_same_size(mode):
    model = build_segmentor("resnet18_dilated8", "fcn", 7).eval()
    images = torch.randn(2, 3, 72, 104, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)["logits"].argmax(1)
        plainly, mirrored = (
            Predictor(model, CITYSCAPES, torch.device("cpu"), Evaluation(upsampling=mode), AtTestTime(flip=flip))
            for flip in (False, True)
        )
        assert torch.equal(plainly.segment(images, (72, 104))[0].long(), expected)
        flipped = mirrored.segment(images, (72, 104))[0]
    assert not torch.equal(flipped.long(), expected)
