"""Pictures of predictions: colour maps, label ids, side-by-side panels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset.labels import IGNORE, ClassTable

OPACITY = 0.5  # of a prediction on its image
TEXT_SIZE, TITLE_HEIGHT, SWATCH = 12, 18, 10  # pixels
LABEL_IDS = "label_ids"  # the folder of a saved prediction that can be scored


def colour_map(labels: np.ndarray, table: ClassTable) -> Image.Image:
    """Train ids (H, W) as an RGB picture; what is not a class is black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: table.num_classes] = table.palette
    return Image.fromarray(palette[labels.astype(np.uint8)])


def label_id_map(labels: np.ndarray, table: ClassTable) -> Image.Image:
    """Train ids (H, W) as the raw label ids that the official evaluator reads; never 255."""
    return Image.fromarray(table.export_ids[labels.astype(np.uint8)])


def overlay(image: Image.Image, prediction: np.ndarray, table: ClassTable, opacity: float = OPACITY) -> Image.Image:
    """The colours of a prediction (H, W) on the image, which is resized to it; opacity 0 is the image."""
    colours = colour_map(prediction, table)
    return Image.blend(image.convert("RGB").resize(colours.size), colours, opacity)


def panel(image: Image.Image, label: np.ndarray, prediction: np.ndarray, table: ClassTable) -> Image.Image:
    """Image | labels | prediction below their names, at the label's size (H, W).

    The prediction is black where nothing is labelled. Where nothing at all is: image | prediction | prediction on it.
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
    """Pictures side by side, each below its name."""
    tiles = []
    for name, picture in columns.items():
        tile = Image.new("RGB", (picture.width, picture.height + TITLE_HEIGHT), "white")
        write(ImageDraw.Draw(tile), (3, 1), name)
        tile.paste(picture, (0, TITLE_HEIGHT))
        tiles.append(tile)
    return stack(tiles, horizontal=True)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, fill: str = "black") -> None:
    """Text whose top left corner is ``at``, 16 pixels high, with letters beyond ASCII where Pillow has a font."""
    draw.text(at, text, fill=fill, font=ImageFont.load_default(TEXT_SIZE))


def legend(table: ClassTable, width: int) -> Image.Image:
    """The colours of the classes and their names, in as many lines as ``width`` asks for."""
    font = ImageFont.load_default(TEXT_SIZE)
    places, x, y = [], SWATCH, 0
    for name in table.names:
        entry = round(font.getlength(name)) + 4 * SWATCH
        if x > SWATCH and x + entry > width:
            x, y = SWATCH, y + TITLE_HEIGHT
        places.append((x, y))
        x += entry
    picture = Image.new("RGB", (width, y + TITLE_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for (x, y), name, colour in zip(places, table.names, table.palette.tolist(), strict=True):
        draw.rectangle((x, y + 3, x + SWATCH, y + 3 + SWATCH), fill=tuple(colour), outline="black")
        write(draw, (x + 3 * SWATCH // 2, y + 1), name)
    return picture


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


def save_prediction(
    folder: Path, name: str, image: Image.Image, label: np.ndarray, prediction: np.ndarray, table: ClassTable
) -> None:
    """Write ``colour/``, ``label_ids/`` and ``panels/`` PNGs of one image; ``name`` may have sub-folders."""
    pictures = {
        "colour": colour_map(prediction, table),
        LABEL_IDS: label_id_map(prediction, table),
        "panels": panel(image, label, prediction, table),
    }
    for kind, picture in pictures.items():
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def confusion_picture(counts: np.ndarray, table: ClassTable) -> Image.Image:
    """Confusion matrix (C, C), rows are labels, as a picture: rows in percent of their labels, the darker the more."""
    cell, margin = 40, 130
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = margin + cell * len(counts) + 8
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    write(draw, (8, 4), "Confusion matrix:\n% of the pixels\nof each label")
    draw.text((8, margin - 16), "label \\ prediction", fill="black")
    for row, name in enumerate(table.names):
        draw.text((8, margin + cell * row + 14), name, fill="black")
        column = Image.new("RGB", (margin - 8, 14), "white")  # names of the columns read upwards
        ImageDraw.Draw(column).text((0, 1), name, fill="black")
        picture.paste(column.rotate(90, expand=True), (margin + cell * row + 14, 4))
        for at, share in enumerate(shares[row]):
            left, top = margin + cell * at, margin + cell * row
            shade = 255 - round(2.1 * share)
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=(shade, shade, 255))
            if share >= 0.5:
                draw.text((left + 10, top + 13), f"{share:.0f}", fill="white" if share > 60 else "black")
    return picture
