"""Score a run on the test split (Cityscapes val): per-class IoU, 19/16/13-class means, pictures, JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dataset.folders import read_image
from models.weights import load_checkpoint_weights, load_encoder_decoder
from utils import build, distributed
from utils.checkpoint import resolve_weights
from utils.config import build_config, make_parser
from utils.evaluation import evaluate, iou_table, per_class, scores
from utils.visual import save_prediction


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--weights", nargs="+", help="run folder or checkpoint, or an official encoder and decoder file; default: this config's run"
    )
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    parser.add_argument("--save", type=Path, help="write colour maps, label-id PNGs and panels below this folder")
    args = parser.parse_intermixed_args(argv)
    config = build_config(args.config, args.overrides)

    device = distributed.setup()
    model = build.build_network(config, device)
    weights = args.weights or [str(build.run_folder(config))]
    if len(weights) == 2:
        report = load_encoder_decoder(model, *weights)
    else:
        report = load_checkpoint_weights(model, resolve_weights(weights[0]))
    table, classes = build.class_table(config), config.test.eval_classes
    samples = {sample.name: sample for sample in build.test_samples(config)}

    def save(name: str, label: Tensor, prediction: Tensor) -> None:
        save_prediction(args.save, name, read_image(samples[name].image), label.numpy(), prediction.numpy(), table)

    loader = build.evaluation_loader(config, list(samples.values()), config.test.dataset)
    matrix = evaluate(model, loader, config.num_classes, device, on_image=save if args.save else None)
    if distributed.is_main():
        print(f"{report}\n{len(samples)} images\n{iou_table(matrix, table, classes)}")
        if args.json:
            result = {"weights": weights, "images": len(samples), **scores(matrix, table, classes)}
            result |= {"iou": per_class(matrix, table, classes), "confusion_matrix": matrix.counts.tolist()}
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result))
    distributed.shutdown()


if __name__ == "__main__":
    main()
