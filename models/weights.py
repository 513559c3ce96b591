"""Load weights strictly: every tensor of the network is filled from the file, or the load fails and lists the keys."""

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.batchnorm import batch_norms, set_bn_updates
from models.segmentor import Segmentor

CLASSIFIER = ("fc.weight", "fc.bias")  # the only tensors of an ImageNet file that an encoder has no place for
# The official batch norm keeps its running average in these; running_mean and running_var are derived from them.
RUNNING_SUMS = ("_tmp_running_mean", "_tmp_running_var")
RUNNING_ITER = "_running_iter"
FORGOTTEN = 100_000  # updates after which the bias correction is 1 in float32
SHOWN = 8  # keys in an error message


class WeightsError(RuntimeError):
    """A file whose tensors are not those of the network; the message lists the keys."""


def read_file(path: str | Path) -> dict[str, Any]:
    """Content of a .pth file, without running code from it."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is damaged or no weights file: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected named tensors")
    return content


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def fill(module: nn.Module, tensors: dict[str, Tensor], what: str, origin: str) -> str:
    """Copy ``tensors`` into ``module``; the names and shapes must be exactly the module's own.

    Returns:
        A line that says how many tensors matched, for the log.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & tensors.keys())
        if tensors[key].shape != own[key].shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    if missing or unexpected or shapes:
        found = "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in problems if keys)
        raise WeightsError(f"{origin} does not fit the {what}: {found}. Is model.encoder / model.decoder the right one?")
    module.load_state_dict(tensors)
    return f"{what}: {len(tensors)} of {len(own)} tensors loaded from {origin}"


def load_checkpoint_weights(model: Segmentor, path: str | Path) -> str:
    """Network and batch-norm update counts of one of our checkpoints. Returns the report."""
    content = read_file(path)
    if "model" not in content or "bn_updates" not in content:
        raise WeightsError(
            f"{path} is not a checkpoint of this project (keys: {_listed(sorted(map(str, content)))}); "
            "official files go into model.weights_encoder and model.weights_decoder"
        )
    report = fill(model, content["model"], "network", str(path))
    set_bn_updates(model, content["bn_updates"])
    return report


def load_encoder_decoder(model: Segmentor, weights_encoder: str | None, weights_decoder: str | None) -> str:
    """An encoder file and/or a decoder file: ImageNet weights or a pair of the official code. Returns the report."""
    parts = (("encoder", model.encoder, weights_encoder), ("decoder", model.decoder, weights_decoder))
    return "\n".join(_load_part(name, module, path) for name, module, path in parts if path)


def _load_part(name: str, module: nn.Module, path: str) -> str:
    tensors = {key.removeprefix("module."): value for key, value in read_file(path).items()}
    if name == "encoder":
        tensors = {key: value for key, value in tensors.items() if key not in CLASSIFIER}
    momenta = {n: m.base_momentum for n, m in batch_norms(module)}
    updates = {
        key.removesuffix("." + RUNNING_ITER): value for key, value in tensors.items() if key.endswith("." + RUNNING_ITER)
    }
    dropped = (*RUNNING_SUMS, RUNNING_ITER, "num_batches_tracked")
    report = fill(module, {k: v for k, v in tensors.items() if k.split(".")[-1] not in dropped}, name, path)
    if updates:
        set_bn_updates(module, {n: _update_count(updates[n].item(), m) for n, m in momenta.items()})
    return report


def _update_count(running_iter: float, momentum: float) -> int:
    """The official counter is sum_{k<=t} (1-m)^k = (1 - (1-m)^(t+1)) / m; solve for t."""
    left = 1 - running_iter * momentum
    return round(math.log(left) / math.log(1 - momentum)) - 1 if left > 0 else FORGOTTEN
