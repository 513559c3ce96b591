"""The result page's images: which are shown, and what is shown of each."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.folders import Sample
from dataset.labels import IGNORE, ClassTable
from dataset.reading import read_image, read_label
from dataset.transforms import EvalTransform
from models.segmentor import Segmentor
from utils.commands.report_curves import words
from utils.commands.report_numbers import colour_code
from utils.config.schema import Config
from utils.metrics import ConfusionMatrix
from utils.pycda.curriculum import PyramidCurriculum
from utils.scoring.class_shares import evenly_spaced
from utils.scoring.pictures import colour_map, overlay

SPACED = 3  # images beside the best, the worst and the most changed
PICTURE_WIDTH = 640  # pixels at most, so that the page stays small
NEAREST = Image.Resampling.NEAREST  # mixes no colours
STRIDE = 8  # of the pixels by which two networks' predictions of an image are compared


@dataclass
class Seen:
    """What is kept of a network's predictions, image by image."""

    num_classes: int
    miou: dict[str, float] = field(default_factory=dict)  # percent by image, without those where nothing is labelled
    sampled: dict[str, Tensor] = field(default_factory=dict)  # every ``STRIDE``-th row and column

    def add(self, name: str, label: Tensor, prediction: Tensor) -> None:
        """Take one image's label and prediction, (H, W)."""
        matrix = ConfusionMatrix(self.num_classes)
        matrix.update(label, prediction)
        if matrix.counts.any():
            self.miou[name] = 100 * matrix.miou()
        self.sampled[name] = prediction[::STRIDE, ::STRIDE].clone()


def choose(own: Seen, before: Seen | None) -> dict[str, str]:
    """Names of the images to show, with the reason in words: best, worst, most changed, and some evenly spaced."""
    reasons: dict[str, list[str]] = {}
    if own.miou:
        ranked = sorted(own.miou, key=own.miou.__getitem__)
        reasons.setdefault(ranked[-1], []).append(f"the best, {own.miou[ranked[-1]]:.1f} mIoU")
        reasons.setdefault(ranked[0], []).append(f"the worst, {own.miou[ranked[0]]:.1f} mIoU")
    if before:
        changed = {name: (own.sampled[name] != before.sampled[name]).float().mean().item() for name in own.sampled}
        most = max(changed, key=changed.__getitem__)
        text = f"the most changed, {100 * changed[most]:.0f} % of the pixels have another class than in the baseline"
        reasons.setdefault(most, []).append(text)
    for name in evenly_spaced(list(own.sampled), SPACED):
        reasons.setdefault(name, [])
    return {name: "; ".join(found) or "one of the evenly spaced" for name, found in reasons.items()}


def image_section(
    config: Config, trained: Config, samples: Sequence[Sample], reasons: dict[str, str], models: dict[str, Segmentor]
) -> str:
    """Images with their labels, the models' predictions, and the confidence and pseudo-labels of the last model.

    Args:
        trained: the configuration of the run, which says what its curriculum was.
        samples: where the images of ``reasons`` are.
        models: by the name for the caption, in eval mode on the CPU.
    """
    table, by_name = config.class_table, {sample.name: sample for sample in samples}
    threshold = trained.curriculum.conf_threshold
    figures = []
    for name, reason in reasons.items():
        pictures = _pictures(config, trained, by_name[name], models)
        shown = "".join(inline(picture, caption) for caption, picture in pictures.items())
        title = f"<h3>{html.escape(name)}: {html.escape(reason)}</h3>"
        figures.append(f'{title}<div class="panels">{shown}</div>')
    note = (
        "By the final network in eval mode. Confidence is black at 0 and white at 1; above "
        f"{threshold} there is a pseudo-label, black is none. A click enlarges an image, another one closes it."
    )
    return f'<p class="note">{note}</p>{legend(table)}{"".join(figures)}'


def _pictures(config: Config, trained: Config, sample: Sample, models: dict[str, Segmentor]) -> dict[str, Image.Image]:
    """The pictures of one image by caption, all of one size."""
    c, table, image = trained.curriculum, config.class_table, read_image(sample.image)
    curriculum = PyramidCurriculum(
        None,
        box_size=c.box_size,
        conf_threshold=c.conf_threshold,
        region_pool=c.region_pool,
        use_pixels=c.use_pixels,
    )
    pixels, _, _ = EvalTransform(trained.target.input_size)(image, None, np.random.default_rng(0))
    with torch.inference_mode():
        logits = {name: model(pixels[None])["logits"] for name, model in models.items()}
        *_, own = logits.values()
        layers = curriculum.pseudo_labels(own)
    width = min(image.width, PICTURE_WIDTH)
    size = (width, round(width * image.height / image.width))
    maps = {} if sample.label is None else {"labels": read_label(sample.label, config.test.label_kind)}
    maps |= {f"prediction, {name}": z.argmax(1)[0].numpy() for name, z in logits.items()}
    pictures = {"image": image.resize(size)} | {caption: colour_map(ids, table) for caption, ids in maps.items()}
    if sample.label is None:
        pictures["prediction on the image"] = overlay(image, own.argmax(1)[0].numpy(), table)
    pictures["confidence"] = Image.fromarray((255 * own.softmax(1).amax(1)[0]).byte().numpy())
    for name, (_, label, mask) in layers.items():
        ids = torch.where(mask, label, IGNORE)[0].numpy()
        pictures[f"pseudo-labels, {words(name)}"] = colour_map(ids, table)
    return {caption: picture.resize(size, NEAREST) for caption, picture in pictures.items()}


def inline(picture: Image.Image, caption: str) -> str:
    """A picture within the page; a click, or the space bar, shows it as large as the window."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    switch = f'<input type="checkbox" aria-label="enlarge {text}">'
    shown = f'<label class="enlarge">{switch}<img alt="{text}" src="data:image/png;base64,{data}"></label>'
    return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"


def legend(table: ClassTable) -> str:
    """The colours of the classes."""
    items = [f'<li><i style="background:{colour_code(table, name)}"></i>{html.escape(name)}' for name in table.names]
    return f'<ul class="legend">{"".join(items)}<li><i style="background:#000"></i>no label</ul>'
