"""A trained run in Python: ``predictor = load("runs/own_pycda")``, then ``predictor(image)``.

A checkpoint has all that is needed: the network's names, its weights, classes, input size and upsampling.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.labels import ClassTable
from dataset.messages import ChoiceError
from dataset.reading import read_image
from dataset.transforms import normalise, resized_window
from models.segmentor import Segmentor
from models.weights import WeightsError, load_tensors, read_file
from utils.builders.network import build_network, load_network
from utils.config.read import parse_overrides, set_key
from utils.config.schema import Config, ConfigError
from utils.run_folder.checkpoint import resolve_weights, saved_keys
from utils.run_folder.classes import class_table_of
from utils.scoring.evaluation import views_of
from utils.scoring.pictures import colour_map
from utils.scoring.upsampling import View, classes_at, upsample

Picture = Image.Image | np.ndarray | str | Path
Size = tuple[int, int]  # (W, H)
# Of a checkpoint's configuration, what the prediction depends on; other keys may have come and gone since.
RELEVANT = ("model.", "test.", "tta.", "source.dataset", "source.id_table", "target.dataset", "target.id_table")
ROUNDING = 1  # pixels by which two sizes of the same aspect may differ


class Predictor:
    """A network in eval mode that gives what ``evaluate.py`` scores: ``predictor(image)``.

    Args:
        config: its ``test.input_size``, ``test.upsampling`` and ``tta`` say how a picture is seen.

    Attributes:
        names: of the classes, in the order of their numbers.
        palette: uint8 (C, 3), RGB.
    """

    def __init__(self, model: Segmentor, table: ClassTable, config: Config, device: torch.device) -> None:
        self.model, self.table, self.config, self.device = model.eval(), table, config, device
        self.names, self.palette = table.names, table.palette

    def __call__(self, image: Picture) -> np.ndarray:
        """Class of every pixel, uint8 (H, W), at the picture's own size.

        Args:
            image: RGB: a Pillow picture, a uint8 array (H, W, 3), or the path of a file, which is turned upright by
                its EXIF orientation.

        Raises:
            ChoiceError: an array of another type or shape.
            DataError: a file that cannot be read.
        """
        picture = as_picture(image)
        return self.classes(self.views(network_input(picture, self.input_size)), picture.size)

    def probabilities(self, image: Picture) -> np.ndarray:
        """Probability of every class, float32 (C, H, W), at the picture's own size; takes what ``__call__`` takes."""
        picture = as_picture(image)
        views = self.views(network_input(picture, self.input_size))
        return self.mean_probability(views, picture.size).cpu().numpy()

    def colour(self, classes: np.ndarray) -> Image.Image:
        """RGB picture of a class map (H, W), in the colours of the palette."""
        return colour_map(classes, self.table)

    @property
    def input_size(self) -> Size | None:
        """(W, H) into which pictures are fitted for the network; None: their own size."""
        return self.config.test.input_size

    @torch.inference_mode()
    def views(self, image: Tensor) -> list[View]:
        """What the network says of an input, once a scale and mirror image of ``tta``."""
        return views_of(self.model, image.to(self.device), self.config.tta)

    @torch.inference_mode()
    def classes(self, views: Sequence[View], size: Size) -> np.ndarray:
        """Class map uint8 (H, W) at ``size`` (W, H)."""
        return classes_at(views, size[::-1], self.config.test.upsampling)[0].cpu().numpy()

    @torch.inference_mode()
    def mean_probability(self, views: Sequence[View], size: Size) -> Tensor:
        """Probabilities (C, H, W) at ``size`` (W, H), the mean over the views."""
        mode = self.config.test.upsampling
        total = torch.zeros((), device=self.device)
        for view in views:
            total = total + upsample(view.logits, view.input_size, size[::-1], mode).softmax(1)
        return (total / len(views))[0]


def load(run: str | Path, device: str | torch.device | None = None, overrides: Sequence[str] = ()) -> Predictor:
    """Predictor of a trained run, from its checkpoint alone.

    Args:
        run: run folder (its best.pth, else last.pth) or checkpoint file.
        device: None: the GPU if there is one.
        overrides: ``key=value`` of keys of ``test`` and ``tta``, such as ``tta.flip=true``.

    Raises:
        FileNotFoundError: nothing was trained there.
        WeightsError: a damaged file, or one that is no checkpoint of this project.
        ConfigError: a key that is unknown or of another group, or a wrong value, in ``overrides``.
    """
    path = resolve_weights(str(run))
    content = read_file(path)
    if "model" not in content or "config" not in content:
        raise WeightsError(f"{path} is no checkpoint of this project, which would hold a network and its configuration")
    config = config_of(content, str(path))
    for name, value in parse_overrides(overrides).items():
        if name.partition(".")[0] not in ("test", "tta"):
            raise ConfigError(f"load: only keys of test and tta can be changed, not '{name}'")
        set_key(config, name, value, "load")
    table = class_table_of(content, config, str(path))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(devices=[]):  # building seeds the generator, which is the caller's
        model = build_network(config, chosen)
    load_tensors(model, content["model"], "network", str(path))
    return Predictor(model, table, config, chosen)


def load_for(config: Config, files: Sequence[str], device: torch.device) -> Predictor:
    """Predictor that sees pictures as ``config`` says (``test``, ``tta``), whatever the checkpoint was trained with.

    Args:
        files: one checkpoint of this project, whose own network and classes are taken; or an encoder and a decoder
            file of the released code, with the network and classes of ``config``.
    """
    if len(files) == 2:
        model, _ = load_network(config, files, device)
        return Predictor(model, config.class_table, config, device)
    predictor = load(files[0], device)
    predictor.config.test, predictor.config.tta = config.test, config.tta
    return predictor


def config_of(content: Mapping[str, Any], origin: str) -> Config:
    """The part of a checkpoint's configuration that matters after training."""
    config = Config()
    for name, value in saved_keys(content, origin).items():
        if name == "num_classes" or name.startswith(RELEVANT):
            set_key(config, name, value, origin)
    return config


def as_picture(image: Picture) -> Image.Image:
    """RGB picture of what a predictor takes; only files are turned upright."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ChoiceError(f"an array must be uint8 (H, W, 3) in the order RGB, got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def network_input(picture: Image.Image, input_size: Size | None) -> Tensor:
    """float32 (1, 3, h, w): the picture at the size in which the network sees it, normalised."""
    size = seen_size(picture.size, input_size)
    return normalise(resized_window(picture, size, (0, 0, *size)))[None]


def seen_size(size: Size, input_size: Size | None) -> Size:
    """(W, H) in which the network sees a picture of ``size`` (W, H): as large as fits into ``input_size``.

    The aspect is kept; a picture of the aspect of ``input_size`` gets exactly that, as in ``evaluate.py``.
    """
    if input_size is None:
        return size
    scale = min(limit / own for limit, own in zip(input_size, size, strict=True))
    width, height = (max(1, round(own * scale)) for own in size)
    if abs(width - input_size[0]) <= ROUNDING and abs(height - input_size[1]) <= ROUNDING:
        return input_size
    return width, height
