"""``sh run.sh demo``: the whole recipe on procedural street scenes, one table and one picture at the end.

Every stage is the same command that a user would type. Finished stages are not repeated, so all variants share one
source-only run.
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

from PIL import Image

from dataset.program import exit_after
from dataset.progress import duration
from dataset.reading import read_image, read_label
from dataset.toy_city import Plan, write_toy_city
from utils.config.command_line import ROOT, Parser, is_override, path
from utils.config.declare import ConfigError
from utils.config.read import build_config, read_yaml, value_text
from utils.config.schema import Config
from utils.run_folder.records import RECORDS, read_scalars
from utils.scoring.pictures import colour_map, legend, stack, titled

CONFIGS = ROOT / "cfgs" / "demo"
PANELS = 4  # target images in the picture
QUICK = Plan(num_source=80, num_source_val=10, num_target=80, num_target_val=20)
QUICK_HELD_OUT = 10  # of the target images
QUICK_STEPS = 8  # times fewer
# Time of an iteration of each script in iterations of train_source_only.py, and of any command apart from its
# iterations: start, validation, scores. Measured on two cores.
ITERATION = {"train_source_only.py": 1.0, "train_adabn.py": 1.2, "train_pycda.py": 1.7, "train_pycda_spatial.py": 4.0}
COMMAND = 45.0
POLL = 0.2  # seconds between two looks at what the first training has logged


@dataclass(frozen=True)
class Stage:
    """A command and the line of the table that its result is. Without ``script`` the result is an earlier stage's."""

    title: str
    run: str
    script: str | None
    config: str
    keys: tuple[str, ...] = ()
    weights: str | None = None  # file in the run folder; None: the run's own result


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
# Each switches one layer off.
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
RELEASED = ("curriculum.conf_threshold=0.5",)  # in all else the demo's curriculum is the released one
# With the paper's momentum of 0.9 a tenth of the demo's rates makes the same steps.
PAPER_RATES = ("train.lr_encoder=0.008", "train.lr_decoder=0.02")


def paper_keys() -> tuple[str, ...]:
    """The paper's variant of the curriculum and its momentum, as ``cfgs/pycda_paper.yaml`` sets them over its base."""
    own = read_yaml(ROOT / "cfgs" / "pycda_paper.yaml", "train_pycda").keys
    taken = {name: value for name, value in own.items() if name.startswith("curriculum.") or name == "train.momentum"}
    return (*RELEASED, *(f"{name}={value_text(value)}" for name, value in taken.items()), *PAPER_RATES)


PAPER_KEYS = paper_keys()
SOURCE_TARGET = (*RELEASED, "curriculum.image_target=source")
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
    """Stages, scores and pictures of one seed below ``folder``."""

    def __init__(self, folder: Path, seed: int, overrides: Sequence[str], quick: bool = False) -> None:
        self.folder, self.data, self.quick = folder, folder / "toy_city", quick
        self.keys = [f"source.data_dir={self.data}/gtav", f"target.data_dir={self.data}/cityscapes"]
        self.keys += [f"seed={seed}", f"snapshot_dir={folder}", f"model.weights={folder}/source_only", *overrides]
        self.planned = self.begun = 0  # commands
        self.work = 0.0  # of all of them, in iterations of the source-only training; 0 once it is told

    def plan(self, stages: Sequence[Stage], evaluations: int) -> None:
        """Count the commands that ``stages`` and their ``evaluations`` take, for what the user is told of time."""
        ahead = [stage for stage in stages if stage.script and not self._is_done(stage)]
        self.planned = len(ahead) + evaluations
        self.work = COMMAND * self.planned
        for stage in ahead:
            steps = self._config(stage.config, stage.keys).train.num_steps
            self.work += steps * ITERATION.get(stage.script or "", 0)  # 0: a conversion, which is no training

    def _is_done(self, stage: Stage) -> bool:
        return stage.weights is not None and (self.folder / stage.run / stage.weights).is_file()

    def run(self, script: str, config: str, *arguments: str) -> None:
        """One command of the README; a failing one ends the demo with its own message above."""
        command = ["sh", str(ROOT / "run.sh"), script, str(CONFIGS / f"{config}.yaml"), *self._keys(config), *arguments]
        self.begun += 1
        counted = f"[{self.begun} of {self.planned}] " if self.planned else ""
        print(f"{counted}$ sh run.sh", script, f"cfgs/demo/{config}.yaml", *arguments, flush=True)
        process = subprocess.Popen(command, env=os.environ | {"PYTHON": sys.executable})
        if self.work and script in ITERATION:
            self.say_how_long(process, script, self._config(config, arguments).run_folder)
        status = process.wait()
        if status:
            print(f"demo: {script} with {config} ended with status {status}, see above", file=sys.stderr)
            raise SystemExit(status)

    def _keys(self, config: str) -> list[str]:
        """What overrides the demo's configuration of this name."""
        keys = self.keys
        if config not in ("adabn", "pycda", "pycda_spatial"):  # these start from a network
            keys = ["model.weights=scratch" if key.startswith("model.weights=") else key for key in keys]
        return [*quick_keys(config), *keys] if self.quick else list(keys)

    def _config(self, config: str, keys: Sequence[str]) -> Config:
        return build_config(
            CONFIGS / f"{config}.yaml", [*self._keys(config), *(k.format(data=self.data) for k in keys)]
        )

    def say_how_long(self, process: subprocess.Popen, script: str, folder: Path) -> None:
        """Estimate the time of the whole demo by the first two records of a training, as soon as they come."""
        before, seen = last_step(folder), list[tuple[int, float]]()
        while len(seen) < 2 and process.poll() is None:
            time.sleep(POLL)
            step = last_step(folder)
            if step > (seen[-1][0] if seen else before):
                seen.append((step, time.monotonic()))
        if len(seen) == 2:
            (first, then), (second, now) = seen
            seconds = (now - then) / (second - first) / ITERATION[script] * self.work
            print(f"demo: about {duration(seconds)} in all on this machine", flush=True)
            self.work = 0.0

    def train(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            if stage.script and not self._is_done(stage):
                keys = [key.format(data=self.data) for key in stage.keys]
                self.run(stage.script, stage.config, f"exp_name={stage.run}", *keys)

    def scores(self, stages: Sequence[Stage], name: str, *keys: str) -> list[dict]:
        """What ``evaluate.py`` says of the stages' results; also left in NAME.json."""
        path = self.folder / f"{name}.json"
        weights = [str(self.folder / stage.run / (stage.weights or "")) for stage in stages]
        self.run("evaluate.py", "source_only", *keys, "--weights", *weights, "--json", str(path))
        found = json.loads(path.read_text())
        return found if isinstance(found, list) else [found]

    def picture(self, stages: Sequence[Stage]) -> Path:
        """Image | labels | prediction of each stage, for the first target val images, with names and legend."""
        from utils.builders.data import test_samples  # torch takes seconds, which a wrong command line should not
        from utils.inference import load

        config = build_config(CONFIGS / "source_only.yaml", self.keys)
        table, names = config.class_table, ("image", "labels", *(stage.title for stage in stages))
        columns: dict[str, list[Image.Image]] = {name: [] for name in names}
        predictors = [load(self.folder / stage.run, "cpu") for stage in stages]
        for sample in test_samples(config)[:PANELS]:
            label = read_label(sample.label_file, config.test.label_kind)
            maps = [label, *(predictor(sample.image) for predictor in predictors)]
            tiles = [read_image(sample.image), *(colour_map(classes, table) for classes in maps)]
            for column, tile in zip(columns.values(), tiles, strict=True):
                column.append(tile)
        path = self.folder / "panel.png"
        sheet = titled({name: stack(tiles, horizontal=False) for name, tiles in columns.items()})
        stack([sheet, legend(table, sheet.width)], horizontal=False).save(path)
        return path


def last_step(folder: Path) -> int:
    """Step of the last record in a run folder, 0 where there is none."""
    records = folder / RECORDS
    if not records.is_file():
        return 0
    return max((step for step, _ in read_scalars(records, lambda _: None)), default=0)


def quick_keys(config: str) -> list[str]:
    """What a quick demo overrides in one of the demo's configurations."""
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
    """Options of the demo; ``overrides`` are for every stage."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="sh run.sh demo", description=__doc__, formatter_class=raw)
    parser.add_argument("--seed", type=int, default=0, help="of data and initialisation")
    parser.add_argument("--out", type=path, default=path("runs/demo"), help="folder of data, runs and results")
    parser.add_argument("--quick", action="store_true", help="every stage on fewer pictures, an eighth of the steps")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--oracle", action="store_true", help="only train on labelled target images: the upper bound")
    kind.add_argument("--ablation", action="store_true", help="the layers of the pyramid one by one")
    kind.add_argument("--variants", action="store_true", help="as released and as in the paper")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key in every stage")
    args = parser.parse_intermixed_args(argv)
    for argument in args.overrides:
        if not is_override(argument):
            raise ConfigError(f"command line: '{argument}' is not key=value")
    if args.seed < 0:
        raise ConfigError(f"command line: --seed must be at least 0, got {args.seed}")
    return args


def run(args: argparse.Namespace) -> None:
    """All stages of what the options ask for, then the table."""
    started = time.time()
    folder, plan = (args.out / "quick", QUICK) if args.quick else (args.out, Plan())
    demo = Demo((folder / f"seed{args.seed}").resolve(), args.seed, args.overrides, args.quick)
    write_toy_city(demo.data, replace(plan, seed=args.seed))
    name = next((name for name in STAGES if getattr(args, name, False)), "table")
    stages = STAGES[name]
    demo.plan(stages, evaluations=2 if name == "table" else 1)
    demo.train(stages)
    table = markdown(stages, demo.scores(stages, name))
    note = f"seed {args.seed}, {(time.time() - started) / 60:.1f} minutes"
    if args.quick:
        note += "; quick: everything ran, but the scores say nothing about the methods"
    if name == "table":
        held_out = "test.dataset=gtav", f"test.data_dir={demo.data}/gtav_val"
        (source,) = demo.scores([SOURCE_ONLY], "source_held_out", *held_out)
        note += f"; source only on held-out source scenes: {source['miou']:.1f} mIoU"
        note += f"; picture (image, labels, source only, PyCDA): {demo.picture([SOURCE_ONLY, PYCDA])}"
    (demo.folder / f"{name}.md").write_text(f"{table}\n\n{note}\n")
    print(f"\n{table}\n\n{note}\nwritten to {demo.folder}/{name}.md and {name}.json")


def main(argv: Sequence[str] | None = None) -> None:
    run(parse(argv))


if __name__ == "__main__":
    exit_after(main)
