"""The curriculum compared with numbers of the released code and with the paper's formulas; edge cases."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.golden import reference
from utils import curriculum as short_path
from utils import pycda
from utils.pycda.curriculum import EPS, PyramidCurriculum
from utils.pycda.softmax_strips import SoftmaxStrips

CASES = json.loads((Path(reference.__file__).parent / "losses.json").read_text())["cases"]
TOLERANCE = 2e-5
ELSEWHERE = """
import sys
import torch
from lifted.curriculum import PyramidCurriculum
import utils                                    # of another project
assert utils.MINE
losses = PyramidCurriculum(None)(torch.ones(1, 3, 8, 8).cumsum(1))
print(*losses, [name for name in sys.modules if name.startswith(("utils.", "models", "dataset"))])
"""


def inputs(spec: dict) -> tuple[torch.Tensor, torch.Tensor]:
    logits = reference.logits(spec["name"], spec["n"], spec["classes"], spec["h"], spec["w"], spec["logit_scale"])
    valid = reference.valid(spec["n"], spec["h"], spec["w"], spec["valid"] == "padded")
    return torch.from_numpy(logits), torch.from_numpy(valid)


def released(spec: dict) -> PyramidCurriculum:
    spatial = None
    if spec["spatial"]:
        shape = spec["classes"], spec["h"], spec["w"]
        spatial = torch.from_numpy(reference.spatial_prior(spec["name"] + ".spatial", *shape))
    return PyramidCurriculum(
        torch.from_numpy(reference.prior(spec["name"] + ".prior", spec["classes"])),
        box_size=spec["box_size"],
        conf_threshold=spec["conf_threshold"],
        merge_1x1=spec["merge_1x1"],
        lambda_pseudo=spec["lambda_pseudo"],
        lambda_balance=spec["lambda_balance"],
        lambda_eq=spec["lambda_eq"] or 0.0,
        spatial_prior=spatial,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["spec"]["name"])
def test_released_recipe_gives_the_numbers_of_the_released_code(case, device):
    spec, expected = case["spec"], case["expected"]
    logits, valid = (tensor.to(device) for tensor in inputs(spec))
    logits.requires_grad_()
    losses = released(spec).to(device)(logits, valid)
    losses["total"].backward()
    for term in ("total", "pixel", "region", "image", "spatial"):
        assert (term in losses) == (term in expected)
        if term in expected:
            assert losses[term].item() == pytest.approx(expected[term], rel=TOLERANCE), term
    grad = logits.grad.double()
    n, C, h, w = grad.shape
    assert grad.abs().sum().item() == pytest.approx(expected["grad_l1"], rel=TOLERANCE)
    assert grad.norm().item() == pytest.approx(expected["grad_l2"], rel=TOLERANCE)
    probes = [grad[i % n, 7 * i % C, 13 * i % h, 29 * i % w].item() for i in range(len(expected["grad_probe"]))]
    assert probes == pytest.approx(expected["grad_probe"], rel=TOLERANCE, abs=1e-12)


def test_paper_variant_is_the_paper_formula():
    """Image CE per image with the source histogram; pooled probabilities; one mean over all labels."""
    logits, valid = inputs(CASES[1]["spec"])
    t = torch.from_numpy(reference.prior("t", logits.shape[1]))
    image = {"image_target": "source", "image_loss": "ce"}
    paper = PyramidCurriculum(t, merge_1x1=True, lambda_pseudo=0.5, **image, region_pool="probs", drop_saturated=False)
    losses = paper(logits, valid)
    P = logits.softmax(1)
    image = torch.stack([-(t * P[n].mean((1, 2)).log()).sum() for n in range(len(P))]).mean()
    entries = []
    for b in (1, 4, 8):
        pooled = F.avg_pool2d(P, b)
        some_valid = F.max_pool2d(valid[:, None].float(), b)[:, 0] > 0
        best = pooled.max(1).values
        entries.append(-best[(best > 0.5) & some_valid].log())
    region = torch.cat(entries).mean()
    assert losses["image"].item() == pytest.approx(image.item(), rel=1e-5)
    assert losses["region"].item() == pytest.approx(region.item(), rel=1e-5)
    assert losses["total"].item() == pytest.approx((image + 0.5 * region).item(), rel=1e-5)


def test_source_target_with_bce_aims_at_the_histogram():
    logits, _ = inputs(CASES[0]["spec"])
    t = torch.from_numpy(reference.prior("t", logits.shape[1]))
    p = logits.softmax(1).mean((0, 2, 3))
    expected = -(t * (p + EPS).log() + (1 - t) * (1 - p + EPS).log()).mean()
    losses = PyramidCurriculum(t, image_target="source")(logits)
    assert losses["image"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("merge_1x1", [False, True])
def test_nothing_confident_is_zero_not_nan(merge_1x1):
    logits = torch.zeros(2, 5, 16, 16, requires_grad=True)
    spatial = torch.full((5, 16, 16), 0.2)
    curriculum = PyramidCurriculum(None, merge_1x1=merge_1x1, lambda_eq=0.4, spatial_prior=spatial)
    losses = curriculum(logits)
    losses["total"].backward()
    assert losses["pixel"] == losses["region"] == losses["spatial"] == 0
    assert losses["total"].isfinite() and logits.grad.isfinite().all()


def test_padding_gives_no_label_and_no_gradient_from_pixels():
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 5
    logits.requires_grad_()
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[:, :, 5:] = False
    PyramidCurriculum(None, box_size=())(logits, valid)["pixel"].backward()
    assert logits.grad[..., 5:].abs().sum() == 0
    assert logits.grad[..., :5].abs().sum() > 0


def test_a_square_with_one_valid_pixel_is_labelled_and_a_padded_one_is_not():
    logits = torch.zeros(1, 2, 4, 8)
    logits[:, 0] = 2.0
    logits.requires_grad_()
    valid = torch.zeros(1, 4, 8, dtype=torch.bool)
    valid[0, 3, 3] = True
    PyramidCurriculum(None, box_size=(4,))(logits, valid)["region"].backward()
    assert logits.grad[..., :4].abs().sum() > 0
    assert logits.grad[..., 4:].abs().sum() == 0


def test_saturated_entries_leave_the_mean_only_in_the_released_variant():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0] = torch.tensor([200.0, 1.0])
    ce = F.cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item()
    released_mean = PyramidCurriculum(None, box_size=())(logits)["pixel"].item()
    paper_mean = PyramidCurriculum(None, box_size=(), drop_saturated=False)(logits)["pixel"].item()
    assert released_mean == pytest.approx(ce, rel=1e-5)
    assert paper_mean == pytest.approx(ce / 2, rel=1e-5)


def test_spatial_position_without_prior_is_left_out():
    spec = CASES[3]["spec"]
    logits, _ = inputs(spec)
    prior = torch.from_numpy(reference.spatial_prior("s", spec["classes"], spec["h"], spec["w"]))
    prior[:, :8, :8] = 0
    logits.requires_grad_()
    losses = PyramidCurriculum(None, lambda_pseudo=0, lambda_balance=0, lambda_eq=1.0, spatial_prior=prior)(logits)
    losses["total"].backward()
    assert losses["spatial"] > 0 and logits.grad.isfinite().all()
    assert logits.grad[:, :, :8, :8].abs().sum() == 0


def test_half_precision_logits_are_computed_in_float32():
    logits, valid = inputs(CASES[0]["spec"])
    curriculum = released(CASES[0]["spec"])
    half = logits.bfloat16()
    assert curriculum(half, valid)["image"].item() == curriculum(half.float(), valid)["image"].item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_target": "uniforn"}, "image_target"),
        ({"image_target": "source"}, "class_prior"),
        ({"lambda_eq": 0.4}, "spatial_prior"),
        ({"class_prior": torch.ones(19, 1)}, "flatten"),
    ],
)
def test_bad_options_are_named(options, message):
    options = {"class_prior": None} | options
    with pytest.raises(ValueError, match=message):
        PyramidCurriculum(options.pop("class_prior"), **options)


def test_shapes_that_do_not_fit_are_named():
    logits = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="3 classes"):
        PyramidCurriculum(torch.full((19,), 1 / 19))(logits)
    with pytest.raises(ValueError, match="valid"):
        PyramidCurriculum(None)(logits, torch.ones(1, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="same crop size"):
        PyramidCurriculum(None, lambda_eq=1.0, spatial_prior=torch.ones(3, 8, 8))(logits)
    with pytest.raises(ValueError, match="does not fit"):
        PyramidCurriculum(None, box_size=(32,))(logits)


@pytest.mark.parametrize("pool_probs", [False, True])
@pytest.mark.parametrize("size", [(40, 21), (5, 9)])
def test_strips_are_the_softmax_of_the_whole_and_so_are_their_gradients(pool_probs, size):
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(2, 5, *size, dtype=torch.float64, generator=generator).mul(3).requires_grad_()
    box_size = (2, 3, 4)
    P = Z.softmax(1)
    best, label = P.max(1)
    pooled = [F.avg_pool2d(P if pool_probs else Z, b) for b in box_size]
    expected = [-best.log(), P.mean((2, 3)), *pooled]
    ce, found, mean, *averages = SoftmaxStrips.apply(Z, box_size, pool_probs)
    assert torch.equal(found, label)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(e.shape, dtype=e.dtype, generator=generator) for e in expected]
    gradients = []
    for outputs in (expected, [ce, mean, *averages]):
        (gradient,) = torch.autograd.grad(sum((w * o).sum() for w, o in zip(weights, outputs, strict=True)), Z)
        gradients.append(gradient)
    for ours, plain in zip((ce, mean, *averages, gradients[1]), (*expected, gradients[0]), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-10, atol=1e-12)


def test_spatial_term_without_squares_is_zero():
    prior = torch.full((5, 16, 16), 0.2)
    losses = PyramidCurriculum(None, box_size=(), lambda_eq=0.4, spatial_prior=prior)(torch.randn(2, 5, 16, 16))
    assert losses["spatial"] == 0 and losses["total"].isfinite()


@pytest.mark.slow
def test_folder_of_the_method_works_anywhere_beside_another_utils(tmp_path):
    shutil.copytree(Path(pycda.__file__).parent, tmp_path / "lifted", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "utils.py").write_text("MINE = True\n")
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "total pixel region image []\n"


def test_import_path_of_users_leads_to_the_same_class():
    assert short_path.PyramidCurriculum is PyramidCurriculum
