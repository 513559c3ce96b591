"""The cache gives the same pictures as the files, bit for bit; it never gives old or incomplete ones."""

import os
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_source_only
from dataset.cache import PictureCache
from dataset.files import write_whole
from dataset.folders import DataError, Sample
from dataset.loader import SegmentationDataset
from dataset.reading import read_pair
from dataset.transforms import JointTransform

OPTIONS = [
    {},
    {"size": (50, 30)},
    {"size": (50, 30), "crop": (24, 20)},
    {"size": (50, 30), "flip": True, "crop": (60, 20)},
    {"size": (50, 30), "rotate": (-10, 10), "crop": (24, 20)},
    {"scale": (0.5, 1.5), "crop": (24, 20)},
    {"size": (50, 30), "scale": (0.5, 1.5), "crop": (24, 20)},
    {"size": (50, 30), "scale": (0.5, 1.5), "crop": (24, 20), "scale_from": "original"},
    {"size": (50, 30), "scale": (0.5, 1.5), "rotate": (-10, 10), "flip": True, "crop": (24, 20)},
]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Three pictures with labels, one of another size, and a picture without a label."""
    rng, found = np.random.default_rng(0), []
    for i in range(4):
        image, label = tmp_path / f"image{i}.png", tmp_path / f"label{i}.png"
        Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 34, (41, 65) if i == 2 else (40, 64), np.uint8)).save(label)
        found.append(Sample(str(i), image, label if i < 3 else None))
    return found


def folder(
    samples: list[Sample], options: dict, cache: Path | None = None, skip_bad: bool = False
) -> SegmentationDataset:
    transform = JointTransform(**options)
    read = partial(read_pair, resizable=True) if cache is None else PictureCache(cache, transform.fixed_size)
    return SegmentationDataset(samples, "gtav", transform, seed=0, domain=0, skip_bad=skip_bad, read=read)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cold_and_warm_cache_give_the_pixels_of_the_files(samples, tmp_path, options):
    expected = folder(samples, options)
    for state in ("cold", "warm"):
        cached = folder(samples, options, tmp_path / "cache")
        for i in range(len(samples)):
            for position in (i, 10 + i):
                a, b = expected[i, position], cached[i, position]
                assert a.keys() == b.keys() and (a["name"], a["skipped"]) == (b["name"], b["skipped"])
                for k in ("image", "label", "valid"):
                    assert torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype, state
    assert len(list((tmp_path / "cache").iterdir())) == len(samples)


@pytest.mark.parametrize(
    ("scale", "scale_from", "size"),
    [
        (None, "resized", (50, 30)),
        (None, "original", (50, 30)),
        ((0.5, 1.5), "resized", (50, 30)),
        ((0.5, 1.5), "original", (64, 40)),
    ],
)
def test_cache_keeps_the_resized_picture_unless_the_original_is_scaled(samples, tmp_path, scale, scale_from, size):
    folder(samples, {"size": (50, 30), "scale": scale, "scale_from": scale_from}, tmp_path / "cache")[0]
    (path,) = (tmp_path / "cache").iterdir()
    assert np.load(path)["image"].shape == (size[1], size[0], 3)


def test_warm_cache_decodes_nothing(samples, tmp_path, monkeypatch):
    folder(samples, {}, tmp_path / "cache")[0]
    monkeypatch.setattr("dataset.cache.read_pair", lambda *_: pytest.fail("decoded again"))
    folder(samples, {}, tmp_path / "cache")[0]


@pytest.mark.parametrize("part", ["image", "label"])
def test_changed_file_is_read_anew(samples, tmp_path, part):
    before = folder(samples, {}, tmp_path / "cache")[0]
    path = getattr(samples[0], part)
    pixels = np.full_like(np.array(Image.open(path)), 7)
    Image.fromarray(pixels).save(path)
    changed = path.stat()
    os.utime(path, ns=(changed.st_atime_ns, changed.st_mtime_ns + 1))  # the clock may be coarse
    after, expected = folder(samples, {}, tmp_path / "cache")[0], folder(samples, {})[0]
    assert torch.equal(after[part], expected[part]) and not torch.equal(after[part], before[part])


def test_half_written_file_is_never_read(samples, tmp_path):
    cache = tmp_path / "cache"

    def interrupted(stream) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(cache / "x.npy", interrupted)
    assert not list(cache.iterdir())
    expected = folder(samples, {}, cache)[0]
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:5], b""):
        path.write_bytes(damage)
        assert torch.equal(folder(samples, {}, cache)[0]["image"], expected["image"])
        assert path.read_bytes() == whole


def test_several_processes_write_the_same_file(samples, tmp_path):
    cache = PictureCache(tmp_path / "cache", (50, 30))
    with get_context("fork").Pool(4) as pool:
        pictures = pool.starmap(cache, [(samples[0], "gtav")] * 16)
    assert all((image == pictures[0][0]).all() and (label == pictures[0][1]).all() for image, label in pictures)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_bad_sample_gives_the_error_that_it_gives_without_the_cache(samples, tmp_path):
    samples[0].image.write_bytes(samples[0].image.read_bytes()[:200])
    Image.fromarray(np.full((40, 64), 77, np.uint8)).save(samples[1].label)
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(samples[2].label)
    samples[3].image.unlink()
    for cache in (tmp_path / "cache", tmp_path / "cache"):  # also the second time
        for i in range(4):
            messages = []
            for data in (folder(samples, {"size": (50, 30)}), folder(samples, {"size": (50, 30)}, cache)):
                with pytest.raises(DataError) as raised:
                    data[i]
                messages.append(str(raised.value))
            assert messages[0] == messages[1]
    assert not cache.exists()


def test_cache_that_cannot_be_written_is_named(samples, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write .*cache/.*set train.cache_dir"):
        folder(samples, {}, tmp_path / "cache", skip_bad=True)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("scale_from", "shape"), [("resized", (56, 84, 3)), ("original", (64, 96, 3))])
def test_training_with_a_cache_is_the_same_training(command, tmp_path, scale_from, shape):
    keys = ["source.input_size=[84, 56]", "source.scale=[0.7, 1.3]", "source.flip=true", "val.held_out=0"]
    keys.append(f"source.scale_from={scale_from}")
    train_source_only.main(command(tmp_path, "plain", *keys))
    train_source_only.main(command(tmp_path, "cached", *keys, f"train.cache_dir={tmp_path}/cache"))
    assert (tmp_path / "plain/log.jsonl").read_text() == (tmp_path / "cached/log.jsonl").read_text()
    assert {np.load(path)["image"].shape for path in (tmp_path / "cache").glob("*.npy")} == {shape}
