"""Every fast path gives the result of the plain way: the same bits for counts and copies, otherwise the same values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dataset.folders import DataError
from dataset.labels import id_lookup, known_ids
from dataset.reading import look_up, read_label
from dataset.transforms import BILINEAR, Size, Window, resized_window
from tests.benchmark.cases import plain_curriculum, plain_labels
from utils.builders.network import build_network
from utils.config.read import build_config
from utils.metrics import ConfusionMatrix, class_map
from utils.pycda.curriculum import PyramidCurriculum

C = 19


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_look_up_is_a_masked_assignment_of_every_class():
    raw = random().integers(0, 256, (30, 40), np.uint8)
    assert np.array_equal(look_up(raw, id_lookup("gtav")), plain_labels(raw))
    table, wide = id_lookup("synthia"), random().integers(0, 65536, (30, 40), np.uint16)
    assert np.array_equal(look_up(wide, table), table[wide])
    assert np.array_equal(look_up(raw, table), table[raw])


@pytest.mark.parametrize("seed", range(4))
def test_unknown_ids_are_those_that_unique_finds(tmp_path, seed):
    raw = random(seed).choice(random(seed).integers(0, 256, 6), (20, 20)).astype(np.uint8)
    Image.fromarray(raw).save(tmp_path / "a.png")
    unknown = [str(i) for i in np.unique(raw) if not known_ids("gtav")[i]]
    if not unknown:
        assert np.array_equal(read_label(tmp_path / "a.png", "gtav"), plain_labels(raw))
        return
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    with pytest.raises(DataError, match=f"does not define: {', '.join(unknown[:5])}{more}\\."):
        read_label(tmp_path / "a.png", "gtav")


def random_window(size: Size, rng: np.random.Generator) -> Window:
    left, top = (int(rng.integers(0, side)) for side in size)
    return left, top, int(rng.integers(left + 1, size[0] + 1)), int(rng.integers(top + 1, size[1] + 1))


def test_resized_window_is_cut_out_of_the_resized_picture():
    """Bit for bit, for any sizes; the picture is resampled along rows, then along columns."""
    rng = random()
    for turn in range(600):
        own, size = (tuple(int(side) for side in rng.integers(1, 130, 2)) for _ in range(2))
        halved = (own[0] // 2 + 1, own[1] // 2 + 1)
        own, size = ((own, own), (own, (size[0], own[1])), ((2 * halved[0], own[1]), halved), (own, size))[turn % 4]
        pixels = rng.integers(0, 256, (own[1], own[0], 3), np.uint8)
        whole = Image.fromarray(pixels).resize((size[0], own[1]), BILINEAR).resize(size, BILINEAR)
        window = random_window(size, rng)
        for picture in (pixels, Image.fromarray(pixels)):
            assert np.array_equal(resized_window(picture, size, window), whole.crop(window)), (own, size, window)


@pytest.mark.parametrize(
    ("own", "size"), [((1914, 1052), (1024, 560)), ((2048, 1024), (1024, 512)), ((256, 128), (311, 156))]
)
def test_resized_window_at_the_sizes_of_the_recipes_is_pillows(own, size):
    picture = Image.fromarray(random().integers(0, 256, (own[1], own[0], 3), np.uint8))
    window = random_window(size, random(1))
    assert np.array_equal(resized_window(picture, size, window), picture.resize(size, BILINEAR).crop(window))


def test_class_map_is_argmax_and_takes_the_first_of_several():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.randn(2, C, 37, 24, generator=torch.Generator().manual_seed(0))
        logits = logits.to(dtype).mul(2).round()  # gives many equal values
        assert torch.equal(class_map(logits).long(), logits.argmax(1))


@pytest.mark.parametrize("shape", [(2, C, 150, 200), (1, C, 3, 60001), (3, 255, 2, 1), (1, 1, 4, 5)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 1, 3)])
def test_class_map_in_parts_and_in_any_order_of_memory(shape, order):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(2).round()
    back = [order.index(axis) for axis in range(4)]
    stored = logits.permute(order).contiguous().permute(back)
    assert torch.equal(class_map(stored).long(), logits.argmax(1))


def test_network_in_channels_last_gives_the_same_result():
    keys = ["model.encoder=resnet18_dilated16", "model.decoder=fcn"]
    images, logits = torch.randn(2, 3, 64, 96, generator=torch.manual_seed(0)), []
    for switch in ("false", "true"):
        config = build_config("cfgs/source_only_exp001.yaml", [*keys, f"train.channels_last={switch}"])
        network = build_network(config, torch.device("cpu")).eval()
        last = [w.is_contiguous(memory_format=torch.channels_last) for w in network.parameters() if w.dim() == 4]
        assert all(last) == (switch == "true")
        logits.append(network.stride_logits(images))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_confusion_matrix_is_a_masked_count():
    rng = random()
    label, prediction = rng.integers(-2, 300, (50, 60)), rng.integers(0, C, (50, 60))
    label[::2] = rng.integers(0, C, (25, 60))
    prediction[5] = 255
    mask, classes = (label >= 0) & (label < C), prediction < C
    counts = np.bincount(C * label[mask & classes] + prediction[mask & classes], minlength=C**2).reshape(C, C)
    matrix = ConfusionMatrix(C)
    matrix.update(torch.from_numpy(label), torch.from_numpy(prediction))
    assert np.array_equal(matrix.counts, counts)
    assert np.array_equal(matrix.missed, np.bincount(label[mask & ~classes], minlength=C))
    prediction[~mask] = 1000  # unlabelled pixels may have any prediction
    matrix.update(torch.from_numpy(label), torch.from_numpy(prediction))
    assert np.array_equal(matrix.counts, 2 * counts)


@pytest.mark.parametrize("spatial", [False, True])
def test_curriculum_is_the_plain_one(spatial):
    generator = torch.Generator().manual_seed(0)
    logits = F.interpolate(6 * torch.randn(2, C, 6, 8, generator=generator), (48, 64), mode="bilinear")
    valid = torch.ones(2, 48, 64, dtype=torch.bool)
    valid[0, 33:] = valid[1, :, 50:] = False
    prior = torch.rand(C, 48, 64, generator=generator) if spatial else None
    curriculum = PyramidCurriculum(None, lambda_eq=1.0 if spatial else 0.0, spatial_prior=prior)
    results = []
    for loss in (lambda x: curriculum(x, valid)["total"], lambda x: plain_curriculum(x, valid, prior, (4, 8))):
        x = logits.clone().requires_grad_()
        total = loss(x)
        total.backward()
        results.append((total.detach(), x.grad))
    (ours, gradient), (plain, expected) = results
    assert torch.allclose(ours, plain, rtol=2e-5)
    assert (gradient - expected).norm() <= 2e-5 * expected.norm()
