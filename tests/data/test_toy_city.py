"""The procedural streets: a function of the seed, complete, and two domains that differ."""

import os
from pathlib import Path

import numpy as np
import pytest

from dataset.folders import find_samples
from dataset.labels import CITYSCAPES, IGNORE
from dataset.reading import read_image, read_label
from dataset.toy_city import Plan, write_toy_city
from dataset.toy_scene import render_scene

PLAN = Plan(size=(64, 32), num_source=2, num_source_val=1, num_target=5, num_target_val=2, synthia=True)
SCENES = 30


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    def of(domain: str) -> list[tuple[np.ndarray, np.ndarray]]:
        return [render_scene(np.random.default_rng([0, i]), domain, (256, 128)) for i in range(SCENES)]

    return {domain: of(domain) for domain in ("source", "target")}


def frequencies(scenes: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    counts = sum(np.bincount(label[label != IGNORE], minlength=CITYSCAPES.num_classes) for _, label in scenes)
    return counts / counts.sum()


def fine_detail(images: list[np.ndarray]) -> float:
    """Share of the variance that lies between neighbouring pixels."""
    values = np.stack(images).astype(float)
    return np.diff(values, axis=2).var() / values.var()


@pytest.mark.parametrize("domain", ["source", "target"])
def test_scenes_have_ten_classes_and_all_are_common_enough_to_score(scenes, domain):
    present = [set(np.unique(label)) - {IGNORE} for _, label in scenes[domain]]
    assert len(set.union(*present)) >= 10
    assert {"road", "sky", "building", "person", "car", "pole"} <= {CITYSCAPES.names[i] for i in set.union(*present)}
    for image, label in scenes[domain]:
        assert image.shape == (128, 256, 3) and image.dtype == np.uint8
        assert label.shape == (128, 256) and label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(CITYSCAPES.num_classes), IGNORE}


def test_domains_differ_in_colour_detail_and_class_frequency(scenes):
    """The domains differ more than two halves of one domain."""
    halves = {d: (s[: SCENES // 2], s[SCENES // 2 :]) for d, s in scenes.items()}

    def distance(a: list, b: list) -> np.ndarray:
        saturation = [np.mean([np.ptp(image.astype(int), axis=2).mean() for image, _ in s]) for s in (a, b)]
        detail = [fine_detail([image for image, _ in s]) for s in (a, b)]
        classes = np.abs(frequencies(a) - frequencies(b)).sum()
        return np.array([abs(saturation[0] - saturation[1]), abs(detail[0] - detail[1]), classes])

    within = np.maximum(distance(*halves["source"]), distance(*halves["target"]))
    assert (distance(scenes["source"], scenes["target"]) > 1.5 * within).all()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_files_are_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_toy_city(tmp_path / name, Plan(**vars(PLAN) | {"seed": seed}))
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys()
    assert not any(a[name] == c[name] for name in a if "images" in name or "leftImg8bit" in name)


def test_layouts_are_read_by_the_loaders_of_the_real_sets(tmp_path):
    write_toy_city(tmp_path, PLAN)
    gtav = find_samples("gtav", tmp_path / "gtav")
    synthia = find_samples("synthia", tmp_path / "synthia")
    train, val = (find_samples("cityscapes", tmp_path / "cityscapes", split=split) for split in ("train", "val"))
    held_out = find_samples("gtav", tmp_path / "gtav_val")
    assert [len(s) for s in (gtav, synthia, held_out, train, val)] == [2, 2, 1, 5, 2]
    assert not {s.name for s in train} & {s.name for s in val}
    terrain = CITYSCAPES.names.index("terrain")
    for a, b in zip(gtav, synthia, strict=True):
        assert np.array_equal(np.asarray(read_image(a.image)), np.asarray(read_image(b.image)))
        label = np.array(read_label(a.label, "gtav"))
        label[label == terrain] = IGNORE  # SYNTHIA does not have it
        assert np.array_equal(label, np.asarray(read_label(b.label, "synthia")))


def test_finished_folder_is_kept_and_an_unfinished_or_foreign_one_is_not_mistaken_for_it(tmp_path):
    write_toy_city(tmp_path, PLAN)
    complete = contents(tmp_path)
    image = tmp_path / "gtav/images/00001.png"
    before = os.stat(image).st_mtime_ns
    write_toy_city(tmp_path, PLAN)
    assert os.stat(image).st_mtime_ns == before
    with pytest.raises(FileExistsError, match="another plan"):
        write_toy_city(tmp_path, Plan(**vars(PLAN) | {"num_source": 3}))
    (tmp_path / "toy_city.json").unlink()
    image.unlink()
    write_toy_city(tmp_path, PLAN)
    assert contents(tmp_path) == complete
