"""``sh run.sh report CONFIG [--baseline RUN]``: one HTML file about a run, with everything in it.

Configuration, curves of all losses and labelled shares, per-class IoU against a baseline, and target images with the
pseudo-labels of every layer of the pyramid. No network is needed to read it.
"""

import base64
import html
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.folders import read_image, read_label
from dataset.labels import IGNORE, ClassTable
from dataset.transforms import EvalTransform
from models.weights import load_checkpoint_weights
from utils import build
from utils.checkpoint import resolve_weights
from utils.command_line import make_parser, parse_config
from utils.config import to_yaml
from utils.curriculum import PyramidCurriculum
from utils.evaluation import evaluate, per_class, scores
from utils.schema import Config
from utils.visual import colour_map

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1rem auto; max-width: 68rem; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .7rem .15rem 0; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }} .bar {{ height: .55rem; background: #4477aa; }}
.curves, .panels {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }}
figure {{ margin: 0; }} figcaption {{ color: #555; font-size: .85rem; overflow-wrap: anywhere; }}
img, svg {{ width: 100%; height: auto; }} pre {{ overflow-x: auto; background: #f5f5f5; padding: .7rem; }}
.wide {{ overflow-x: auto; }} h2 {{ margin-top: 2rem; }} h3 {{ overflow-wrap: anywhere; }}
</style><h1>{title}</h1>{body}</html>"""
WIDTH, HEIGHT = 320, 130  # of a curve, SVG units
IMAGES = 4  # target images with pseudo-labels


def curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    """A figure with one line of (step, value)."""
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    span, length = (high - low) or 1.0, (steps[-1] - steps[0]) or 1
    path = " ".join(
        f"{WIDTH * (s - steps[0]) / length:.1f},{HEIGHT - 4 - (HEIGHT - 8) * (v - low) / span:.1f}" for s, v in points
    )
    line = f'<polyline points="{path}" fill="none" stroke="#4477aa" stroke-width="1.5"/>'
    caption = f"{html.escape(name)}: {values[-1]:.4g} at step {steps[-1]} (range {low:.4g} to {high:.4g})"
    return f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{line}</svg><figcaption>{caption}</figcaption></figure>'


def curves(log: Path) -> str:
    """All scalars of a run but the class shares, which are too many to read."""
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in log.read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step" and "/share/" not in name:
                series[name].append((record["step"], value))
    return f'<div class="curves">{"".join(curve(name, points) for name, points in series.items())}</div>'


def inline(picture: Image.Image, caption: str) -> str:
    """A picture within the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def iou_rows(result: dict[str, float | None], baseline: dict[str, float | None] | None) -> str:
    """Per-class IoU, with the baseline's and the difference where there is one."""
    head = "<tr><th>class<th>IoU" + ("<th>baseline<th>difference" if baseline else "") + "<th></tr>"
    rows = [head]
    for name, value in result.items():
        before = baseline.get(name) if baseline else None
        cells = f"<td>{html.escape(name)}<td>{_number(value)}"
        if baseline:
            difference = None if value is None or before is None else value - before
            cells += f"<td>{_number(before)}<td>{_number(difference, '+.2f')}"
        rows.append(f'<tr>{cells}<td style="width:9rem"><div class="bar" style="width:{value or 0:.0f}%"></div></tr>')
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def pseudo_label_panels(config: Config, model: torch.nn.Module, table: ClassTable) -> str:
    """Target images with their labels, the prediction, its confidence and each layer's pseudo-labels."""
    transform, figures = EvalTransform(config.target.input_size), []
    c = config.curriculum
    curriculum = PyramidCurriculum(None, box_size=c.box_size, conf_threshold=c.conf_threshold, region_pool=c.region_pool)
    for sample in build.test_samples(config)[:IMAGES]:
        image = read_image(sample.image)
        pixels, _, _ = transform(image, None, np.random.default_rng(0))
        with torch.inference_mode():
            logits = model(pixels[None])["logits"]
            layers = curriculum.pseudo_labels(logits)
        size = (pixels.shape[2], pixels.shape[1])
        confidence = (255 * logits.softmax(1).amax(1)[0]).byte().numpy()
        pictures = [(image.resize(size), "image"), (colour_map(read_label(sample.label, build.label_kind(config.test)), table), "labels")]
        pictures += [(colour_map(logits.argmax(1)[0].numpy(), table), "prediction"), (Image.fromarray(confidence), "confidence")]
        for name, (_, label, mask) in layers.items():
            shown = torch.where(mask, label, IGNORE)[0].numpy()
            pictures.append((colour_map(shown, table).resize(size, Image.Resampling.NEAREST), f"pseudo-labels: {name}"))
        figures.append(f"<h3>{html.escape(sample.name)}</h3>")
        figures.append(f'<div class="panels">{"".join(inline(p, caption) for p, caption in pictures)}</div>')
    return "".join(figures)


def score(config: Config, weights: str) -> tuple[torch.nn.Module, dict[str, float], dict[str, float | None]]:
    """Network in eval mode, means and per-class IoU of a run on the test split."""
    device, table = torch.device("cuda" if torch.cuda.is_available() else "cpu"), build.class_table(config)
    model = build.build_network(config, device)
    load_checkpoint_weights(model, resolve_weights(weights))
    loader = build.evaluation_loader(config, build.test_samples(config), config.test)
    matrix = evaluate(model, loader, config.num_classes, device, title=Path(weights).name)
    model.eval().cpu()
    return model, scores(matrix, table, config.test.eval_classes), per_class(matrix, table, config.test.eval_classes)


def write_report(config: Config, baseline: str | None) -> Path:
    """Write ``report.html`` into the run folder of ``config``; returns its path."""
    folder, table = build.run_folder(config), build.class_table(config)
    model, means, iou = score(config, str(folder))
    before = score(config, baseline)[2] if baseline else None
    summary = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
    body = [f"<p>{html.escape(summary)}</p>", "<h2>IoU on the test split</h2>", iou_rows(iou, before)]
    body += ["<h2>Curves</h2>", curves(folder / "log.jsonl")]
    body += ["<h2>Pseudo-labels on target images</h2>", pseudo_label_panels(config, model, table)]
    body += ["<h2>Configuration</h2>", f"<pre>{html.escape(to_yaml(config))}</pre>"]
    path = folder / "report.html"
    path.write_text(PAGE.format(title=html.escape(config.exp_name), body="\n".join(body)))
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--baseline", help="run folder to compare with, such as the source-only run")
    args = parser.parse_intermixed_args(argv)
    print(write_report(parse_config(args, "evaluate"), args.baseline))


if __name__ == "__main__":
    main()
