"""One procedural street scene: an image and its exact labels, in the style of a game or of a camera.

The scenes of both domains have the same structure: a street towards a vanishing point with objects beside and on it.
The domains differ in palette, light, texture, haze, blur, sensor noise and in the numbers of objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dataset.labels import CITYSCAPES, IGNORE

Colour = tuple[int, int, int]
Point = tuple[float, float]
ID = {name: index for index, name in enumerate(CITYSCAPES.names)}
ROAD, WALK = 0.42, 0.24  # half the road's width, and a sidewalk's width, at the bottom of the image, in image widths


@dataclass(frozen=True)
class Style:
    """Appearance of a domain, and numbers of its objects."""

    palette: dict[str, tuple[Colour, ...]]  # base colours by class
    jitter: float  # standard deviation of a surface's colour, 0..255
    texture: dict[str, float]  # standard deviation of fine texture by class, 0..255; "" stands for all other classes
    saturation: float  # factor on the chroma
    gain: tuple[float, float]  # range of the exposure
    tint: tuple[float, float, float]  # colour of the light, by channel
    contrast: float
    haze: tuple[float, float]  # range of the share of haze at the horizon
    blur: float  # radius in pixels
    noise: float  # deviation of the sensor noise
    counts: dict[str, float]  # mean numbers of objects
    open_side: float  # probability of a side with terrain, fence and trees instead of buildings
    building_height: tuple[float, float]
    horizon: tuple[float, float]


SOURCE = Style(
    palette={
        "road": ((92, 92, 104), (104, 102, 108)),
        "sidewalk": ((196, 176, 160), (184, 184, 190)),
        "building": ((206, 130, 96), (222, 196, 150), (150, 160, 190), (180, 90, 80)),
        "fence": ((214, 186, 150), (230, 230, 226)),
        "pole": ((60, 62, 70),),
        "traffic light": ((40, 44, 40),),
        "traffic sign": ((30, 90, 220), (230, 40, 40)),
        "vegetation": ((52, 150, 50), (80, 170, 60)),
        "terrain": ((140, 196, 90), (170, 200, 110)),
        "sky": ((104, 170, 245), (130, 190, 250)),
        "person": ((220, 80, 60), (60, 80, 200), (240, 210, 80)),
        "car": ((210, 30, 36), (30, 60, 200), (240, 240, 244), (240, 190, 30)),
        "bus": ((240, 160, 20), (30, 160, 120)),
        "bicycle": ((40, 30, 40), (180, 30, 40)),
    },
    jitter=8.0,
    texture={"": 3.0, "vegetation": 12.0, "terrain": 7.0},
    saturation=1.1,
    gain=(0.95, 1.1),
    tint=(1.0, 1.0, 1.0),
    contrast=1.0,
    haze=(0.0, 0.12),
    blur=0.0,
    noise=1.5,
    counts={"tree": 2.0, "post": 3.0, "person": 2.0, "bicycle": 1.4, "car": 3.0, "bus": 0.6},
    open_side=0.3,
    building_height=(0.5, 0.95),
    horizon=(0.42, 0.5),
)
TARGET = Style(
    palette={
        "road": ((112, 108, 104), (84, 86, 92)),
        "sidewalk": ((160, 158, 150), (206, 200, 188)),
        "building": ((150, 120, 100), (196, 190, 176), (120, 116, 120), (210, 170, 110)),
        "fence": ((150, 140, 130), (120, 96, 70)),
        "pole": ((110, 112, 110),),
        "traffic light": ((44, 48, 46),),
        "traffic sign": ((41, 86, 185), (199, 50, 48)),
        "vegetation": ((70, 110, 44), (110, 130, 60), (50, 100, 70)),
        "terrain": ((160, 150, 90), (120, 150, 70)),
        "sky": ((150, 190, 235), (200, 214, 228)),
        "person": ((60, 60, 72), (150, 70, 60), (90, 110, 80)),
        "car": ((40, 42, 48), (170, 174, 180), (110, 30, 36), (40, 60, 120)),
        "bus": ((190, 60, 40), (220, 190, 60)),
        "bicycle": ((60, 60, 70), (120, 50, 40)),
    },
    jitter=10.0,
    texture={"": 6.0, "vegetation": 26.0, "terrain": 16.0, "road": 8.0, "sidewalk": 11.0, "building": 13.0},
    saturation=0.95,
    gain=(0.85, 1.15),
    tint=(0.98, 1.0, 0.99),
    contrast=0.98,
    haze=(0.02, 0.16),
    blur=0.7,
    noise=6.0,
    counts={"tree": 3.5, "post": 3.5, "person": 3.0, "bicycle": 2.0, "car": 4.5, "bus": 0.5},
    open_side=0.45,
    building_height=(0.35, 0.7),
    horizon=(0.38, 0.46),
)
STYLES = {"source": SOURCE, "target": TARGET}


class Canvas:
    """Colours, train ids and nearness of a scene while it is drawn; later shapes hide earlier ones.

    Nearness is 0 at the vanishing point and 1 at the bottom of the image.
    """

    def __init__(self, rng: np.random.Generator, style: Style, size: tuple[int, int]) -> None:
        self.rng, self.style, self.size = rng, style, size
        self.colour, self.label, self.near = Image.new("RGB", size), Image.new("L", size, IGNORE), Image.new("F", size)
        self.pens = [ImageDraw.Draw(layer) for layer in (self.colour, self.label, self.near)]
        self.vanishing = (size[0] * rng.uniform(0.36, 0.64), size[1] * rng.uniform(*style.horizon))

    def pick(self, name: str) -> Colour:
        """A base colour of the class with some variation."""
        choices = self.style.palette[name]
        base = np.array(choices[self.rng.integers(len(choices))], float)
        shift = self.rng.normal(0, self.style.jitter) + self.rng.normal(0, self.style.jitter / 2, 3)
        red, green, blue = (int(v) for v in (base + shift).clip(0, 255))
        return red, green, blue

    def ground(self, u: float, s: float, height: float = 0.0) -> Point:
        """Image coordinates of a point ``u`` widths right of the axis at nearness ``s``, ``height`` above ground."""
        (width, full), (vx, vy) = self.size, self.vanishing
        return vx + u * s * width, vy + s * (full - vy) - height * s * full

    def outline(self, *corners: tuple[float, ...]) -> list[Point]:
        """``ground`` of several points, each (u, s) or (u, s, height)."""
        return [self.ground(*corner) for corner in corners]

    def fills(self, name: str, colour: Colour, near: float) -> Iterator[tuple[ImageDraw.ImageDraw, Colour | float]]:
        """The pen of each layer with its fill value for a shape."""
        values: list[Colour | float] = [colour, ID[name], near]
        return zip(self.pens, values, strict=True)

    def polygon(self, points: Sequence[Point], name: str, colour: Colour, near: float) -> None:
        for pen, fill in self.fills(name, colour, near):
            pen.polygon(points, fill=fill)

    def ellipse(self, box: tuple[float, float, float, float], name: str, colour: Colour, near: float) -> None:
        for pen, fill in self.fills(name, colour, near):
            pen.ellipse(box, fill=fill)

    def disc(self, u: float, s: float, height: float, radius: float, name: str, colour: Colour) -> None:
        """Disc around the point (u, s, height), ``radius`` in image heights."""
        (x, y), r = self.ground(u, s, height), s * self.size[1] * radius
        self.ellipse((x - r, y - r, x + r, y + r), name, colour, s)

    def detail(self, points: Sequence[Point], colour: Colour) -> None:
        """Draw only colour, no label: windows, lamps, lane markings."""
        self.pens[0].polygon(points, fill=colour)

    def box(self, u: float, s: float, width: float, bottom: float, top: float, name: str, colour: Colour) -> None:
        """Upright rectangle at (u, s), ``width`` wide, from ``bottom`` to ``top`` above ground."""
        self.polygon(self.corners(u, s, width, bottom, top), name, colour, s)

    def corners(self, u: float, s: float, width: float, bottom: float, top: float) -> list[Point]:
        left, right = u - width / 2, u + width / 2
        return self.outline((left, s, bottom), (right, s, bottom), (right, s, top), (left, s, top))


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(255, c * factor)) for c in colour)
    return red, green, blue


def _ground(c: Canvas) -> None:
    (width, height), horizon = c.size, c.vanishing[1]
    c.polygon([(0, 0), (width, 0), (width, horizon + 2), (0, horizon + 2)], "sky", c.pick("sky"), 0.0)
    c.polygon([(0, horizon), (width, horizon), (width, height), (0, height)], "terrain", c.pick("terrain"), 0.5)
    reach = 3.0
    for name, half in (("sidewalk", ROAD + WALK), ("road", ROAD)):
        colour = c.pick(name)
        edges = np.linspace(0.02, reach, 24)
        for near, far in zip(edges[1:][::-1], edges[:-1][::-1], strict=True):
            piece = c.outline((-half, far), (half, far), (half, near), (-half, near))
            c.polygon(piece, name, colour, min(near, 1.0))
    for s in np.geomspace(0.08, 1.2, 7):
        marking = c.outline((-0.012, s), (0.012, s), (0.012, s * 1.22), (-0.012, s * 1.22))
        c.detail(marking, (226, 226, 220))


def _facades(c: Canvas, side: int) -> None:
    """A row of buildings beside the sidewalk, the farthest first."""
    u, s = side * (ROAD + WALK + c.rng.uniform(0.0, 0.08)), 0.05
    while s < 2.5:
        nearer = s * c.rng.uniform(1.4, 2.0)
        top, colour = c.rng.uniform(*c.style.building_height) * 1.6, c.pick("building")
        facade = c.outline((u, s), (u, nearer), (u, nearer, top), (u, s, top))
        c.polygon(facade, "building", colour, min(s, 1.0))
        outer = u + side * 1.5
        gable = c.outline((u, s), (outer, s), (outer, s, top), (u, s, top))
        c.polygon(gable, "building", _shade(colour, 0.8), min(s, 1.0))
        glass = _shade(colour, c.rng.uniform(0.45, 0.7))
        for floor in np.arange(0.15, top - 0.08, 0.2):
            for a in np.linspace(0.1, 0.78, 4):
                near, far = s + (nearer - s) * (a + 0.13), s + (nearer - s) * a
                c.detail(
                    c.outline((u, far, floor), (u, near, floor), (u, near, floor + 0.1), (u, far, floor + 0.1)), glass
                )
        s = nearer


def _garden(c: Canvas, side: int) -> None:
    """A side without buildings: a hedge in the distance and a fence along the sidewalk."""
    u = side * (ROAD + WALK + 0.06)
    edge = c.size[0] if side > 0 else 0.0
    y = c.vanishing[1] + 2
    colour = c.pick("vegetation")
    for x in np.linspace(c.ground(u, 0.1)[0], edge, 9):
        r = c.size[1] * c.rng.uniform(0.05, 0.13)
        bush = (x - 1.6 * r, y - r, x + 1.6 * r, y + 0.4 * r)
        c.ellipse(bush, "vegetation", _shade(colour, c.rng.uniform(0.85, 1.15)), 0.1)
    if c.rng.random() < 0.75:
        colour, edges = c.pick("fence"), np.geomspace(0.15, 2.2, 12)
        for far, near in zip(edges[:-1], edges[1:], strict=True):
            panel = c.outline((u, far), (u, near), (u, near, 0.16), (u, far, 0.16))
            c.polygon(panel, "fence", colour, min(near, 1.0))
            stake = c.outline((u, far), (u, far * 1.05), (u, far * 1.05, 0.16), (u, far, 0.16))
            c.detail(stake, _shade(colour, 0.7))


def _tree(c: Canvas, u: float, s: float) -> None:
    c.box(u, s, 0.03, 0.0, 0.35, "vegetation", (88, 66, 46))
    colour = c.pick("vegetation")
    for _ in range(7):
        where, radius = (u + c.rng.normal(0, 0.06), s, c.rng.uniform(0.32, 0.62)), c.rng.uniform(0.1, 0.18)
        c.disc(*where, radius, "vegetation", _shade(colour, c.rng.uniform(0.8, 1.2)))


def _post(c: Canvas, u: float, s: float) -> None:
    """A pole with a traffic light or a sign on it, or a lamp post."""
    kind = c.rng.choice(["light", "sign", "lamp"], p=[0.4, 0.4, 0.2])
    top = 0.75 if kind == "lamp" else 0.48
    c.box(u, s, 0.034, 0.0, top, "pole", c.pick("pole"))
    if kind == "light":
        c.box(u, s, 0.08, 0.33, 0.6, "traffic light", c.pick("traffic light"))
        lamp = [(235, 50, 40), (240, 190, 40), (60, 220, 90)][c.rng.integers(3)]
        c.detail(c.corners(u, s, 0.045, 0.43, 0.52), lamp)
    elif kind == "sign":
        colour = c.pick("traffic sign")
        c.box(u, s, 0.12, 0.38, 0.6, "traffic sign", colour)
        c.detail(c.corners(u, s, 0.06, 0.46, 0.52), (236, 236, 236))


def _vehicle(name: str, c: Canvas, u: float, s: float) -> None:
    width, height = (0.2, 0.2) if name == "car" else (0.26, 0.42)
    colour = c.pick(name)
    c.box(u, s, width, 0.02, height * 0.6, name, colour)
    c.box(u, s, width * (0.78 if name == "car" else 1.0), height * 0.6, height, name, _shade(colour, 0.92))
    c.detail(c.corners(u, s, width * 0.66, height * 0.62, height * 0.92), (58, 66, 78))
    for wheel in (-0.36, 0.36):
        c.disc(u + wheel * width, s, 0.02, 0.025, name, (26, 26, 28))
        c.detail(c.corners(u + wheel * width, s, width * 0.16, height * 0.3, height * 0.42), (200, 60, 50))


def _person(c: Canvas, u: float, s: float) -> None:
    clothes = c.pick("person")
    c.box(u, s, 0.08, 0.0, 0.19, "person", _shade(clothes, 0.55))
    c.box(u, s, 0.1, 0.19, 0.36, "person", clothes)
    c.disc(u, s, 0.4, 0.045, "person", (196, 156, 130))


def _bicycle(c: Canvas, u: float, s: float) -> None:
    colour = c.pick("bicycle")
    frame = c.outline((u - 0.09, s, 0.09), (u + 0.09, s, 0.09), (u + 0.05, s, 0.24), (u - 0.06, s, 0.22))
    c.polygon(frame, "bicycle", colour, s)
    for offset in (-0.08, 0.08):
        c.disc(u + offset, s, 0.09, 0.09, "bicycle", _shade(colour, 0.6))


def _things(c: Canvas) -> None:
    """Draw all objects on the street, from far to near."""
    rng, counts = c.rng, c.style.counts

    def side() -> int:
        return rng.choice([-1, 1])

    def beside() -> float:
        return side() * (ROAD + rng.uniform(0.05, WALK))

    things = [(rng.uniform(0.3, 1.0), _tree, side() * (ROAD + WALK)) for _ in range(rng.poisson(counts["tree"]))]
    things += [(rng.uniform(0.4, 1.0), _post, side() * (ROAD + 0.03)) for _ in range(rng.poisson(counts["post"]))]
    things += [(rng.uniform(0.25, 0.95), _person, beside()) for _ in range(rng.poisson(counts["person"]))]
    things += [(rng.uniform(0.35, 0.95), _bicycle, beside()) for _ in range(rng.poisson(counts["bicycle"]))]
    vehicles = [(partial(_vehicle, name), rng.poisson(counts[name])) for name in ("car", "bus")]
    for vehicle, count in vehicles:
        things += [(rng.uniform(0.18, 0.8), vehicle, side() * rng.uniform(0.12, ROAD - 0.08)) for _ in range(count)]
    for s, draw, u in sorted(things, key=lambda thing: thing[0]):
        draw(c, u, s)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """(H, W) noise of standard deviation about 1 that varies over ``cell`` pixels."""
    small = rng.standard_normal((size[1] // cell + 2, size[0] // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def _photograph(c: Canvas) -> np.ndarray:
    """The image of the domain's camera, with texture, light, haze, blur and noise: uint8 (H, W, 3)."""
    rng, style = c.rng, c.style
    labels, near = np.asarray(c.label), np.asarray(c.near)[..., None]
    strength = np.array([style.texture.get(name, style.texture[""]) for name in CITYSCAPES.names], np.float32)
    texture = 0.6 * rng.standard_normal(labels.shape, np.float32) + 0.8 * _smooth_noise(rng, c.size, 3)
    pixels = np.asarray(c.colour, np.float32) + (strength[labels] * texture)[..., None]
    grey = pixels.mean(2, keepdims=True)
    pixels = grey + style.saturation * (pixels - grey)
    light = rng.uniform(*style.gain) * (1 + 0.1 * _smooth_noise(rng, c.size, max(c.size) // 2))[..., None]
    pixels = (pixels * light * np.array(style.tint, np.float32) - 128) * style.contrast + 128
    haze = rng.uniform(*style.haze) * (1 - near).clip(0, 1) ** 2 * (labels != ID["sky"])[..., None]
    pixels = pixels * (1 - haze) + 205 * haze
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if style.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(style.blur))
    noisy = np.asarray(picture, np.float32) + rng.normal(0, style.noise, (*labels.shape, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def render_scene(rng: np.random.Generator, domain: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A scene of "source" or "target", ``size`` (W, H).

    Returns:
        image uint8 (H, W, 3) and train ids uint8 (H, W).
    """
    canvas = Canvas(rng, STYLES[domain], size)
    _ground(canvas)
    for side in (-1, 1):
        (_garden if rng.random() < canvas.style.open_side else _facades)(canvas, side)
    _things(canvas)
    return _photograph(canvas), np.asarray(canvas.label)
