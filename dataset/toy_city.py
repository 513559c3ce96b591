"""The built-in toy data: two procedural street domains in the layouts of the real data sets.

``python -m dataset.toy_city OUT`` writes OUT/gtav and OUT/gtav_val (source), OUT/cityscapes (target) and, with
--synthia, OUT/synthia. The loaders of the real data sets read them.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.files import expand_path, write_text
from dataset.labels import CITYSCAPES, DATA_SETS
from dataset.program import exit_after, usable_cores
from dataset.progress import Progress
from dataset.toy_scene import render_scene

MARKER = "toy_city.json"
TRAIN_CITIES, VAL_CITIES = ("ashford", "birkstadt", "corvia", "dunholm"), ("eastmere", "falkenau")
# Streams of random numbers: a scene is a function of only (seed, stream, index).
SOURCE, SOURCE_VAL, TARGET, TARGET_VAL = range(4)
CHUNK = 8  # scenes that a process gets at a time
FAST = 1  # PNG compression level: half the time of the default level, a tenth more bytes


@dataclass(frozen=True)
class Plan:
    """Content of a toy city. ``toy_city.json`` contains it, to recognise a finished folder."""

    seed: int = 0
    size: tuple[int, int] = (256, 128)
    num_source: int = 240
    num_source_val: int = 40
    num_target: int = 280
    num_target_val: int = 60
    synthia: bool = False


def write_toy_city(root: str | Path, plan: Plan = Plan()) -> None:
    """Write the data sets below ``root``; a finished folder of the same plan stays unchanged.

    Raises:
        FileExistsError: ``root`` contains a toy city of another plan.
    """
    root = Path(root)
    marker = root / MARKER
    wanted = json.dumps(asdict(plan))
    if marker.is_file():
        if marker.read_text() == wanted:
            return
        raise FileExistsError(
            f"{root} has a toy city of another plan, see {marker}: delete it or choose another folder"
        )
    scenes = list(_scenes(root, plan))
    processes = min(usable_cores(), 1 + len(scenes) // CHUNK)  # a pool starts all its processes, also for little work
    with ProcessPoolExecutor(processes) as pool, Progress(scenes, "toy city") as progress:
        for _ in zip(progress, pool.map(_write, scenes, chunksize=CHUNK), strict=True):
            pass
    write_text(marker, wanted)


@dataclass(frozen=True)
class _Scene:
    """One image and its label file; ``random`` is the seed of its generator."""

    random: tuple[int, int, int]
    domain: str
    size: tuple[int, int]
    image: Path
    label: Path
    save_label: Callable[[Path, np.ndarray], None]


def _scenes(root: Path, plan: Plan) -> Iterator[_Scene]:
    """Every scene of ``plan``."""

    def scene(stream: int, index: int, image: str, label: str, save: Callable = _save_ids) -> _Scene:
        domain = "source" if stream in (SOURCE, SOURCE_VAL) else "target"
        return _Scene((plan.seed, stream, index), domain, plan.size, root / image, root / label, save)

    for folder, stream, count in (("gtav", SOURCE, plan.num_source), ("gtav_val", SOURCE_VAL, plan.num_source_val)):
        for i in range(count):
            yield scene(stream, i, f"{folder}/images/{i + 1:05d}.png", f"{folder}/labels/{i + 1:05d}.png")
    train, val = (TARGET, plan.num_target, TRAIN_CITIES), (TARGET_VAL, plan.num_target_val, VAL_CITIES)
    for split, (stream, count, cities) in (("train", train), ("val", val)):
        for i in range(count):
            city = cities[i % len(cities)]
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            image, label = f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"
            yield scene(stream, i, f"cityscapes/{image}", f"cityscapes/{label}")
    for i in range(plan.num_source if plan.synthia else 0):
        yield scene(SOURCE, i, f"synthia/RGB/{i:07d}.png", f"synthia/GT/LABELS/{i:07d}.png", _save_synthia)


def _write(scene: _Scene) -> None:
    image, labels = render_scene(np.random.default_rng(scene.random), scene.domain, scene.size)
    for path in (scene.image, scene.label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(scene.image, compress_level=FAST)
    scene.save_label(scene.label, labels)


def _save_ids(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(CITYSCAPES.export_ids[labels]).save(path)


def _save_synthia(path: Path, labels: np.ndarray) -> None:
    raw = np.zeros(256, np.uint16)  # 0 is SYNTHIA's void; terrain, which is not scored there, becomes void
    ids = DATA_SETS["synthia"].train_ids
    raw[list(ids.values())] = list(ids)
    Image.fromarray(raw[labels]).save(path)  # 16-bit greys: Pillow cannot write the original's 16-bit colours


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dataset.toy_city", description=__doc__)
    parser.add_argument("out", type=lambda text: Path(expand_path(text)))
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--synthia", action="store_true", help="also write the source scenes in SYNTHIA's layout")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed must be at least 0")
    write_toy_city(args.out, Plan(seed=args.seed, synthia=args.synthia))


if __name__ == "__main__":
    exit_after(main)
