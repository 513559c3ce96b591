"""Pictures of predictions: colour maps, label ids, side-by-side panels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dataset.labels import IGNORE, ClassTable

LABEL_IDS = "label_ids"  # the folder of a saved prediction that can be scored


def colour_map(labels: np.ndarray, table: ClassTable) -> Image.Image:
    """Train ids (H, W) as an RGB picture; what is not a class is black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: table.num_classes] = table.palette
    return Image.fromarray(palette[labels.astype(np.uint8)])


def label_id_map(labels: np.ndarray, table: ClassTable) -> Image.Image:
    """Train ids (H, W) as the raw label ids that the official evaluator reads; never 255."""
    return Image.fromarray(table.export_ids[labels.astype(np.uint8)])


def panel(image: Image.Image, label: np.ndarray, prediction: np.ndarray, table: ClassTable) -> Image.Image:
    """Image | ground truth | prediction, at the label's size; the prediction is black where nothing is labelled."""
    height, width = label.shape
    scored = np.where(label == IGNORE, IGNORE, prediction)
    tiles = [image.resize((width, height)), colour_map(label, table), colour_map(scored, table)]
    return stack(tiles, horizontal=True)


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
