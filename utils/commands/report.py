"""``sh run.sh report CONFIG [--baseline RUN]``: one HTML file about a run, with everything in it.

Per-class IoU against a baseline, curves of all losses and labelled shares, target images with the pseudo-labels of
every layer of the pyramid, and the configuration that the run was trained with. No network is needed to read it.
"""

import base64
import html
import io
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from dataset.failures import exit_after
from dataset.labels import IGNORE, ClassTable
from dataset.reading import read_image, read_label
from dataset.transforms import EvalTransform
from models.segmentor import Segmentor
from utils.build.data import test_samples
from utils.build.network import load_network
from utils.commands import arguments
from utils.commands.chart import chart
from utils.config.read import build_config, flatten, to_yaml
from utils.config.schema import Config
from utils.curriculum import PyramidCurriculum
from utils.run_folder.checkpoint import resolve_weights
from utils.run_folder.records import RECORDS, read_scalars
from utils.scoring.evaluation import evaluate_test_split, per_class, scores
from utils.scoring.pictures import colour_map

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; }}
body {{ margin: 1rem auto; max-width: 68rem; padding: 0 1rem; }}
h1, h3, p, .keys td + td {{ overflow-wrap: anywhere; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ccc; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .12rem 0 .12rem .7rem; text-align: right; white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; padding-left: 0; white-space: normal; }}
.iou {{ width: 100%; max-width: 46rem; }} .iou tr {{ border-bottom: 1px solid #eee; }}
.means td {{ font-weight: 600; background: #f3f6f9; }}
.iou td:last-child {{ width: 40%; }}
.own {{ background: #0072b2; height: .45rem; }} .before {{ background: #999; height: .2rem; }}
.up {{ color: #11702f; }} .down {{ color: #b3261e; }}
.keys :is(td, th) {{ text-align: left; white-space: normal; vertical-align: top; }}
.curves {{ display: grid; gap: 1.6rem 2.5rem; }}
.curves {{ grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }}
.curves table {{ font-size: .85rem; margin-left: 1rem; }} svg text {{ font-size: 11px; fill: #444; }}
svg path {{ stroke: #ddd; }} svg polyline {{ fill: none; stroke-width: 1.5; stroke-linejoin: round; }}
.panels {{ display: grid; gap: .7rem; grid-template-columns: repeat(4, 1fr); }}
@media (max-width: 40rem) {{
.panels {{ grid-template-columns: repeat(2, 1fr); }} td, th {{ padding-left: .5rem; }}
.iou :is(td, th):last-child {{ display: none; }} .iou td:first-child {{ width: 100%; }} }}
figure {{ margin: 0; min-width: 0; }} figcaption {{ color: #444; font-size: .85rem; }}
img, svg {{ width: 100%; height: auto; display: block; }}
i {{ display: inline-block; width: .8rem; height: .8rem; }}
i {{ margin-right: .4rem; vertical-align: -.08rem; box-shadow: 0 0 0 1px #0003; }}
.legend {{ list-style: none; margin: 0; padding: .4rem 0; position: sticky; top: 0; background: #fff; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8rem; }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: .7rem; }}
</style><h1>{title}</h1>{body}</html>"""
IMAGES = 4  # target images with pseudo-labels
PICTURE_WIDTH = 512  # pixels at most, so that the page stays small
NEAREST = Image.Resampling.NEAREST  # mixes no colours
TITLES = {
    "val": "Scores on the held-out target images, percent",
    "target/labelled": "Share of the pixels and squares that are labelled",
    "source": "Losses of the source step",
    "target": "Losses of the target step",
    "": "Learning rate relative to the initial one",
}


def curves(log: Path) -> str:
    """All scalars of a run, one chart a group, but the class shares, which are too many to read."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {group: defaultdict(list) for group in TITLES}
    for step, values in read_scalars(log):
        for name, value in values.items():
            group, _, leaf = name.rpartition("/")
            if math.isfinite(value):
                groups.setdefault(group, defaultdict(list))[_words(leaf)].append((step, value))
    charts = [chart(TITLES.get(group, group), series) for group, series in groups.items() if series]
    return f'<div class="curves">{"".join(charts)}</div>'


def inline(picture: Image.Image, caption: str) -> str:
    """A picture within the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


class Scored(NamedTuple):
    """A network in eval mode on the CPU, and its scores in percent on the test split."""

    model: Segmentor
    means: dict[str, float]
    iou: dict[str, float | None]
    images: int


def score(config: Config, weights: Path) -> Scored:
    """Evaluate a checkpoint."""
    device, table = torch.device("cuda" if torch.cuda.is_available() else "cpu"), config.class_table
    model, _ = load_network(config, [weights], device)
    samples, classes = test_samples(config), config.test.eval_classes
    matrix = evaluate_test_split(config, model, samples, device, title=weights.parent.name)
    return Scored(model.eval().cpu(), scores(matrix, table, classes), per_class(matrix, table, classes), len(samples))


def score_table(own: Scored, before: Scored | None, table: ClassTable) -> str:
    """Means and per-class IoU, with the baseline's and the difference where there is one."""
    key = '<i class="own"></i>this run &nbsp; <i class="before"></i>baseline'
    head = f"<th>this run<th>baseline<th>difference<th>{key}</tr>" if before else "<th>this run<th></tr>"
    rows = f"<tr><th>mean{head}{_score_rows(own.means, before and before.means, 'means', table)}"
    rows += f"<tr><th>class{head}{_score_rows(own.iou, before and before.iou, 'class', table)}"
    return f'<p>{own.images} images. A dash: neither labelled nor predicted.</p><table class="iou">{rows}</table>'


def _score_rows(
    result: Mapping[str, float | None], baseline: Mapping[str, float | None] | None, kind: str, table: ClassTable
) -> str:
    rows = []
    for name, value in result.items():
        title = _words(name)
        if kind == "class":
            title = f'<i style="background:{_hex(table, name)}"></i>{html.escape(name)}'
        cells, bars = f"<td>{title}<td>{_number(value)}", _bar(value, "own")
        if baseline is not None:
            before = baseline[name]
            change = None if value is None or before is None else value - before
            sign = "" if not change else "up" if change > 0 else "down"
            cells += f'<td>{_number(before)}<td class="{sign}">{_number(change, "+.2f")}'
            bars += _bar(before, "before")
        rows.append(f'<tr class="{kind}">{cells}<td>{bars}</tr>')
    return "".join(rows)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("iou", "IoU")


def _hex(table: ClassTable, name: str) -> str:
    return "#" + bytes(table.palette[table.names.index(name)]).hex()


def _bar(percent: float | None, kind: str) -> str:
    return f'<div class="{kind}" style="width:{percent or 0:.1f}%"></div>'


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def legend(table: ClassTable) -> str:
    """The colours of the classes."""
    items = [f'<li><i style="background:{_hex(table, name)}"></i>{html.escape(name)}' for name in table.names]
    return f'<ul class="legend">{"".join(items)}<li><i style="background:#000"></i>no label</ul>'


def pseudo_label_panels(config: Config, trained: Config, models: dict[str, Segmentor], table: ClassTable) -> str:
    """Test images with their labels, the models' predictions, and the confidence and pseudo-labels of the last model.

    Args:
        trained: the configuration of the run, which says what its curriculum was; ``config`` says where images are.
        models: by the name for the caption, in eval mode on the CPU.
    """
    c, samples = trained.curriculum, test_samples(config)
    curriculum = PyramidCurriculum(
        None,
        box_size=c.box_size,
        conf_threshold=c.conf_threshold,
        region_pool=c.region_pool,
        use_pixels=c.use_pixels,
    )
    resize = EvalTransform(trained.target.input_size)
    figures = []
    for sample in samples[:: math.ceil(len(samples) / IMAGES)]:
        image = read_image(sample.image)
        pixels, _, _ = resize(image, None, np.random.default_rng(0))
        with torch.inference_mode():
            logits = {name: model(pixels[None])["logits"] for name, model in models.items()}
            *_, own = logits.values()
            layers = curriculum.pseudo_labels(own)
        maps = {"labels": read_label(sample.label_file, config.test.label_kind)}
        maps |= {f"prediction, {name}": z.argmax(1)[0].numpy() for name, z in logits.items()}
        width = min(image.width, PICTURE_WIDTH)
        size = (width, round(width * image.height / image.width))
        pictures = {"image": image.resize(size)}
        pictures |= {caption: colour_map(labels, table) for caption, labels in maps.items()}
        pictures["confidence"] = Image.fromarray((255 * own.softmax(1).amax(1)[0]).byte().numpy())
        for name, (_, label, mask) in layers.items():
            pictures[f"pseudo-labels, {name}"] = colour_map(torch.where(mask, label, IGNORE)[0].numpy(), table)
        shown = [inline(picture.resize(size, NEAREST), caption) for caption, picture in pictures.items()]
        figures.append(f'<h3>{html.escape(sample.name)}</h3><div class="panels">{"".join(shown)}</div>')
    note = "By the final network in eval mode. Confidence is black at 0 and white at 1; "
    note += f"above {c.conf_threshold} there is a label."
    return f"<p>{note}</p>{legend(table)}{''.join(figures)}"


def configuration(text: str) -> str:
    """The keys whose values are not the defaults as a table, and all of them, folded up."""
    defaults = flatten(yaml.safe_load(to_yaml(Config())))
    changed = {name: value for name, value in flatten(yaml.safe_load(text)).items() if value != defaults[name]}
    rows = [(name.replace(".", ".<wbr>"), _yaml(value), _yaml(defaults[name])) for name, value in changed.items()]
    lines = "".join(f"<tr><td>{name}<td>{value}<td>{default}</tr>" for name, value, default in rows)
    table = f'<table class="keys"><tr><th>key<th>value<th>default</tr>{lines}</table>'
    return f"{table}<details><summary>all keys</summary><pre>{html.escape(text)}</pre></details>"


def _yaml(value: Any) -> str:
    return html.escape(value if isinstance(value, str) else json.dumps(value))


def write_report(config: Config, baseline: str | None) -> Path:
    """Write ``report.html`` into the run folder of ``config``; returns its path."""
    folder, table = config.run_folder, config.class_table
    weights = {"baseline": resolve_weights(baseline)} if baseline else {}
    weights["this run"] = resolve_weights(str(folder))
    scored = {name: score(config, path) for name, path in weights.items()}
    own, before = scored["this run"], scored.get("baseline")
    trained = (folder / "config.yaml").read_text()
    networks = {name: result.model for name, result in scored.items()}
    panels = pseudo_label_panels(config, build_config(folder / "config.yaml"), networks, table)
    sections = {
        "Scores on the test split, percent": score_table(own, before, table),
        "Curves": curves(folder / RECORDS),
        "Pseudo-labels on target images": panels,
        "Configuration of the run": configuration(trained),
    }
    files = "; ".join(f"{name}: {path}" for name, path in reversed(weights.items()))
    body = [f"<p>{html.escape(files)}</p>"]
    body += [f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items()]
    path = folder / "report.html"
    path.write_text(PAGE.format(title=html.escape(config.exp_name), body="\n".join(body)))
    return path


def run(config: Config, baseline: str | None) -> None:
    print(write_report(config, baseline))


def main(argv: Sequence[str] | None = None) -> None:
    run(*arguments.report(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_after(main)
