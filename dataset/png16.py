"""PNGs of 16 bits a channel, exactly: Pillow's own reader keeps the high byte of each value and accepts damage."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")  # length of the data, kind; before the data, after which its CRC-32 stands
CRC = struct.Struct(">I")
HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
RGB, RGBA = 2, 6  # colour types
MAX_PIXELS = 2**28  # a file that claims more is made to fill the memory


def is_colour16(path: Path) -> bool:
    """Whether a file is a PNG of 16 bits and three or four channels, by its header."""
    start = len(SIGNATURE) + CHUNK.size
    with path.open("rb") as stream:
        head = stream.read(start + HEADER.size)
    if len(head) < start + HEADER.size or not head.startswith(SIGNATURE):
        return False
    _, _, bits, colour_type, *_ = HEADER.unpack_from(head, start)
    return bits == 16 and colour_type in (RGB, RGBA)


def read_first_channel(path: Path) -> np.ndarray:
    """First channel, uint16 (H, W), of a PNG for which ``is_colour16`` is true.

    Raises:
        ValueError: a damaged file, by its checksums. OSError: one that cannot be read.
    """
    chunks = list(_chunks(path.read_bytes()))
    width, height, _, colour_type, _, _, interlace = HEADER.unpack(chunks[0][1])
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are none or too many")
    data = b"".join(content for kind, content in chunks if kind == b"IDAT")

    def decode(raw_mode: str) -> np.ndarray:
        return np.asarray(Image.frombytes("RGBA", (width, height), data, "zip", raw_mode, interlace))

    if colour_type == RGBA:  # the high bytes of all channels, and the low ones
        high, low = decode("RGBA;16B")[..., 0], decode("RGBA;16L")[..., 0]
    else:  # the first four of the six bytes of a pixel, at once
        pixels = decode("RGBAXX")
        high, low = pixels[..., 0], pixels[..., 1]
    return (high.astype(np.uint16) << 8) | low


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, data) of every chunk up to the last one, its checksum compared (PNG specification, 5.3 and 5.5)."""
    view, at = memoryview(content), len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if at + CHUNK.size + CRC.size > len(content):
            raise ValueError(f"truncated after {len(content)} bytes")
        length, kind = CHUNK.unpack_from(content, at)
        end = at + CHUNK.size + length
        if end + CRC.size > len(content) or CRC.unpack_from(content, end)[0] != zlib.crc32(view[at + 4 : end]):
            raise ValueError(f"damaged: the checksum of the chunk at byte {at} is wrong")
        yield kind, view[at + CHUNK.size : end]
        at = end + CRC.size
