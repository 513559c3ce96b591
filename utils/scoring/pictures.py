"""Pictures of predictions: colour maps, pseudo-labels, overlays, panels, legend, clips. Threads that write files."""

import math
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dataset.files import write_whole
from dataset.labels import IGNORE, ClassTable

OPACITY = 0.5  # of a prediction on its image
TEXT_SIZE, SMALL_TEXT, TITLE_HEIGHT = 12, 10, 18  # pixels
BARS = 130  # height of a histogram, pixels
LEGEND_SIZES = (13, 28)  # smallest and largest letters of a legend, pixels
WIDTH_IN_LETTERS = 60  # picture width / letter size, between these sizes
# Fonts of Linux, macOS and Windows with more letters than Pillow's. The last two have Chinese, Japanese and Korean.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf")
NO_LETTER = "\uffff"  # no font has this letter: it is drawn as the box that stands for every missing letter
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
INK, FAINT, PAPER = (20, 20, 20), (165, 165, 165), (255, 255, 255)
THREADS = 4  # write files
WAITING = 6  # unfinished calls, at most; each keeps a picture in memory
COLOUR, LABEL_IDS = "colour", "label_ids"  # folders of a saved prediction; evaluate.py can score the second one


def colour_map(labels: np.ndarray, table: ClassTable) -> Image.Image:
    """Train ids (H, W) as an RGB picture. Pixels without a class are black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: table.num_classes] = table.palette
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    return picture.convert("RGB")


def pseudo_label_maps(layers: Mapping[str, Sequence[Any]], table: ClassTable) -> dict[str, Image.Image]:
    """The pseudo-labels of the first image of a batch, a pixel each; black where there is none.

    Args:
        layers: of the pyramid, ``PseudoLabels`` by name.
    """
    maps = {name: np.where(mask[0].numpy(), label[0].numpy(), IGNORE) for name, (_, label, mask) in layers.items()}
    return {name: colour_map(labels, table) for name, labels in maps.items()}


def label_id_map(labels: np.ndarray, table: ClassTable) -> Image.Image:
    """Train ids (H, W) as raw label ids, as the official evaluator reads them. Never 255."""
    return Image.fromarray(table.export_ids[labels.astype(np.uint8)])


def overlay(image: Image.Image, prediction: np.ndarray, table: ClassTable, opacity: float = OPACITY) -> Image.Image:
    """The colours of a prediction (H, W) over the RGB image, at the size of the prediction.

    Args:
        opacity: of the colours; 0 shows only the image.
    """
    colours = colour_map(prediction, table)
    return Image.blend(image if image.size == colours.size else image.resize(colours.size), colours, opacity)


def panel(image: Image.Image, label: np.ndarray, prediction: np.ndarray, table: ClassTable) -> Image.Image:
    """Image | labels | prediction with titles, at the label's size (H, W).

    The prediction is black at unlabelled pixels. If no pixel is labelled: image | prediction | overlay.
    """
    height, width = label.shape
    small = image.resize((width, height))
    if (label == IGNORE).all():
        tiles = {"prediction": colour_map(prediction, table), "overlay": overlay(small, prediction, table)}
    else:
        scored = np.where(label == IGNORE, IGNORE, prediction)
        tiles = {"labels": colour_map(label, table), "prediction": colour_map(scored, table)}
    return titled({"image": small} | tiles)


def titled(columns: dict[str, Image.Image]) -> Image.Image:
    """Pictures side by side, each with its name above it."""
    tiles = []
    for name, picture in columns.items():
        tile = Image.new("RGB", (picture.width, picture.height + TITLE_HEIGHT), "white")
        write(ImageDraw.Draw(tile), (3, 1), name)
        tile.paste(picture, (0, TITLE_HEIGHT))
        tiles.append(tile)
    return stack(tiles, horizontal=True)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int = TEXT_SIZE) -> None:
    """Draw black text in letters of ``size`` pixels, see ``drawable``; ``at`` is its top left corner."""
    (shown,), font = drawable((text,), size)
    draw.text(at, shown, fill="black", font=font)


@cache
def drawable(texts: tuple[str, ...], size: int) -> tuple[tuple[str, ...], Font]:
    """The texts and a font that has all their letters: letters that the font lacks are replaced by ASCII.

    The font is the one of Pillow and ``FONTS`` that lacks the fewest letters. Pillow's has only ASCII.
    """
    texts = tuple(unicodedata.normalize("NFC", text) for text in texts)
    letters = {letter for text in texts for letter in text if not letter.isascii()}
    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in FONTS if letters else ():
        with suppress(OSError):  # this machine does not have it
            fonts.append(ImageFont.truetype(name, size))
    lacking = [[c for c in letters if bytes(font.getmask(c)) == bytes(font.getmask(NO_LETTER))] for font in fonts]
    best = min(range(len(fonts)), key=lambda number: len(lacking[number]))
    in_ascii = str.maketrans({letter: _in_ascii(letter) for letter in lacking[best]})
    return tuple(text.translate(in_ascii) for text in texts), fonts[best]


def _in_ascii(letter: str) -> str:
    """A letter without its accents, or its Unicode name, such as "zhe". "?" if it is not a letter."""
    for text in (letter, letter.casefold()):  # casefold turns the German sharp s into ss
        if plain := unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode():
            return plain
    name = unicodedata.name(letter, "")
    found = re.search(r"(?:LETTER|LIGATURE|SYLLABLE) (?:DOTLESS )?(\w+)", name)
    return "?" if not found else found[1].capitalize() if "CAPITAL" in name else found[1].lower()


def legend(table: ClassTable, width: int, present: np.ndarray | None = None, height: int | None = None) -> Image.Image:
    """Names and colours of all classes on a sheet, ``width`` pixels wide and as high as needed.

    Args:
        present: bool (C,), False for classes that are drawn faint; None: all are present.
        height: pixels; the sheet is then as wide as needed, and ``width`` only sets the size of the letters.
    """
    size = min(max(width // WIDTH_IN_LETTERS, LEGEND_SIZES[0]), LEGEND_SIZES[1])
    (names, font), line = drawable(table.names, size), round(1.6 * size)
    cell = max(math.ceil(font.getlength(name)) for name in names) + round(2.4 * size)
    columns = max(1, width // cell)
    if height is not None:
        columns = math.ceil(table.num_classes / max(1, (height - size // 2) // line))
        width = columns * cell
    sheet = Image.new("RGB", (width, height or math.ceil(table.num_classes / columns) * line + size // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(names):
        left = size // 2 + number % columns * (width // columns)
        top = size // 3 + number // columns * line
        colour, is_present = tuple(table.palette[number].tolist()), present is None or present[number]
        box = (left, top + round(0.2 * size), left + size, top + round(1.2 * size))
        draw.rectangle(box, fill=colour if is_present else None, outline=colour)
        at = (left + round(1.4 * size), top + line / 2)
        draw.text(at, name, fill=INK if is_present else FAINT, font=font, anchor="lm")
    return sheet


def with_legend(picture: Image.Image, classes: np.ndarray, table: ClassTable) -> Image.Image:
    """``picture`` with the legend on its right, at the same height.

    Args:
        classes: train ids uint8 (H, W); other classes are faint in the legend.
    """
    present = np.bincount(classes.ravel(), minlength=table.num_classes) > 0
    return stack([picture, legend(table, picture.width, present, picture.height)], horizontal=True, gap=0)


def histogram(shares: np.ndarray, label: np.ndarray, table: ClassTable, width: int) -> Image.Image:
    """Class shares (C,) as bars above the names of the classes, in percent; ``label`` (C,) is a line on each bar."""
    sheet = Image.new("RGB", (width, BARS + 4 * TEXT_SIZE), PAPER)
    draw, highest, cell = ImageDraw.Draw(sheet), max(shares.max(), label.max()), width / table.num_classes
    for number, name in enumerate(table.names):
        left, right, bottom = round(number * cell), round((number + 1) * cell) - 4, BARS + TEXT_SIZE
        top, line = (bottom - round(BARS * share / highest) for share in (shares[number], label[number]))
        draw.rectangle((left, top, right, bottom), fill=tuple(table.palette[number].tolist()))
        draw.line((left, line, right, line), fill=INK, width=2)
        write(draw, (left, min(top, line) - TEXT_SIZE - 1), f"{100 * shares[number]:.0f}", SMALL_TEXT)
        write(draw, (left, bottom + 4), name.replace(" ", "\n"), SMALL_TEXT)
    return sheet


def stack(tiles: Sequence[Image.Image], horizontal: bool, gap: int = 4) -> Image.Image:
    """Pictures side by side or one below the other, on white."""
    widths, heights = zip(*(tile.size for tile in tiles), strict=True)
    gaps = gap * (len(tiles) - 1)
    size = (sum(widths) + gaps, max(heights)) if horizontal else (max(widths), sum(heights) + gaps)
    sheet = Image.new("RGB", size, "white")
    offset = 0
    for tile in tiles:
        sheet.paste(tile, (offset, 0) if horizontal else (0, offset))
        offset += (tile.width if horizontal else tile.height) + gap
    return sheet


def save_prediction(folder: Path, name: str, classes: np.ndarray, table: ClassTable, **others: Image.Image) -> None:
    """Write a class map (H, W) as colour/NAME.png and label_ids/NAME.png below ``folder``; NAME may have sub-folders.

    Args:
        others: further pictures, by folder.
    """
    pictures = {COLOUR: colour_map(classes, table), LABEL_IDS: label_id_map(classes, table)}
    for kind, picture in (pictures | others).items():
        save_picture(folder / kind / f"{name}.png", picture)


def save_picture(path: Path, picture: Image.Image, **options: object) -> None:
    """Write a whole picture file or none, in the format of its suffix.

    Args:
        options: of Pillow's ``save``.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_whole(path, lambda stream: picture.save(stream, kind, **options))


def write_clip(path: Path, frames: Sequence[Path], frames_per_second: float, width: int) -> None:
    """Animate picture files as GIF or WebP, by the suffix of ``path``.

    Args:
        width: of the clip at most, pixels. The clip has the aspect of the first frame; other frames are padded with
            white.
    """
    with Image.open(frames[0]) as first:
        scale = min(1.0, width / first.width)
        size = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))

    def fitted() -> Iterator[Image.Image]:  # one at a time: a whole clip may not fit into the memory
        for frame in frames:
            with Image.open(frame) as picture:
                yield ImageOps.pad(picture.convert("RGB"), size, Image.Resampling.BILINEAR, color=PAPER)

    rest = fitted()
    duration = round(1000 / frames_per_second)  # milliseconds
    save_picture(path, next(rest), save_all=True, append_images=rest, duration=duration, loop=0)


def confusion_picture(counts: np.ndarray, table: ClassTable) -> Image.Image:
    """A confusion matrix (C, C) as a picture, in percent of the labels of each row; a darker cell has more pixels."""
    cell, margin = 40, 130
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = margin + cell * len(counts) + 8
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    write(draw, (8, 4), "Confusion matrix:\n% of the pixels\nof each label")
    draw.text((8, margin - 16), "label \\ prediction", fill="black")
    for row, name in enumerate(table.names):
        write(draw, (8, margin + cell * row + 14), name, SMALL_TEXT)
        column = Image.new("RGB", (margin - 8, 14), "white")  # the columns' names run upwards
        write(ImageDraw.Draw(column), (0, 1), name, SMALL_TEXT)
        picture.paste(column.rotate(90, expand=True), (margin + cell * row + 14, 4))
        for at, share in enumerate(shares[row]):
            left, top = margin + cell * at, margin + cell * row
            shade = 255 - round(2.1 * share)
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=(shade, shade, 255))
            if share >= 0.5:
                draw.text((left + 10, top + 13), f"{share:.0f}", fill="white" if share > 60 else "black")
    return picture


class Background:
    """Context that runs calls in other threads and waits for all of them at its end. Pillow compresses without the GIL.

    An error of a call is raised by a later call or at the end of the context. After an error, of a call or of the
    context, calls that have not begun are dropped.
    """

    def __init__(self) -> None:
        self.pool, self.calls = ThreadPoolExecutor(THREADS), deque[Future]()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Run ``function(*arguments)`` in a thread; first wait until fewer than ``WAITING`` calls are unfinished."""
        while len(self.calls) >= WAITING:
            self.calls.popleft().result()
        self.calls.append(self.pool.submit(function, *arguments))

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self.calls:
                self.calls.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)
