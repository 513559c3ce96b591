"""``sh run.sh demo``: the whole recipe on procedural street scenes, one table and one picture at the end.

Every stage is the same command that a user would type; this module only calls them and collects the scores.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dataset.toy_city import Plan, write_toy_city
from utils.checkpoint import CONVERTED
from utils.visual import stack

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "cfgs" / "demo"


@dataclass(frozen=True)
class Row:
    """A line of the result table: a network and the file that holds it."""

    title: str
    run: str
    weights: str | None = None  # file in the run folder; None: the run's own result


ROWS = (
    Row("source only", "source_only"),
    Row("source only, converted BN", "source_only", CONVERTED),
    Row("AdaBN", "adabn"),
    Row("control: source steps + target statistics", "control"),
    Row("PyCDA", "pycda"),
    Row("PyCDA, converted BN", "pycda", CONVERTED),
    Row("PyCDA + spatial ratio", "pycda_spatial"),
)
STAGES = (
    ("train_source_only.py", "source_only"),
    ("test_adabn.py", "source_only"),
    ("train_adabn.py", "adabn"),
    ("train_adabn.py", "control"),
    ("train_pycda.py", "pycda"),
    ("test_adabn.py", "pycda"),
    ("train_pycda_spatial.py", "pycda_spatial"),
)
PANELS = 4  # target images in the picture


class Demo:
    """Stages, scores and pictures of one seed below ``folder``."""

    def __init__(self, folder: Path, seed: int, overrides: Sequence[str]) -> None:
        self.folder, self.data = folder, folder / "toy_city"
        self.overrides = [f"seed={seed}", f"snapshot_dir={folder}", *overrides]
        self.seed = seed

    def run(self, script: str, config: str, *arguments: str) -> None:
        """One command of the README; a failing one ends the demo with its own message above."""
        command = ["sh", str(ROOT / "run.sh"), script, str(CONFIGS / f"{config}.yaml"), *self._data_keys(), *self.overrides, *arguments]
        print("$", " ".join(command[:4]), flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit(f"demo: {script} with {config} failed, see the message above")

    def _data_keys(self) -> list[str]:
        return [f"source.data_dir={self.data}/gtav", f"target.data_dir={self.data}/cityscapes"]

    def score(self, run: str, name: str, *arguments: str) -> dict:
        """Scores of ``evaluate.py`` for a run, also left as JSON beside the table."""
        path = self.folder / "scores" / f"{name}.json"
        self.run("evaluate.py", run, "--json", str(path), *arguments)
        return json.loads(path.read_text())


def demo_table(demo: Demo) -> tuple[list[dict], str]:
    """Evaluate all rows on the target's val split; as records and as a Markdown table."""
    records = []
    for row in ROWS:
        weights = [] if row.weights is None else ["--weights", str(demo.folder / row.run / row.weights)]
        name = row.run if row.weights is None else f"{row.run}_{Path(row.weights).stem}"
        pictures = ["--save", str(demo.folder / "pictures" / name)] if row.run in ("source_only", "pycda") else []
        records.append({"network": row.title, **demo.score(row.run, name, *weights, *pictures)})
    lines = ["| network | target mIoU | pixel accuracy |", "|---|---|---|"]
    lines += [f"| {r['network']} | {r['miou']:.1f} | {r['pixel_accuracy']:.1f} |" for r in records]
    return records, "\n".join(lines)


def demo_picture(folder: Path) -> Path:
    """Image | ground truth | source only || image | ground truth | PyCDA for the first target val images."""
    before, after = (sorted((folder / "pictures" / name / "panels").glob("*.png")) for name in ("source_only", "pycda"))
    rows = []
    for left, right in list(zip(before, after))[:PANELS]:
        with Image.open(left) as a, Image.open(right) as b:
            tile = (a.width - 8) // 3
            rows.append(stack([a.copy(), b.crop((b.width - tile, 0, b.width, b.height))], horizontal=True))
    path = folder / "panel.png"
    stack(rows, horizontal=False).save(path)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="sh run.sh demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of data, runs and results")
    parser.add_argument("--oracle", action="store_true", help="only train on labelled target images: the upper bound")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key in every stage")
    args = parser.parse_intermixed_args(argv)
    started = time.time()
    demo = Demo((args.out / f"seed{args.seed}").resolve(), args.seed, args.overrides)
    write_toy_city(demo.data, Plan(seed=args.seed))
    if args.oracle:
        demo.run("train_source_only.py", "oracle")
        print(f"oracle: target mIoU {demo.score('oracle', 'oracle')['miou']:.1f}")
        return
    for script, config in STAGES:
        demo.run(script, config)
    held_out_source = demo.score("source_only", "source_held_out", "test.dataset=gtav", f"test.data_dir={demo.data}/gtav_val")
    records, table = demo_table(demo)
    note = f"source only on held-out source scenes: {held_out_source['miou']:.1f} mIoU; {(time.time() - started) / 60:.1f} minutes"
    (demo.folder / "table.md").write_text(f"{table}\n\n{note}\n")
    (demo.folder / "table.json").write_text(json.dumps({"rows": records, "source_held_out": held_out_source}, indent=2))
    print(f"\n{table}\n\n{note}\nwritten to {demo.folder}/table.md and table.json; picture: {demo_picture(demo.folder)}")


if __name__ == "__main__":
    main()
