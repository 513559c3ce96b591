"""How the two domains of the toy city look: a clean renderer, and a camera in another town."""

from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """How a domain looks, and what it is made of."""

    palette: dict[str, tuple[Colour, ...]]  # base colours by class
    jitter: float  # deviation of a surface's colour, 0..255
    texture: dict[str, float]  # deviation of fine texture by class, 0..255
    default_texture: float
    saturation: float  # factor on the chroma
    gain: tuple[float, float]  # range of the exposure
    tint: tuple[float, float, float]  # of the light, by channel
    contrast: float
    haze: tuple[float, float]  # range of the share of haze at the horizon
    blur: float  # radius in pixels
    noise: float  # deviation of the sensor noise
    cars: float  # mean counts
    buses: float
    persons: float
    bicycles: float
    trees: float
    posts: float
    open_side: float  # chance of a side with terrain, fence and trees instead of buildings
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
    texture={"vegetation": 12.0, "terrain": 7.0},
    default_texture=3.0,
    saturation=1.1,
    gain=(0.95, 1.1),
    tint=(1.0, 1.0, 1.0),
    contrast=1.0,
    haze=(0.0, 0.12),
    blur=0.0,
    noise=1.5,
    cars=3.0,
    buses=0.6,
    persons=2.0,
    bicycles=1.4,
    trees=2.0,
    posts=3.0,
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
    texture={"vegetation": 26.0, "terrain": 16.0, "road": 8.0, "sidewalk": 11.0, "building": 13.0},
    default_texture=6.0,
    saturation=0.95,
    gain=(0.85, 1.15),
    tint=(0.98, 1.0, 0.99),
    contrast=0.98,
    haze=(0.02, 0.16),
    blur=0.7,
    noise=6.0,
    cars=4.5,
    buses=0.5,
    persons=3.0,
    bicycles=2.0,
    trees=3.5,
    posts=3.5,
    open_side=0.45,
    building_height=(0.35, 0.7),
    horizon=(0.38, 0.46),
)
STYLES = {"source": SOURCE, "target": TARGET}
