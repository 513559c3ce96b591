"""Score runs on the test split (Cityscapes val): per-class IoU, 19/16/13-class means, pictures, JSON.

--weights takes run folders or checkpoints, several of them for a comparison, or an official encoder and decoder file.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dataset.folders import Sample
from dataset.reading import read_image
from utils import distributed
from utils.build.data import test_samples
from utils.build.network import load_network
from utils.config.command_line import make_parser, parse_config
from utils.config.schema import Config
from utils.metrics import ConfusionMatrix
from utils.run_folder.checkpoint import pair_up
from utils.run_folder.records import plain_json
from utils.scoring.evaluation import comparison, evaluate_test_split, per_class, scores
from utils.scoring.predictions import Gallery, score_files


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    parser = make_parser(__doc__)
    parser.add_argument("--weights", nargs="+", help="what to score; default: this configuration's run")
    parser.add_argument(
        "--predictions", type=Path, help="score the label-id PNGs below this folder instead of a network"
    )
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    parser.add_argument(
        "--save", type=Path, help="write pictures below this folder: colour maps, label ids, panels, confusion"
    )
    args = parser.parse_intermixed_args(argv)
    return args, parse_config(args, "evaluate")


def score_network(
    config: Config, files: Sequence[str], samples: Sequence[Sample], device: torch.device, gallery: Gallery | None
) -> ConfusionMatrix:
    """Confusion matrix of one checkpoint, or of an official (encoder, decoder) pair, with pictures in ``gallery``."""
    model, report = load_network(config, files, device)
    if distributed.is_main():
        print(report)
    on_image: Callable[[str, Tensor, Tensor], None] | None = None
    if gallery:
        images = {sample.name: sample.image for sample in samples}
        on_image = lambda name, label, prediction: gallery.add(name, read_image(images[name]), label, prediction)  # noqa: E731
    matrix = evaluate_test_split(config, model, samples, device, on_image=on_image)
    if gallery:
        gallery.finish(matrix)
    return matrix


def write_json(path: Path, config: Config, matrices: dict[str, ConfusionMatrix], images: int) -> None:
    """One object for one network, a list of them for several."""
    table, classes = config.class_table, config.test.eval_classes
    results = []
    for name, matrix in matrices.items():
        result = {
            "name": name,
            "images": images,
            **scores(matrix, table, classes),
            "iou": per_class(matrix, table, classes),
        }
        results.append(result | {"confusion_matrix": matrix.counts.tolist()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plain_json(results[0] if len(results) == 1 else results))


def main(argv: Sequence[str] | None = None) -> None:
    args, config = parse(argv)
    device = distributed.setup()
    samples, table = test_samples(config), config.class_table
    if args.predictions:
        matrices = {
            str(args.predictions): score_files(args.predictions, samples, config.test.label_kind, config.num_classes)
        }
    else:
        matrices = {}
        for name, files in pair_up(args.weights or [str(config.run_folder)]).items():
            folder = (
                args.save
                if len(args.weights or [""]) == len(files)
                else args.save and args.save / name.replace("/", "_")
            )
            gallery = Gallery(folder, table) if folder else None
            matrices[name] = score_network(config, files, samples, device, gallery)
    if distributed.is_main():
        print(f"{len(samples)} images\n{comparison(matrices, table, config.test.eval_classes)}")
        if args.json:
            write_json(args.json, config, matrices, len(samples))
    distributed.shutdown()


if __name__ == "__main__":
    main()
