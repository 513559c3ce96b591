"""PNG files of any depth, filter and interlacing, written without Pillow, by the specification."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FILTERS = (0, 1, 2, 3, 4)  # none, sub, up, average, Paeth
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, size: tuple[int, int], bits: int, colour_type: int, rows: bytes, interlace: int = 0) -> Path:
    """Write rows, each with its filter byte before it, as a file of ``size`` (W, H)."""
    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, interlace)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def grey(path: Path, pixels: np.ndarray, bits: int) -> Path:
    """Greys (H, W) below 2**bits, unfiltered."""
    rows = []
    for row in pixels.astype(int):
        packed = np.array([[value >> at & 1 for at in reversed(range(bits))] for value in row], np.uint8)
        rows.append(b"\0" + np.packbits(packed).tobytes())
    return png(path, pixels.shape[::-1], bits, 0, b"".join(rows))


def colour16(path: Path, pixels: np.ndarray, filters: Sequence[int] = (0,), interlaced: bool = False) -> Path:
    """uint16 (H, W, 3 or 4), the rows filtered in turn by ``filters``."""
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [pixels]
    rows = b"".join(_filtered(part, filters) for part in parts if part.size)
    return png(path, pixels.shape[1::-1], 16, {3: 2, 4: 6}[pixels.shape[2]], rows, int(interlaced))


def _filtered(pixels: np.ndarray, filters: Sequence[int]) -> bytes:
    step = 2 * pixels.shape[2]
    rows = pixels.astype(">u2").reshape(len(pixels), -1).copy().view(np.uint8).astype(int)
    above, out = np.zeros(rows.shape[1], int), []
    for row, kind in zip(rows, np.resize(filters, len(rows)), strict=True):
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (row, above))
        estimate = left + above - corner
        to_left, to_above, to_corner = (abs(estimate - other) for other in (left, above, corner))
        paeth = np.where(
            (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
        )
        predicted = (0, left, above, (left + above) // 2, paeth)[kind]
        out.append(bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(out)
