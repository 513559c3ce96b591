"""The classes that a trained network predicts: ``predictor = load("runs/own_pycda")``, then ``predictor(image)``.

A checkpoint is enough: it has the names of encoder and decoder, weights, classes, input size and upsampling.

With ``test.window`` the network predicts each window like an image of its own. Windows overlap by half or more, and
their probabilities are averaged. The edge of one window, where the network sees the least context, then lies in the
middle of another.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dataset.labels import ClassTable
from dataset.messages import ChoiceError, Report, UserError
from dataset.program import free_memory, out_of_memory
from dataset.reading import as_rgb, read_image
from dataset.transforms import normalise, planes, resized_window
from models.segmentor import Segmentor
from models.weights import WeightsError, load_checkpoint_weights, read_checkpoint, unchecked
from utils import distributed
from utils.builders.network import build_network, load_network
from utils.config.read import parse_overrides, set_key
from utils.config.schema import AtTestTime, Config, ConfigError, Evaluation, Size
from utils.metrics import class_map
from utils.run_folder.checkpoint import class_table_of, resolve_weights, saved_keys
from utils.scoring.pictures import colour_map
from utils.scoring.upsampling import LARGEST, Shape, View, strips_of

Picture = Image.Image | np.ndarray | str | Path
# Keys of a checkpoint's configuration that the prediction depends on. Other keys may belong to another version.
RELEVANT = ("model.", "test.", "tta.", "source.dataset", "source.id_table", "target.dataset", "target.id_table")
ROUNDING = 1  # pixels by which two sizes of the same aspect may differ
A_PIXEL = 200  # bytes that a small network needs on a CPU for each pixel of its input
TOO_LARGE = "set test.window=[1024, 1024] or smaller to predict it in parts, or a smaller test.input_size"


class PictureTooLarge(UserError):
    """A picture does not fit into the memory of the CPU or the GPU."""


@contextmanager
def within_memory(name: object) -> Iterator[None]:
    """Turn an out-of-memory error into PictureTooLarge, with the picture's ``name`` and the remedy."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise PictureTooLarge(f"{name} is too large for the memory: {TOO_LARGE}") from error


class Predictor:
    """A network with its classes and input settings.

    ``predictor(image)`` gives the classes that ``predict`` writes and ``evaluate.py`` scores.

    Args:
        test: ``input_size``, ``window`` and ``upsampling`` are used.
        tta: scales and mirror images to average over; None: only the image.

    Attributes:
        names: of the classes, in the order of their numbers.
        palette: uint8 (C, 3), RGB.
    """

    def __init__(
        self, model: Segmentor, table: ClassTable, device: torch.device, test: Evaluation, tta: AtTestTime | None = None
    ) -> None:
        self.model, self.table, self.device = model, table, device
        self.test, self.tta = test, tta or AtTestTime()
        self.names, self.palette = table.names, table.palette

    def __call__(self, image: Picture) -> np.ndarray:
        """Class of every pixel, uint8 (H, W), at the picture's own size.

        Args:
            image: path or Pillow picture, of any kind that ``dataset.reading`` reads; its EXIF orientation is applied.
                Or a uint8 array (H, W, 3), RGB.

        Raises:
            ChoiceError: an array of another type or shape.
            DataError: the picture cannot be read.
            PictureTooLarge: the picture does not fit into the memory.
        """
        with within_memory(_name(image)):
            picture = as_picture(image)
            return self.segment(network_input(picture, self.test), picture.size[::-1], _name(image))[0][0].numpy()

    @torch.inference_mode()
    def probabilities(self, image: Picture) -> np.ndarray:
        """Probability of every class, float32 (C, H, W), at the picture's own size; arguments as in ``__call__``."""
        with within_memory(_name(image)):
            picture = as_picture(image)
            strips, averaged = self._strips(network_input(picture, self.test), picture.size[::-1])
            parts = [(strip if averaged else strip.softmax(2)).transpose(0, 2).cpu() for strip in strips]
            return torch.cat(parts, dim=2)[:, 0].numpy()

    def colour(self, classes: np.ndarray) -> Image.Image:
        """RGB picture of a class map (H, W), in the colours of the palette."""
        return colour_map(classes, self.table)

    @torch.inference_mode()
    def views(self, images: Tensor) -> list[View]:
        """The network's output for images (N, 3, h, w), once for each scale and mirror image of ``tta``.

        The network runs in eval mode; its mode is restored.

        Args:
            images: normalised, or uint8.

        Raises:
            ChoiceError: a scale leaves no pixel of the input.
        """
        images = normalise(images) if images.dtype == torch.uint8 else images
        images, views, training = images.to(self.device, non_blocking=True), [], self.model.training
        self.model.eval()
        for scale in self.tta.scales:
            if scale * min(images.shape[-2:]) < 1:
                raise ChoiceError(
                    f"tta.scales: {scale:g} leaves no pixel of an input of {images.shape[3]}x{images.shape[2]}"
                )
            seen = images
            if scale != 1:
                seen = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
            input_size = (seen.shape[-2], seen.shape[-1])
            views.append(View(self.model.stride_logits(seen), input_size))
            if self.tta.flip:
                views.append(View(self.model.stride_logits(seen.flip(3)).flip(3), input_size))
        self.model.train(training)
        return views

    @torch.inference_mode()
    def segment(
        self, images: Tensor, shape: Shape, name: object = "a picture", *, confidence: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Class maps of images, uint8 (N, H, W) on the CPU.

        Args:
            images: (N, 3, h, w), normalised or uint8, see ``views``.
            shape: (H, W) of the class maps.
            name: of the images, for errors.
            confidence: also return the highest probability of every pixel, uint8 (N, H, W) in 255ths.

        Raises:
            PictureTooLarge: the images do not fit into the memory.
        """
        classes, highest = [], []
        with within_memory(name):
            strips, averaged = self._strips(images, shape)
            for strip in strips:
                classes.append(class_map(strip.permute(1, 2, 0, 3)))
                if confidence:
                    share = (strip if averaged else strip.softmax(2)).amax(2).transpose(0, 1)
                    highest.append(share.mul(255).round().byte())
            return torch.cat(classes, dim=1).cpu(), torch.cat(highest, dim=1).cpu() if confidence else None

    def _strips(self, images: Tensor, shape: Shape) -> tuple[Iterator[Tensor], bool]:
        """Strips (rows, N, C, W) from the top, and True for mean probabilities, False for logits.

        A strip may overwrite the one before.
        """
        (h, w), (width, height) = images.shape[-2:], self.test.window or images.shape[:-3:-1]
        if h > height or w > width:
            return self._strips_of_windows(images, shape, height, width), True
        if self.device.type == "cpu" and images[:, 0].numel() * A_PIXEL > free_memory():
            raise MemoryError  # otherwise the system would kill the process
        views = self.views(images)
        return strips_of(views, shape, self.test.upsampling), len(views) > 1

    def _strips_of_windows(self, images: Tensor, shape: Shape, height: int, width: int) -> Iterator[Tensor]:
        """Mean probabilities over the windows (height, width) at each pixel.

        A window is predicted when its first row is needed.
        """
        tall, wide = (_windows(*axis) for axis in zip(images.shape[-2:], (height, width), shape, strict=True))
        edges = {edge for _, there in tall for edge in (there.start, there.stop)}
        cuts = sorted(edges.union(range(0, shape[0], max(1, LARGEST // 4 // shape[1]))))
        begun: list[tuple[int, slice, Iterator[Tensor]]] = []
        for top in cuts[:-1]:
            begun = [window for window in begun if window[0] > top]
            for rows, band in tall:
                if band.start != top:
                    continue
                strips = tuple(b - a for a, b in pairwise(cuts) if band.start <= a and b <= band.stop)
                for columns, there in wide:
                    views, size = self.views(images[..., rows, columns]), (sum(strips), there.stop - there.start)
                    begun.append((band.stop, there, strips_of(views, size, self.test.upsampling, strips)))
            total, count = torch.empty(0), torch.zeros(shape[1], device=self.device)
            for _, there, window in begun:
                part = next(window)
                total = total if total.numel() else part.new_zeros(*part.shape[:3], shape[1])
                total[..., there] += part
                count[there] += 1
            yield total.div_(count)


def to_stderr(text: str) -> None:
    """Print ``text``, unless it is empty, to stderr, on the first process only."""
    if text and distributed.is_main():
        print(text, file=sys.stderr)


def load(run: str | Path, device: str | torch.device | None = None, overrides: Sequence[str] = ()) -> Predictor:
    """Predictor of a trained run, from its checkpoint alone.

    Args:
        run: run folder (its best.pth, otherwise last.pth) or checkpoint file.
        device: None: the GPU if there is one.
        overrides: ``key=value`` of keys of ``test`` and ``tta``, such as ``tta.flip=true``.

    Raises:
        FileNotFoundError: ``run`` has no checkpoint.
        WeightsError: the file is damaged, or no checkpoint of this project.
        ConfigError: ``overrides`` has an unknown key or a wrong value.
    """
    path = resolve_weights(run)
    content = read_checkpoint(path)
    config = config_of(content, str(path))
    for name, value in parse_overrides(overrides).items():
        if name.partition(".")[0] not in ("test", "tta"):
            raise ConfigError(f"load: only keys of test and tta can be changed, not '{name}'")
        set_key(config, name, value, "load")
    table = class_table_of(content, config, str(path))
    if table.num_classes != config.num_classes:
        raise WeightsError(f"{path} names {table.num_classes} classes, its network has {config.num_classes}")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(devices=[]):  # building seeds the generator of the caller
        model = build_network(config, chosen)
    load_checkpoint_weights(model, content, path)
    to_stderr(unchecked(path))
    return Predictor(model.eval(), table, chosen, config.test, config.tta)


def load_configured(
    config: Config, files: Sequence[str | Path], device: torch.device, report: Report = to_stderr
) -> Predictor:
    """Predictor with the network and classes of ``config``.

    Args:
        files: one checkpoint of this project, or an encoder and a decoder file of the released code.
        report: called with a text about the loaded weights.
    """
    model, loaded = load_network(config, files, device)
    report(loaded)
    return Predictor(model.eval(), config.class_table, device, config.test, config.tta)


def load_for(config: Config, files: Sequence[str], device: torch.device) -> Predictor:
    """Predictor with the keys ``test`` and ``tta`` of ``config``, not of the checkpoint.

    Args:
        files: one checkpoint of this project: its own network and classes are used, with the colours and ids of
            ``config`` if the classes are the same. Or an encoder and a decoder file of the released code: the network
            and classes of ``config`` are used.
    """
    if len(files) == 2:
        return load_configured(config, files, device)
    own = load(files[0], device)
    trained, seen = own.test.input_size, config.test.input_size
    if trained != seen:
        to_stderr(f"test.input_size is {seen} here and {trained} in {files[0]} (W, H; None: the size of the picture)")
    return Predictor(own.model, config.table_for(own.table), device, config.test, config.tta)


def config_of(content: Mapping[str, Any], origin: str, relevant: tuple[str, ...] = RELEVANT) -> Config:
    """Configuration with a checkpoint's values of the ``relevant`` keys (prefixes), and defaults for all others."""
    config = Config()
    for name, value in saved_keys(content, origin).items():
        if name == "num_classes" or name.startswith(relevant):
            set_key(config, name, value, origin)
    return config


def as_picture(image: Picture) -> Image.Image:
    """An argument of ``Predictor.__call__`` as an RGB picture."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return as_rgb(image, _name(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ChoiceError(f"an array must be uint8 (H, W, 3) in the order RGB, got {image.dtype} {image.shape}")
    return Image.fromarray(image)


def _name(image: Picture) -> Path:
    """The file of a picture, or "a picture" if the file is not known."""
    return Path(image if isinstance(image, (str, Path)) else getattr(image, "filename", "") or "a picture")


def network_input(picture: Image.Image, test: Evaluation) -> Tensor:
    """The picture at the network's input size, (1, 3, h, w), float32 and normalised.

    With ``test.window`` it is uint8, which needs a quarter of the memory. Its windows are normalised later.
    """
    pixels = planes(resized_window(picture, seen_size(picture.size, test.input_size)))[None]
    return pixels if test.window else normalise(pixels)


def seen_size(size: Size, input_size: Size | None) -> Size:
    """Network input size (W, H) for a picture of ``size`` (W, H): the largest that fits into ``input_size``.

    The aspect is kept. If both aspects are equal, the result is ``input_size``, as in ``evaluate.py``.
    """
    if input_size is None:
        return size
    scale = min(limit / own for limit, own in zip(input_size, size, strict=True))
    width, height = (max(1, round(own * scale)) for own in size)
    if abs(width - input_size[0]) <= ROUNDING and abs(height - input_size[1]) <= ROUNDING:
        return input_size
    return width, height


def _windows(seen: int, window: int, size: int) -> list[tuple[slice, slice]]:
    """Windows along an axis, at equal distances of at most half a window: slices of the input and of ``size``."""
    free = max(0, seen - window)
    count = math.ceil(free / max(1, window // 2)) + 1
    starts = [round(free * number / max(1, count - 1)) for number in range(count)]
    seen_by = [slice(start, min(start + window, seen)) for start in starts]
    places = [slice(round(part.start * size / seen), round(part.stop * size / seen)) for part in seen_by]
    return [(part, place) for part, place in zip(seen_by, places, strict=True) if place.start < place.stop]
