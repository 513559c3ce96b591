"""``sh run.sh demo``: the whole recipe on procedural street scenes; prints a table and draws two pictures at the end.

Every stage is a command that a user could type. Finished stages are not repeated: all variants share one source-only
run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.files import write_text
from dataset.program import exit_after
from dataset.reading import read_image, read_label
from dataset.toy_city import Plan, write_toy_city
from utils.config.command_line import Parser, is_override, path
from utils.config.read import ROOT, build_config
from utils.config.schema import ConfigError
from utils.scoring.pictures import (
    colour_map,
    histogram,
    legend,
    pseudo_label_maps,
    save_picture,
    stack,
    titled,
)

CONFIGS = ROOT / "cfgs" / "demo"
PANELS = 4  # target images of the picture
QUICK = Plan(num_source=80, num_source_val=10, num_target=80, num_target_val=20)
QUICK_HELD_OUT = 10  # target images
QUICK_STEPS = 8  # divides the number of steps


@dataclass(frozen=True)
class Stage:
    """A training command and the title of its result in the table."""

    title: str
    run: str
    script: str
    config: str
    keys: tuple[str, ...] = ()
    weights: str = ""  # file in the run folder; "": the run's own result


SOURCE_ONLY = Stage("source only", "source_only", "train_source_only.py", "source_only")
PYCDA = Stage("PyCDA", "pycda", "train_pycda.py", "pycda")
SPATIAL = Stage("PyCDA + spatial ratio", "pycda_spatial", "train_pycda_spatial.py", "pycda_spatial")
DEMO = (
    SOURCE_ONLY,
    Stage("source only, converted BN", "source_only", "test_adabn.py", "source_only", weights="adabn.pth"),
    Stage("AdaBN from source only (the control)", "adabn", "train_adabn.py", "adabn"),
    PYCDA,
    SPATIAL,
)
ORACLE_KEYS = ("source.dataset=cityscapes", "source.data_dir={data}/cityscapes", "val.held_out=0")
ORACLE = (Stage("oracle: labelled target images", "oracle", "train_source_only.py", "source_only", ORACLE_KEYS),)
# Each disables one layer.
TOP, SQUARES, PIXELS = "curriculum.lambda_balance=0", "curriculum.box_size=[]", "curriculum.use_pixels=false"
ABLATION = (
    SOURCE_ONLY,
    Stage("control: no layer", "adabn", "train_adabn.py", "adabn"),
    Stage("top only", "only_top", "train_pycda.py", "pycda", (SQUARES, PIXELS)),
    Stage("pixels only", "only_pixels", "train_pycda.py", "pycda", (TOP, SQUARES)),
    Stage("top + pixels", "top_pixels", "train_pycda.py", "pycda", (SQUARES,)),
    Stage("top + squares", "top_squares", "train_pycda.py", "pycda", (PIXELS,)),
    Stage("pixels + squares", "pixels_squares", "train_pycda.py", "pycda", (TOP,)),
    replace(PYCDA, title="all: PyCDA"),
)
RELEASED = ("curriculum.conf_threshold=0.5",)  # otherwise the demo's curriculum is as released
SOURCE_TARGET = (*RELEASED, "curriculum.image_target=source")
PAPER = (  # changes of the released variant, as in cfgs/pycda_paper.yaml
    *("curriculum.merge_1x1=true", "curriculum.lambda_pseudo=0.5", "curriculum.lambda_balance=1.0"),
    *("curriculum.image_target=source", "curriculum.image_loss=ce", "curriculum.region_pool=probs"),
    *("curriculum.drop_saturated=false", "train.momentum=0.9"),
    *("train.lr_encoder=0.008", "train.lr_decoder=0.02"),  # with this momentum, steps are as large as the demo's
)
PAPER_KEYS = (*RELEASED, *PAPER)
VARIANTS = (
    SOURCE_ONLY,
    replace(PYCDA, title="PyCDA of the demo: threshold 0.8"),
    replace(PYCDA, title="PyCDA as released: threshold 0.5", run="released", keys=RELEASED),
    replace(PYCDA, title="released, but the source histogram as image target", run="source_target", keys=SOURCE_TARGET),
    replace(PYCDA, title="PyCDA as in the paper", run="paper", keys=PAPER_KEYS),
    replace(SPATIAL, title="PyCDA + spatial ratio as released", run="released_spatial", keys=RELEASED),
    replace(SPATIAL, title="PyCDA + spatial ratio as in the paper", run="paper_spatial", keys=PAPER_KEYS),
)
STAGES = {"oracle": ORACLE, "ablation": ABLATION, "variants": VARIANTS, "table": DEMO}


class Demo:
    """Stages, scores and pictures of one seed below ``folder``.

    Args:
        overrides: keys of every stage.
        planned: number of commands, for "[1 of N]".
    """

    def __init__(self, folder: Path, seed: int, overrides: Sequence[str], quick: bool, planned: int) -> None:
        self.folder, self.data, self.overrides, self.quick = folder, folder / "toy_city", overrides, quick
        self.common = [f"source.data_dir={self.data}/gtav", f"target.data_dir={self.data}/cityscapes"]
        self.common += [f"seed={seed}", f"snapshot_dir={folder}"]
        self.planned, self.begun = planned, 0

    def run(self, script: str, config: str, *arguments: str) -> None:
        """Run one command of the README. If it fails, the demo exits with the same status."""
        start = "scratch" if config == "source_only" else self.folder / "source_only"
        keys = [*self.common, f"model.weights={start}", *self.overrides]
        keys = [*quick_keys(config), *keys] if self.quick else keys
        self.begun += 1
        print(f"[{self.begun} of {self.planned}] $ sh run.sh {script} cfgs/demo/{config}.yaml", *arguments, flush=True)
        command = ["sh", str(ROOT / "run.sh"), script, str(CONFIGS / f"{config}.yaml"), *keys, *arguments]
        status = subprocess.call(command, env=os.environ | {"PYTHON": sys.executable})
        if status:
            print(f"demo: {script} with {config} ended with status {status}, see above", file=sys.stderr)
            raise SystemExit(status)

    def train(self, stage: Stage) -> None:
        keys = [key.format(data=self.data) for key in stage.keys]
        self.run(stage.script, stage.config, f"exp_name={stage.run}", *keys)

    def scores(self, stages: Sequence[Stage], name: str, *keys: str) -> list[dict]:
        """The scores of the stages' results by ``evaluate.py``, which also writes them to NAME.json."""
        path = self.folder / f"{name}.json"
        weights = [str(self.folder / stage.run / stage.weights) for stage in stages]
        self.run("evaluate.py", "source_only", *keys, "--weights", *weights, "--json", str(path))
        found = json.loads(path.read_text())
        return found if isinstance(found, list) else [found]

    def picture(self, stages: Sequence[Stage]) -> Path:
        """Image | labels | prediction of each stage, for the first target val images, with names and legend."""
        from utils.builders.data import Data  # imports torch: only after the command line is checked
        from utils.inference import load

        config = build_config(CONFIGS / "source_only.yaml", [*self.common, *self.overrides])
        table, names = config.class_table, ("image", "labels", *(stage.title for stage in stages))
        columns: dict[str, list[Image.Image]] = {name: [] for name in names}
        predictors = [load(self.folder / stage.run, "cpu") for stage in stages]
        for sample in Data(config).test()[:PANELS]:
            label = read_label(sample.label_file, config.test.label_kind)
            maps = [label, *(predictor(sample.image) for predictor in predictors)]
            tiles = [read_image(sample.image), *(colour_map(classes, table) for classes in maps)]
            for column, tile in zip(columns.values(), tiles, strict=True):
                column.append(tile)
        path = self.folder / "panel.png"
        sheet = titled({name: stack(tiles, horizontal=False) for name, tiles in columns.items()})
        save_picture(path, stack([sheet, legend(table, sheet.width)], horizontal=False))
        return path

    def pyramid(self) -> Path:
        """The labels of every layer of the pyramid on a target training image, by PyCDA's network in eval mode."""
        import torch  # as above

        from utils.builders.curriculum import build_curriculum
        from utils.builders.data import Data
        from utils.inference import load
        from utils.scoring.predictor import network_input

        config = build_config(CONFIGS / f"{PYCDA.config}.yaml", [*self.common, *self.overrides])
        predictor, data, table = load(self.folder / PYCDA.run, "cpu"), Data(config), config.class_table
        image = read_image(data.target[0].image)
        with torch.inference_mode():
            logits = predictor.model(network_input(image, predictor.test))["logits"]
        curriculum = build_curriculum(config.curriculum, config.num_classes, data)
        tiles = {"image": image} | pseudo_label_maps(curriculum.pseudo_labels(logits), table)
        nearest = Image.Resampling.NEAREST  # does not mix colours
        layers = titled({name.replace("_", " of "): tile.resize(image.size, nearest) for name, tile in tiles.items()})
        shares = logits.softmax(1).mean((0, 2, 3)).numpy()
        source = curriculum.class_prior if curriculum.image_target == "source" else None
        label = np.full(len(shares), 1 / len(shares)) if source is None else source.numpy()
        bars = {
            "class histogram of the image, percent; the lines are its label": histogram(
                shares, label, table, layers.width
            )
        }
        path = self.folder / "pyramid.png"
        save_picture(path, stack([layers, titled(bars)], horizontal=False))
        return path


def quick_keys(config: str) -> list[str]:
    """Overrides of a quick demo for one of the demo's configurations."""
    train = build_config(CONFIGS / f"{config}.yaml").train
    steps = train.num_steps // QUICK_STEPS
    keys = [f"train.num_steps={steps}", f"val.every={steps}", f"val.held_out={QUICK_HELD_OUT}", "train.print_freq=5"]
    return keys + ([f"train.decrease_lr={train.decrease_lr // QUICK_STEPS}"] if train.schedule == "drop" else [])


def markdown(stages: Sequence[Stage], scores: Sequence[dict]) -> str:
    """The result table."""
    lines = ["| network | target mIoU | pixel accuracy |", "|---|---|---|"]
    for stage, score in zip(stages, scores, strict=True):
        lines.append(f"| {stage.title} | {score['miou']:.1f} | {score['pixel_accuracy']:.1f} |")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the demo; ``overrides`` apply to every stage."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="sh run.sh demo", description=__doc__, formatter_class=raw)
    parser.add_argument("--seed", type=int, default=0, help="of data and initialisation")
    parser.add_argument("--out", type=path, default=path("runs/demo"), help="folder of data, runs and results")
    parser.add_argument("--quick", action="store_true", help="fewer pictures and an eighth of the steps in every stage")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--oracle", action="store_true", help="only train on labelled target images: the upper bound")
    kind.add_argument("--ablation", action="store_true", help="train with some layers of the pyramid only")
    kind.add_argument("--variants", action="store_true", help="train the released variants and those of the paper")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key in every stage")
    args = parser.parse_intermixed_args(argv)
    for argument in args.overrides:
        if not is_override(argument):
            raise ConfigError(f"command line: '{argument}' is not key=value")
    if args.seed < 0:
        raise ConfigError(f"command line: --seed must be at least 0, got {args.seed}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run all stages for the options, then print the table."""
    args = parse(argv)
    started = time.time()
    folder, plan = (args.out / "quick", QUICK) if args.quick else (args.out, Plan())
    folder = (folder / f"seed{args.seed}").resolve()
    name = next((name for name in STAGES if getattr(args, name, False)), "table")
    stages = STAGES[name]
    ahead = [stage for stage in stages if not (stage.weights and (folder / stage.run / stage.weights).is_file())]
    demo = Demo(folder, args.seed, args.overrides, args.quick, len(ahead) + (2 if name == "table" else 1))
    write_toy_city(demo.data, replace(plan, seed=args.seed))
    for stage in ahead:
        demo.train(stage)
    table = markdown(stages, demo.scores(stages, name))
    note = f"seed {args.seed}, {(time.time() - started) / 60:.1f} minutes"
    if args.quick:
        note += "; quick: all stages ran, but the scores do not compare the methods"
    if name == "table":
        held_out = "test.dataset=gtav", f"test.data_dir={demo.data}/gtav_val"
        (source,) = demo.scores([SOURCE_ONLY], "source_held_out", *held_out)
        note += f"; source only on held-out source scenes: {source['miou']:.1f} mIoU"
        note += f"; pictures: {demo.picture([SOURCE_ONLY, PYCDA])} (image, labels, source only, PyCDA)"
        note += f" and {demo.pyramid()} (labels of the pyramid)"
    write_text(folder / f"{name}.md", f"{table}\n\n{note}\n")
    print(f"\n{table}\n\n{note}\nwritten to {folder}/{name}.md and {name}.json")


if __name__ == "__main__":
    exit_after(main)
