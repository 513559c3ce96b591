"""Class histogram and spatial prior: computed exactly, cached, read from the authors' formats."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import priors
from dataset.folders import DataError, find_samples
from dataset.labels import CITYSCAPES

C = 19


@pytest.fixture
def samples(tmp_path: Path) -> list:
    """Two labels: road on the left and sky on the right; building on the left and ignored on the right."""
    for name, left, right in (("1.png", 7, 23), ("2.png", 11, 0)):
        label = np.full((4, 8), left, np.uint8)
        label[:, 4:] = right
        for folder, pixels in (("images", np.zeros((4, 8, 3), np.uint8)), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / name)
    return find_samples("gtav", tmp_path)


def test_class_histogram_is_the_share_of_labelled_pixels(samples):
    histogram = priors.class_prior(samples, "gtav", C)
    expected = np.zeros(C)
    expected[list(CITYSCAPES.ids(["road", "sky", "building"]))] = 1 / 3
    assert np.allclose(histogram, expected)


def test_spatial_prior_counts_by_position(samples):
    road, building, sky = CITYSCAPES.ids(["road", "building", "sky"])
    prior = priors.spatial_prior(samples, "gtav", C, (4, 2))
    assert prior.shape == (C, 2, 4) and prior.dtype == np.float32
    assert np.allclose(prior[[road, building], :, :2], 0.5) and np.allclose(prior[sky, :, 2:], 1.0)
    assert np.allclose(prior.sum(0), 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_are_counted_once_however_they_are_divided(samples, num_workers):
    many = samples * 20 + samples[:1]  # three chunks, the last one not full
    assert len(many) > 2 * priors.CHUNK
    road, building, sky = CITYSCAPES.ids(["road", "building", "sky"])
    spatial = priors.spatial_prior(many, "gtav", C, (4, 2), num_workers=num_workers)
    assert np.allclose(spatial[road, :, :2], 21 / 41) and np.allclose(spatial[building, :, :2], 20 / 41)
    classes = priors.class_prior(many, "gtav", C, num_workers=num_workers)
    assert np.allclose(classes[[road, sky, building]], np.array([21, 21, 20]) / 62)


def test_position_never_labelled_is_zero_and_smoothing_fills_it_from_its_neighbours(samples):
    only_second = samples[1:]
    assert priors.spatial_prior(only_second, "gtav", C, (8, 4))[:, :, 4:].sum() == 0
    smooth = priors.spatial_prior(only_second, "gtav", C, (8, 4), sigma=1.0)
    assert np.allclose(smooth.sum(0)[:, :6], 1) and np.isfinite(smooth).all()


def test_cache_is_used_and_depends_on_what_it_was_made_of(samples, tmp_path):
    cache = tmp_path / "cache"
    made = priors.class_prior(samples, "gtav", C, cache_dir=cache)
    (cached,) = cache.iterdir()
    cached.write_text(" ".join(["1"] * C))
    assert np.allclose(priors.class_prior(samples, "gtav", C, cache_dir=cache), 1 / C)
    assert np.allclose(priors.class_prior(samples[:1], "gtav", C, cache_dir=cache)[[0, 10]], 0.5)
    assert np.isclose(made[2], 1 / 3)
    spatial = [priors.spatial_prior(samples, "gtav", C, (4, 2), cache_dir=cache) for _ in range(2)]
    assert np.array_equal(*spatial)


def test_label_edited_in_place_is_counted_anew(samples, tmp_path):
    made = [priors.class_prior(samples, "gtav", C, cache_dir=tmp_path / "cache")]
    Image.fromarray(np.full((4, 8), 23, np.uint8)).save(samples[0].label)
    made.append(priors.class_prior(samples, "gtav", C, cache_dir=tmp_path / "cache"))
    road, sky = CITYSCAPES.ids(["road", "sky"])
    assert made[0][road] > 0 == made[1][road] and made[1][sky] == pytest.approx(2 / 3)


def test_look_at_some_labels(samples):
    road, sky, building = CITYSCAPES.ids(["road", "sky", "building"])
    both, first = (priors.labelled_classes(samples, "gtav", C, limit) for limit in (2, 1))
    assert np.flatnonzero(both).tolist() == sorted([road, sky, building])
    assert np.flatnonzero(first).tolist() == sorted([road, sky])
    samples[0].label.write_bytes(b"no picture")
    assert priors.labelled_classes(samples, "gtav", C, 2) is None


def test_authors_formats(tmp_path):
    (tmp_path / "prior.txt").write_text("\n".join(["2.0"] + ["1.0"] * 18))
    assert np.isclose(priors.load_class_prior(tmp_path / "prior.txt", C)[0], 0.1)
    values = np.random.default_rng(0).random((3, 5, C))
    np.save(tmp_path / "prior.npy", values)
    assert np.allclose(priors.load_spatial_prior(tmp_path / "prior.npy", C), values.transpose(2, 0, 1))


def test_first_classes_of_a_larger_spatial_prior_are_used_and_reported(tmp_path):
    values, told = np.random.default_rng(0).random((3, 5, C + 2)), []
    np.save(tmp_path / "prior.npy", values)
    assert np.allclose(
        priors.load_spatial_prior(tmp_path / "prior.npy", C, told.append), values[..., :C].transpose(2, 0, 1)
    )
    assert len(told) == 1 and "the first 19 classes are used" in told[0]


def test_bad_files_are_named(tmp_path):
    (tmp_path / "short.txt").write_text("0.5 0.5")
    with pytest.raises(DataError, match="short.txt must contain 19 frequencies >= 0, not 2"):
        priors.load_class_prior(tmp_path / "short.txt", C)
    (tmp_path / "words.txt").write_text("road sky")
    with pytest.raises(DataError, match="not a list of numbers"):
        priors.load_class_prior(tmp_path / "words.txt", C)
    for shape in ((C, 4, 5), (C, 40, 50), (4, 5), (4, 5, C - 1)):
        np.save(tmp_path / "chw.npy", np.zeros(shape))
        with pytest.raises(DataError, match=r"expected \(H, W, 19\)"):
            priors.load_spatial_prior(tmp_path / "chw.npy", C)
    for load in (priors.load_class_prior, priors.load_spatial_prior):
        with pytest.raises(DataError, match="to null to compute it"):
            load(tmp_path / "nowhere", C)


def test_unreadable_labels_are_left_out_as_far_as_a_training_tolerates_them(samples, tmp_path, capsys):
    samples[1].label.write_bytes(samples[1].label.read_bytes()[:50])
    expected = priors.class_prior(samples[:1], "gtav", C)
    assert np.array_equal(priors.class_prior(samples * 2, "gtav", C, skip_bad=1), expected)
    reported = f"the class histogram is without this label: cannot read label {samples[1].label}"
    assert capsys.readouterr().out.count(reported) == 1
    assert priors.spatial_prior(samples, "gtav", C, (4, 2), skip_bad=1)[:, 0].sum() == 4
    with pytest.raises(DataError, match="2.png"):
        priors.class_prior(samples, "gtav", C)


def test_damaged_and_strange_prior_files_are_named(tmp_path):
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "half.npy", np.zeros((8, 8, C)))
    (tmp_path / "half.npy").write_bytes((tmp_path / "half.npy").read_bytes()[:200])
    for name in ("words.npy", "half.npy"):
        for load in (priors.load_class_prior, priors.load_spatial_prior):
            with pytest.raises(DataError, match=f"cannot read .*{name} as .npy"):
                load(tmp_path / name, C)
    (tmp_path / "prior.txt").write_bytes(b"\xef\xbb\xbf" + b"1 " * C)
    assert np.allclose(priors.load_class_prior(tmp_path / "prior.txt", C), 1 / C)
