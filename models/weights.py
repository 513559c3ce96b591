"""Load weights strictly: every tensor of the network is filled from the file, or the load fails and lists the keys."""

import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset.messages import UserError, few
from models.batchnorm import COUNTER, bn_updates, set_bn_updates
from models.heads import FCN8s
from models.segmentor import Segmentor

TORCHVISION_NAME = re.compile(r"\w+_Weights\.\w+")
# The official batch norm keeps its running average in these; running_mean and running_var are derived from them.
RUNNING_SUMS = ("_tmp_running_mean", "_tmp_running_var")
RUNNING_ITER = "_running_iter"
OFFICIAL_MOMENTUM = 0.001
FORGOTTEN = 100_000  # updates after which the bias correction is 1 in float32
SHOWN = 8  # keys in an error message, several of which are of one layer


class WeightsError(UserError, RuntimeError):
    """A file whose tensors are not those of the network; the message lists the keys."""


def read_file(path: str | Path) -> dict[str, Any]:
    """Content of a .pth file, without running code from it.

    Raises:
        WeightsError: no such file, one that is damaged (by its checksums too, which torch does not look at), or one
            that holds no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch's unpickler raises whatever a damage leads it to, and advises to run the code
        problem = f"{path} is damaged or no file of tensors ({type(error).__name__})"
        raise WeightsError(f"{problem}: get it anew, or save plain tensors") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected named tensors")
    return content


def _check_sums(path: Path) -> None:
    """Raises ValueError where a tensor is not what its checksum says. Files of torch < 1.6 are no zip and have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} does not match")


def read_torchvision(name: str) -> dict[str, Tensor]:
    """Weights that torchvision publishes as ``name``, e.g. "ResNet101_Weights.IMAGENET1K_V2", checked by their hash."""
    from torchvision.models import get_weight  # here: it takes as long to import as all of torch

    try:
        weights = get_weight(name)
    except (ValueError, LookupError) as error:
        raise WeightsError(f"torchvision has no weights {name}, nor is it a file") from error
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"cannot fetch {weights.url}: {error}. Download it and give the file instead") from error


@contextmanager
def reading(origin: str | Path) -> Iterator[None]:
    """An error in the content of a file becomes a WeightsError that names the file."""
    try:
        yield
    except (UserError, OSError):
        raise
    except (RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise WeightsError(f"{origin}: {reason}. Its content is not what is expected: get the file anew") from error


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], what: str, origin: str) -> str:
    """Copy ``tensors`` into ``module``; the names and shapes must be exactly the module's own.

    Returns:
        A line that says how many tensors matched, for the log.
    """
    if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
        raise WeightsError(f"{origin} does not hold named tensors of the {what}")
    own, found = ({key: _shape(value) for key, value in of.items()} for of in (module.state_dict(), tensors))
    problems = {
        "missing": own.keys() - found.keys(),
        "unexpected": found.keys() - own.keys(),
        "of another shape": [f"{k} {found[k]} instead of {own[k]}" for k in own if found.get(k, own[k]) != own[k]],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(keys)} {kind}: {few(keys, SHOWN)}" for kind, keys in problems.items() if keys)
        raise WeightsError(
            f"{origin} does not fit the {what}: {listed}. Is model.encoder / model.decoder the right one?"
        )
    with reading(origin):
        module.load_state_dict(tensors)
    return f"{what}: {len(tensors)} of {len(own)} tensors loaded from {origin}"


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def load_checkpoint_weights(model: Segmentor, path: str | Path) -> str:
    """Network and batch-norm update counts of one of our checkpoints. Returns the report."""
    content = read_file(path)
    if "model" not in content or "bn_updates" not in content:
        raise WeightsError(
            f"{path} is not a checkpoint of this project (keys: {few(content, SHOWN)}); "
            "official files go into model.weights_encoder and model.weights_decoder"
        )
    report = load_tensors(model, content["model"], "network", str(path))
    with reading(path):
        set_bn_updates(model, content["bn_updates"])
    return report


def load_encoder_decoder(
    model: Segmentor, weights_encoder: str | None = None, weights_decoder: str | None = None
) -> str:
    """Load the encoder and/or the decoder from a file each. Returns the report.

    Args:
        weights_encoder: ImageNet file (its classifier is left out), encoder file of the official code, or the name of
            torchvision weights. The classifier of VGG-16 initialises fc6 and fc7 of an ``fcn8s`` head, as in its paper.
        weights_decoder: decoder file of the official code.

    Raises:
        WeightsError: the file cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    reports = []
    if weights_encoder:
        tensors = _read_part(weights_encoder)
        features = {key: value for key, value in tensors.items() if key not in model.encoder.classifier}
        reports.append(_load_part(model.encoder, features, "encoder", weights_encoder))
        if isinstance(model.decoder, FCN8s) and not weights_decoder and len(features) < len(tensors):
            reports.append(_load_fully_connected(model.decoder, tensors, weights_encoder))
    if weights_decoder:
        reports.append(_load_part(model.decoder, _read_part(weights_decoder), "decoder", weights_decoder))
    return "\n".join(reports)


def _read_part(origin: str) -> dict[str, Tensor]:
    """Tensors of a file or of torchvision, by the names they have in one process."""
    by_name = TORCHVISION_NAME.fullmatch(origin) and not Path(origin).exists()
    content = read_torchvision(origin) if by_name else read_file(origin)
    if "model" in content:
        raise WeightsError(f"{origin} is a checkpoint of a whole network: give it as model.weights")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _load_part(module: nn.Module, tensors: dict[str, Tensor], what: str, origin: str) -> str:
    """``load_tensors`` without the buffers of the official batch norm, which give its update counts."""
    dropped = (*RUNNING_SUMS, RUNNING_ITER, COUNTER)
    report = load_tensors(module, {k: v for k, v in tensors.items() if k.split(".")[-1] not in dropped}, what, origin)
    suffix = f".{RUNNING_ITER}"
    with reading(origin):
        counts = {k.removesuffix(suffix): _update_count(float(v)) for k, v in tensors.items() if k.endswith(suffix)}
        if counts:
            set_bn_updates(module, counts)
    return report


def official_part(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of an encoder or decoder as a file of the released code has them, which ``load_encoder_decoder`` reads.

    Beside each running average there are the sums that the official batch norm goes on with.
    """
    tensors = dict(module.state_dict())
    for name, updates in bn_updates(module).items():
        total = (1 - (1 - OFFICIAL_MOMENTUM) ** (updates + 1)) / OFFICIAL_MOMENTUM  # see _update_count
        for own, running_sum in zip(("running_mean", "running_var"), RUNNING_SUMS, strict=True):
            tensors[f"{name}.{running_sum}"] = tensors[f"{name}.{own}"] * total
        tensors[f"{name}.{RUNNING_ITER}"] = torch.tensor([total])
    return tensors


def _load_fully_connected(head: FCN8s, tensors: dict[str, Tensor], origin: str) -> str:
    """fc6 and fc7 from the first two linear layers of VGG-16's classifier, whose inputs are (channel, row, column)."""
    reports = []
    for what, name in (("fc6", "classifier.0"), ("fc7", "classifier.3")):
        layer = getattr(head, what)
        found = {kind: tensors[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in tensors}
        if "weight" in found and found["weight"].numel() == layer.weight.numel():
            found["weight"] = found["weight"].reshape(layer.weight.shape)
        reports.append(load_tensors(layer, found, what, f"{name} of {origin}"))
    return "\n".join(reports)


def _update_count(running_iter: float) -> int:
    """Updates t from the official counter, which is ``sum_{k<=t} (1-m)^k = (1 - (1-m)^(t+1)) / m``."""
    left = 1 - running_iter * OFFICIAL_MOMENTUM
    return round(math.log(left) / math.log(1 - OFFICIAL_MOMENTUM)) - 1 if left > 0 else FORGOTTEN
