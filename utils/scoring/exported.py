"""A trained network for other programs: one file that needs only torch (.pt2) or an ONNX runtime (.onnx).

Its input are decoded pictures, uint8 RGB (N, H, W, 3). Its output is the class of every pixel, uint8 (N, H, W), or
logits, float32 (N, C, H, W). It includes normalisation and upsampling to the picture's size.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.files import write_whole
from dataset.labels import ClassTable
from dataset.messages import UserError
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, Size, normalise
from models.segmentor import Segmentor
from utils.metrics import class_map
from utils.run_folder.checkpoint import class_entry

Network = Callable[[Tensor], Tensor]
CLASSES = "classes.json"  # within the file
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SMALLEST = 32  # pixels per side; the encoders reduce this to one position
SHAPES = ((1, 96, 160), (2, 65, 129), (1, 192, 96))  # (N, H, W) of the random pictures for the comparison
NOISE = 0.05  # standard deviation, for pictures from 0 to 1
SHOWN = 300  # characters of torch's error message
AUXILIARY = ("cbr_deepsup", "dropout_deepsup", "conv_last_deepsup")  # modules that only training uses
CLASS_TOLERANCE, LOGIT_TOLERANCE = 1e-3, 1e-3  # share of the pixels; of the largest logit


class ExportError(UserError, RuntimeError):
    """A network that cannot be exported as asked; the message gives the remedy."""


class ExportedNetwork(nn.Module):
    """uint8 RGB (N, H, W, 3) -> classes uint8 (N, H, W), or with ``logits`` float32 (N, C, H, W)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Segmentor, logits: bool) -> None:
        super().__init__()
        self.model, self.logits = _exportable(model), logits
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        images = (pictures.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.deviation
        logits = self.model(images, aux=False)["logits"]
        return logits if self.logits else logits.argmax(1).to(torch.uint8)


class PoolBySize(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as a product with one matrix per axis: the exported graph then accepts any size."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._shares(size, x) for size in x.shape[-2:])
        return rows @ x @ columns.T

    def _shares(self, size: int, x: Tensor) -> Tensor:
        """(cells, size): the weight of each position in the average of each cell."""
        cell = torch.arange(self.cells, device=x.device)[:, None]
        place = torch.arange(size, device=x.device)[None]
        first, end = cell * size // self.cells, ((cell + 1) * size + self.cells - 1) // self.cells
        inside = ((place >= first) & (place < end)).to(x.dtype)
        return inside / inside.sum(1, keepdim=True)


def _exportable(model: Segmentor) -> Segmentor:
    """A copy of ``model`` without the auxiliary head, with pooling that accepts any size."""
    model = deepcopy(model)
    for name in AUXILIARY:
        if hasattr(model.decoder, name):
            delattr(model.decoder, name)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                setattr(parent, name, PoolBySize(child.output_size))
    return model


def export_network(model: Segmentor, table: ClassTable, path: Path, *, logits: bool, size: Size | None) -> str:
    """Write ``model`` to a .pt2 or .onnx file, run the file and compare it with ``model``.

    Args:
        model: on the CPU, in eval mode.
        logits: give logits instead of classes.
        size: (W, H) of all pictures; None: any size.

    Returns:
        text: path, input, output, and the largest difference on random pictures.

    Raises:
        ExportError: the suffix is wrong, a package is missing, torch cannot export the network for this ``size``, or
            the results of the file differ from those of ``model``.
    """
    if path.suffix not in FORMATS:
        raise ExportError(f"cannot export to {path}: its name must end in {', '.join(FORMATS)}")
    write, read = FORMATS[path.suffix]
    if path.suffix == ".onnx" and (missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]):
        raise ExportError(f"packages for ONNX are missing: pip install {' '.join(missing)}")
    program = _traced(ExportedNetwork(model, logits).eval(), size)
    shapes = [(count, size[1], size[0]) for count, _, _ in SHAPES] if size else SHAPES
    difference = ""

    def write_and_check(stream: BinaryIO) -> None:
        nonlocal difference
        write(program, table, stream, "logits" if logits else "classes")
        stream.flush()
        difference = largest_difference(read(Path(stream.name)), model, logits, shapes)

    write_whole(path, write_and_check)  # a file with other results never gets this name
    pictures = f"({', '.join(map(str, ('N', *(size[::-1] if size else 'HW'), 3)))})"
    given = "logits float32 (N, C, H, W)" if logits else "classes uint8 (N, H, W)"
    return f"{path}: pictures uint8 RGB {pictures} -> {given}; {difference}"


@torch.no_grad()
def _traced(network: ExportedNetwork, size: Size | None) -> torch.export.ExportedProgram:
    free = torch.export.Dim.AUTO
    width, height = size or (3 * SMALLEST, 2 * SMALLEST)
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    dims = {0: free} if size else {0: free, 1: free, 2: free}
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=(dims,))
    except Exception as error:  # the compiler raises errors of many types
        advice = "" if size else ". It may be possible for one size: try --size W H"
        raise ExportError(f"torch cannot export the network: {' '.join(str(error).split())[:SHOWN]}{advice}") from error
    seen = tuple(program.graph.find_nodes(op="placeholder")[-1].meta["val"].shape[1:3])
    if size is None and any(isinstance(side, int) for side in seen):
        raise ExportError("torch can export this network for one size only: give --size W H")
    return program


def _write_pt2(program: torch.export.ExportedProgram, table: ClassTable, stream: BinaryIO, output: str) -> None:
    torch.export.save(program, stream, extra_files={CLASSES: json.dumps(class_entry(table))})


def read_pt2(path: Path) -> Network:
    with path.open("rb") as stream:  # torch accepts only paths that end in .pt2
        return torch.export.load(stream).module()


def _write_onnx(program: torch.export.ExportedProgram, table: ClassTable, stream: BinaryIO, output: str) -> None:
    import onnx  # optional

    onnx_program = torch.onnx.export(
        program, input_names=["pictures"], output_names=[output], dynamo=True, verbose=False
    )
    assert onnx_program is not None  # true for the dynamo exporter
    proto = onnx_program.model_proto
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in class_entry(table).items()})
    stream.write(proto.SerializeToString())


def read_onnx(path: Path) -> Network:
    import onnxruntime  # optional

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda pictures: torch.from_numpy(session.run(None, {given.name: pictures.numpy()})[0])


FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Network]]] = {
    ".pt2": (_write_pt2, read_pt2),
    ".onnx": (_write_onnx, read_onnx),
}


@torch.no_grad()
def largest_difference(network: Network, model: Segmentor, logits: bool, shapes: Sequence[tuple[int, int, int]]) -> str:
    """The largest difference between ``network`` and ``model`` on random pictures of ``shapes`` (N, H, W), as text.

    Raises:
        ExportError: the difference is larger than rounding explains.
    """
    differing = pixels = 0
    largest = scale = 0.0
    for seed, shape in enumerate(shapes):
        pictures = random_pictures(*shape, seed=seed)
        images = normalise(pictures.permute(0, 3, 1, 2))
        expected, given = model(images, aux=False)["logits"], network(pictures)
        if logits:
            largest = max(largest, float((given - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
        else:
            differing += int((given != class_map(expected)).sum())
            pixels += given.numel()
    text = f"largest difference {largest:.1e} of logits up to {scale:.3g}"
    if not logits:
        text = f"{differing} of {pixels} pixels of random pictures get another class"
    if largest > LOGIT_TOLERANCE * scale or differing > CLASS_TOLERANCE * pixels:
        raise ExportError(f"the exported network is not the original: {text}")
    return text


def random_pictures(count: int, height: int, width: int, seed: int) -> Tensor:
    """uint8 (N, H, W, 3): coarse random colours and some noise, closer to photographs than pure noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    noisy = smooth + NOISE * torch.randn(smooth.shape, generator=generator)
    return noisy.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous()
