"""Load weights strictly: the file has every tensor of the network, or the load fails and lists the keys."""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dataset.files import sha256
from dataset.messages import UserError, few
from models.batchnorm import COUNTER, bn_updates, set_bn_updates
from models.heads import FCN8s
from models.segmentor import Segmentor

TORCHVISION_NAME = re.compile(r"\w+_Weights\.\w+")
# Sums of the official batch norm's running average; it computes running_mean and running_var from them.
RUNNING_SUMS = ("_tmp_running_mean", "_tmp_running_var")
RUNNING_ITER = "_running_iter"
OFFICIAL_MOMENTUM = 0.001
NO_WEIGHTS = (*RUNNING_SUMS, RUNNING_ITER, COUNTER)  # ends of the keys of buffers that our batch norm does not have
COMPILED = "_orig_mod."  # torch.compile adds this to the names of a module
FILE_DEPTH = 2  # levels of nested dictionaries, below the outermost, that are searched for tensors
FORGOTTEN = 100_000  # updates after which the bias correction is 1 in float32
SHOWN = 8  # keys in an error message; one layer has several


class WeightsError(UserError, RuntimeError):
    """A weights file that cannot be read or does not fit the network; the message lists the keys."""


def read_file(path: str | Path) -> dict[str, Any]:
    """Content of a .pth file. No code of the file is executed.

    Raises:
        WeightsError: a file that is missing, damaged (also by its checksums, which torch does not compare), or without
            a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # torch raises errors of any type, and its message advises to run the file's code
        other = re.search(r"GLOBAL ([\w.]+)", str(error))  # a Python object, which only code could load
        reason = f"it contains a {other[1]}" if other else type(error).__name__
        problem = f"{path} is damaged or not a file of tensors ({reason})"
        raise WeightsError(f"{problem}: delete it and download it again, or save only tensors") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} contains a {type(content).__name__}, expected a dictionary of named tensors")
    return content


def _check_sums(path: Path) -> None:
    """Raises WeightsError if a checksum does not match. Files of torch < 1.6 are no zip files and have no checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise WeightsError(f"{path} is damaged, the checksum of {damaged} does not match: get the file again")


def unchecked(path: str | Path) -> str:
    """A warning if the file ``path`` has no checksums (torch < 1.6); "" otherwise."""
    if zipfile.is_zipfile(path) or not Path(path).is_file():  # no file: a name of torchvision, checked by its hash
        return ""
    warning = "has no checksums (format of torch before 1.6), so damage is not detected. Compare its SHA-256"
    return f"{path} {warning}: {sha256(path)}"


def read_torchvision(name: str) -> dict[str, Tensor]:
    """Weights that torchvision publishes as ``name``, e.g. "ResNet101_Weights.IMAGENET1K_V2".

    Their hash is checked, also of a file that torch kept from an earlier download.
    """
    from torchvision.models import get_weight  # here, because the import takes as long as torch's

    try:
        weights = get_weight(name)
    except (ValueError, LookupError) as error:
        raise WeightsError(f"{name} is neither a file nor the name of torchvision weights") from error
    kept = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if kept.is_file():
        if not sha256(kept).startswith(kept.stem.rpartition("-")[2]):  # torch's file names end with the hash
            raise WeightsError(f"{kept} is damaged, its name has another SHA-256: delete it to download it again")
        return read_file(kept)
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"cannot download {weights.url}: {error}. Fetch it yourself and set its path") from error


@contextmanager
def reading(origin: str | Path) -> Iterator[None]:
    """Context in which an error in the content of a file becomes a WeightsError that names the file."""
    try:
        yield
    except (UserError, OSError):
        raise
    except (RuntimeError, ArithmeticError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise WeightsError(f"{origin} has wrong content: {reason}. Get the file again") from error


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], what: str, origin: str) -> str:
    """Copy ``tensors`` into ``module``; names and shapes must be exactly those of the module.

    Returns:
        A line for the log with the number of loaded tensors.
    """
    if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
        raise WeightsError(f"{origin} does not contain named tensors of the {what}")
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
        broken = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
        if broken:
            number = f"{len(broken)} of {len(tensors)} tensors"
            raise WeightsError(f"{origin} contains NaN or infinity in {number}: {few(broken, SHOWN)}. Use another file")
        module.load_state_dict(tensors)
    return f"{what}: {len(tensors)} of {len(own)} tensors loaded from {origin}"


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint of this project. Raises WeightsError for another file."""
    content = read_file(path)
    if "model" not in content or "bn_updates" not in content:
        raise WeightsError(
            f"{path} is not a checkpoint of this project (keys: {few(content, SHOWN)}). "
            "Set separate files of encoder and decoder as model.weights_encoder and model.weights_decoder"
        )
    return content


def load_checkpoint_weights(model: Segmentor, content: Mapping[str, Any], path: str | Path) -> str:
    """Load network and batch-norm update counts from the ``content`` of a checkpoint. Returns the report."""
    report = load_tensors(model, content["model"], "network", str(path))
    with reading(path):
        set_bn_updates(model, content["bn_updates"])
    return "\n".join(filter(None, (report, unchecked(path))))


def load_encoder_decoder(
    model: Segmentor, weights_encoder: str | None = None, weights_decoder: str | None = None
) -> str:
    """Load the encoder, the decoder, or each of them from its own file. Returns the report.

    Args:
        weights_encoder: ImageNet file (without use of its classifier), encoder file of the official or another code
            base, or the name of torchvision weights. VGG-16's classifier initialises fc6 and fc7 of an ``fcn8s`` head,
            as in its paper.
        weights_decoder: decoder file of the official code.

    Raises:
        WeightsError: a file cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    reports = []
    if weights_encoder:
        classifier = model.encoder.classifier
        origin, tensors = _read_part(model.encoder, "encoder", weights_encoder, classifier)
        features = {key: value for key, value in tensors.items() if key not in classifier}
        reports += [_load_part(model.encoder, features, "encoder", origin), unchecked(weights_encoder)]
        if isinstance(model.decoder, FCN8s) and not weights_decoder and len(features) < len(tensors):
            reports.append(_load_fully_connected(model.decoder, tensors, weights_encoder))
    if weights_decoder:
        origin, tensors = _read_part(model.decoder, "decoder", weights_decoder)
        reports += [_load_part(model.decoder, tensors, "decoder", origin), unchecked(weights_decoder)]
    return "\n".join(filter(None, reports))


class _Found(NamedTuple):
    place: str  # keys of the nested dictionaries that contain the tensors
    module: str  # common prefix of the tensors' names, e.g. "backbone."; "" without prefix
    tensors: dict[str, Tensor]  # by their names without the prefix
    alone: bool  # the place contains no other tensors


def _read_part(
    module: nn.Module, what: str, origin: str, left_out: Sequence[str] = ()
) -> tuple[str, dict[str, Tensor]]:
    """Place of the tensors of ``module`` in the file ``origin``, and the tensors.

    A file of another code base may have them in an entry (``{"state_dict": ...}``) and with a prefix
    (``module.backbone.``). If no tensors have exactly the right names, the most similar ones are returned.

    Args:
        left_out: additional keys that such a file may have.
    """
    by_name = TORCHVISION_NAME.fullmatch(origin) and not Path(origin).exists()
    content = read_torchvision(origin) if by_name else read_file(origin)
    if "model" in content and "bn_updates" in content:
        raise WeightsError(f"{origin} is a checkpoint of a whole network: set it as model.weights")
    own, found = module.state_dict().keys(), list(_find(content))
    names = [{key for key in one.tensors if not key.endswith(NO_WEIGHTS)}.difference(left_out) for one in found]
    fitting = [one for one, its in zip(found, names, strict=True) if its == own]
    alone = [one for one in fitting if one.alone]
    if len(alone) > 1:
        raise WeightsError(
            f"{origin} contains several networks, {few(one.place for one in alone)}: save one of them in its own file"
        )
    if not alone and (fitting or not found):
        parts = f"other modules beside {few(one.module for one in fitting)}" if found else few(content, SHOWN)
        raise WeightsError(
            f"{origin} is not a file of only the {what}, it contains {parts}: save only the tensors of the {what}"
        )
    whole = alone or [one for one in found if one.alone]
    best = max(whole, key=lambda one: (len(one.tensors.keys() & own), len(one.tensors)))
    return f"{origin}, {best.place}" if best.place else origin, best.tensors


def _find(content: Mapping[Any, Any], at: tuple[str, ...] = ()) -> Iterator[_Found]:
    """The tensors of every module in all dictionaries of a file."""
    if any(isinstance(value, Tensor) for value in content.values()):
        entry = {str(key).replace(COMPILED, ""): value for key, value in content.items()}
        for prefix in {key[: dot.end()] for key in entry for dot in re.finditer(r"^|\.", key)}:
            tensors = {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}
            yield _Found(".".join(at), prefix, tensors, len(tensors) == len(entry))
    for key, value in content.items():
        if isinstance(value, dict) and len(at) < FILE_DEPTH:
            yield from _find(value, (*at, str(key)))


def _load_part(module: nn.Module, tensors: dict[str, Tensor], what: str, origin: str) -> str:
    """``load_tensors`` for a file that may have the official batch norm's buffers: they give the update counts."""
    weights = {key: value for key, value in tensors.items() if not key.endswith(NO_WEIGHTS)}
    report = load_tensors(module, weights, what, origin)
    suffix = f".{RUNNING_ITER}"
    with reading(origin):
        counts = {k.removesuffix(suffix): _update_count(float(v)) for k, v in tensors.items() if k.endswith(suffix)}
        if counts:
            set_bn_updates(module, counts)
    return report


def official_part(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of an encoder or decoder as in a file of the released code; ``load_encoder_decoder`` reads them.

    Beside each running average it contains the sums from which the official batch norm continues.
    """
    tensors = dict(module.state_dict())
    for name, updates in bn_updates(module).items():
        total = (1 - (1 - OFFICIAL_MOMENTUM) ** (updates + 1)) / OFFICIAL_MOMENTUM  # see _update_count
        for own, running_sum in zip(("running_mean", "running_var"), RUNNING_SUMS, strict=True):
            tensors[f"{name}.{running_sum}"] = tensors[f"{name}.{own}"] * total
        tensors[f"{name}.{RUNNING_ITER}"] = torch.tensor([total])
    return tensors


def _load_fully_connected(head: FCN8s, tensors: dict[str, Tensor], origin: str) -> str:
    """Load fc6 and fc7 from VGG-16's classifier: its first two linear layers with inputs (channel, row, column)."""
    reports = []
    for what, name in (("fc6", "classifier.0"), ("fc7", "classifier.3")):
        layer = getattr(head, what)
        found = {kind: tensors[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in tensors}
        if "weight" in found and found["weight"].numel() == layer.weight.numel():
            found["weight"] = found["weight"].reshape(layer.weight.shape)
        reports.append(load_tensors(layer, found, what, f"{name} of {origin}"))
    return "\n".join(reports)


def _update_count(running_iter: float) -> int:
    """Number of updates t from the official counter ``sum_{k<=t} (1-m)^k = (1 - (1-m)^(t+1)) / m``."""
    if not math.isfinite(running_iter):
        raise ValueError(f"the batch norm's {RUNNING_ITER} is {running_iter}")
    left = 1 - running_iter * OFFICIAL_MOMENTUM
    return round(math.log(left) / math.log(1 - OFFICIAL_MOMENTUM)) - 1 if left > 0 else FORGOTTEN
