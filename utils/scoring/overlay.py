"""Class colours over the picture itself, with a legend, and animated clips of such pictures."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dataset.labels import ClassTable

FONT_SIZES = (13, 28)  # pixels, of the narrowest and the widest pictures
WIDTH_IN_LETTERS = 60  # of a picture whose letters are between these sizes
INK, FAINT, PAPER = (20, 20, 20), (165, 165, 165), (255, 255, 255)


def with_legend(picture: Image.Image, classes: np.ndarray, table: ClassTable) -> Image.Image:
    """``picture`` above the names and colours of all classes; those that are not in ``classes`` are faint.

    The height depends on the width and the table only, so that the frames of a clip are of one size.
    """
    present = np.bincount(classes.ravel(), minlength=table.num_classes) > 0
    size = min(max(picture.width // WIDTH_IN_LETTERS, FONT_SIZES[0]), FONT_SIZES[1])
    font, line = ImageFont.load_default(size), round(1.6 * size)
    widest = max(math.ceil(font.getlength(name)) for name in table.names)
    cell = widest + round(2.4 * size)
    columns = max(1, picture.width // cell)
    rows = math.ceil(table.num_classes / columns)
    sheet = Image.new("RGB", (picture.width, picture.height + rows * line + size // 2), PAPER)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(table.names):
        left = size // 2 + number % columns * (picture.width // columns)
        top = picture.height + size // 3 + number // columns * line
        box = (left, top + round(0.2 * size), left + size, top + round(1.2 * size))
        colour = tuple(table.palette[number].tolist())
        draw.rectangle(box, fill=colour if present[number] else None, outline=colour)
        ink = INK if present[number] else FAINT
        draw.text((left + round(1.4 * size), top + line / 2), name, fill=ink, font=font, anchor="lm")
    return sheet


def write_clip(path: Path, frames: Sequence[Path], frames_per_second: float, width: int) -> None:
    """Animate picture files as GIF or WebP, by the suffix of ``path``.

    Args:
        width: of the clip at most, pixels; its height is that of the first frame, and frames of another aspect are
            fitted on white.
    """
    with Image.open(frames[0]) as first:
        scale = min(1.0, width / first.width)
        size = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))

    def fitted() -> Iterator[Image.Image]:  # one at a time: a clip may be longer than memory
        for frame in frames:
            with Image.open(frame) as picture:
                yield ImageOps.pad(picture.convert("RGB"), size, Image.Resampling.BILINEAR, color=PAPER)

    rest = fitted()
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 / frames_per_second)  # milliseconds
    next(rest).save(path, save_all=True, append_images=rest, duration=duration, loop=0)
