"""The authors' YAML files: flat keys under ``common:``, translated to our keys for the script that reads them.

Each released script fixes a part of its recipe in code and ignores the YAML keys for it (``SCRIPTS``). A key with an
effect in the released code has it here too. One warning names all others. Our keys beside ``common:`` override the
translation.
"""

import re
import warnings
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any

from dataset.labels import IGNORE
from utils.config.schema import SCRATCH, Config, ConfigError
from utils.config.values import value_text

# Keys with the same name here, by our group.
_SAME = {
    "": "exp_name snapshot_dir num_classes",
    "model.": "weights_encoder weights_decoder use_aux fc_dim",
    "source.": "data_dir data_list input_size",
    "train.": "batch_size iter_size num_workers num_steps print_freq lr_encoder lr_decoder lr_pow weight_decay "
    "lambda_seg",
    "curriculum.": "box_size conf_threshold merge_1x1 lambda_pseudo lambda_balance lambda_eq",
}
# Every key with one counterpart here: the same names, then the different ones.
RENAMED = {name: f"{group}{name}" for group, names in _SAME.items() for name in names.split()} | {
    "arch_encoder": "model.encoder",
    "input_size_crop": "source.crop_size",
    "data_dir_target": "target.data_dir",
    "data_list_target": "target.data_list",
    "input_size_target": "target.input_size",
    "input_size_target_crop": "target.crop_size",
    "set": "target.split",
    "data_dir_target_val": "val.label_dir",
    "data_list_target_val": "val.data_list",
    "label_path_list_val": "val.label_list",
    "data_dir_target_test": "test.label_dir",
    "data_list_target_test": "test.data_list",
    "label_path_list_test": "test.label_list",
    "input_size_test": "test.input_size",
    "save_pred_every": "val.every",
    "beta1": "train.momentum",
    "lambda_trade_off": "train.lambda_source",
}
# Keys that have another form here; None: the key has one legal value.
DERIVED = {
    "arch_decoder": "model.decoder",
    "decrease_lr": "train.decrease_lr",
    "scale_min": "source.scale",
    "scale_max": "source.scale",
    "rotate_min": "source.rotate",
    "rotate_max": "source.rotate",
    "ignore_label": None,
    "ignore_index": None,
}
RANGES = (("scale_min", "scale_max"), ("rotate_min", "rotate_max"))  # two of the authors' keys, one key here
# Keys with an effect in the released code, and what replaces each of them here.
ELSEWHERE = {
    "num_gpus": "run.sh starts one process a GPU",
    "com_size": "scores are always at the label's own size",
    "result_dir": "evaluate.py --save DIR",
}
DEAD = frozenset(
    "arch_reconst arch_disc weights_reconst weights_disc target syncbn gaussian_kernel_size gaussian_sigma decoder "
    "disc reconst lr_disc is_training lambda_adv_target1 lambda_adv_target2 lambda_soft_pseudo box_threshold "
    "lambda_box_pseudo max_num_bbx nms_threshold random_scale random_mirror random_seed restore_from power".split()
)
_CURRICULUM = frozenset(_SAME["curriculum."].split())
_AUGMENTATION = frozenset({"scale_min", "scale_max", "rotate_min", "rotate_max"})
_OPTIMISER = frozenset({"beta1", "weight_decay"})
_CROPS = frozenset({"input_size_crop", "input_size_target_crop"})
# Script -> (what it fixes in code, keys that only other scripts read).
SCRIPTS: dict[str, tuple[dict[str, Any], frozenset[str]]] = {
    "train_source_only": ({}, _CURRICULUM | {"decrease_lr"}),
    "train_adabn": (
        {"source.flip": True, "target.flip": True},
        _CURRICULUM | {"decrease_lr", "rotate_min", "rotate_max"},
    ),
    "train_pycda": ({}, _AUGMENTATION | _OPTIMISER | {"decrease_lr", "lambda_eq"}),
    "train_pycda_spatial": ({"train.schedule": "drop"}, _AUGMENTATION | _OPTIMISER | _CROPS | {"lr_pow"}),
    "test_adabn": (
        {"adabn.images": "crops", "adabn.mode": "ema", "adabn.score_every": 1000},
        _CURRICULUM | _OPTIMISER | {"decrease_lr", "rotate_min", "rotate_max"},
    ),
    "evaluate": ({}, _CURRICULUM | _OPTIMISER | _AUGMENTATION | {"decrease_lr"}),
}

FROM_IMAGENET = ("train_source_only", "train_adabn")  # their empty weights mean ImageNet weights


def translate(common: dict[str, Any], script: str, repeated: Sequence[str] = ()) -> dict[str, Any]:
    """Our dotted keys for the official keys of ``script``, one of ``SCRIPTS``; warns of keys without effect.

    Args:
        common: the official keys, without ``common.``, with their values as text.
        repeated: keys that the file has more than once; the last value is used, as in the released code.

    Raises:
        ConfigError: an unknown key, half of a range, or an ignored label other than 255.
    """
    unknown = sorted(set(common) - {*RENAMED, *DERIVED, *ELSEWHERE, *DEAD})
    if unknown:
        raise ConfigError(f"no released script has the keys: {', '.join(unknown)}. Write our own keys outside common:")
    fixed, unread = SCRIPTS[script]
    _warn(set(common), script, unread, repeated)
    live = {name: value for name, value in common.items() if name not in unread}
    keys = fixed | {RENAMED[name]: value for name, value in live.items() if name in RENAMED}
    if "arch_decoder" in live:
        keys["model.decoder"] = str(live["arch_decoder"]).removesuffix("_deepsup")
    if "decrease_lr" in live:
        never = re.fullmatch(r"-\d+", str(live["decrease_lr"]))
        if never and "num_steps" not in live:
            raise ConfigError("common.decrease_lr below 0 (never) needs common.num_steps in the same file")
        keys["train.decrease_lr"] = live["num_steps" if never else "decrease_lr"]
    for low, high in RANGES:
        if (low in live) != (high in live):
            raise ConfigError(f"common.{low} and common.{high} are one range: set both in the same file")
    if "scale_min" in live:
        keys["target.scale"] = keys["source.scale"] = [live["scale_min"], live["scale_max"]]
    if "rotate_min" in live:
        keys["source.rotate"] = [live["rotate_min"], live["rotate_max"]]
    if script == "test_adabn":  # the released conversion reads these from the keys of the training
        used = ("train.batch_size", "train.num_steps", "source.scale")
        keys |= {f"adabn.{name.split('.')[1]}": keys[name] for name in used if name in keys}
    for name in ("ignore_label", "ignore_index"):
        if str(live.get(name, IGNORE)) != str(IGNORE):
            raise ConfigError(f"common.{name} is {live[name]}: set it to {IGNORE}, the ignored label is always that")
    return keys


def _warn(common: set[str], script: str, unread: frozenset[str], repeated: Sequence[str]) -> None:
    """Warn once of all keys that have no effect, with the reason."""
    groups = {
        "unused in the released code too": sorted(DEAD & common),
        f"not read by the released {script}": sorted(unread & common),
        "replaced here": sorted(f"{name} ({why})" for name, why in ELSEWHERE.items() if name in common),
        "given twice, the last value is used": sorted(repeated),
    }
    lines = [f"  {reason}: {', '.join(names)}" for reason, names in groups.items() if names]
    if lines:
        warnings.warn("keys of common: without effect\n" + "\n".join(lines), stacklevel=2)


def check_complete(config: Config, script: str, present: Collection[str], given: Collection[str], origin: str) -> None:
    """Warn once of all keys that the released ``script`` needs and that are missing, with the default that is used.

    Args:
        present: the authors' keys in the files.
        given: our keys that a file or the command line sets.
        origin: the file, for the error.

    Raises:
        ConfigError: no weights, for a script that starts from ImageNet weights in the released code.
    """
    model = config.model
    if script in FROM_IMAGENET and not model.weights and not model.weights_encoder:
        raise ConfigError(
            f"{origin}: common.weights_encoder is empty, so the released {script} starts from ImageNet weights: set "
            f"model.weights_encoder to the file {model.encoder.split('_')[0]}-imagenet.pth (see README.md), or set "
            f"model.weights={SCRATCH} to start from random weights"
        )
    if script == "evaluate":
        return
    lacking: dict[str, list[str]] = {}
    for name, own in (RENAMED | DERIVED).items():
        if own and name not in SCRIPTS[script][1] and name not in present and own not in given:
            lacking.setdefault(own, []).append(name)
    lines = [f"  {' and '.join(names)}: {own}={value_text(attrgetter(own)(config))}" for own, names in lacking.items()]
    if lines:
        lines.insert(0, f"the released {script} needs keys that common: lacks; these defaults are used")
    if script == "train_pycda_spatial" and config.curriculum.spatial_prior is None:
        lines.append(
            f"the released {script} reads the prior from local.npy. curriculum.spatial_prior is not set, so the prior "
            "is computed from the source labels"
        )
    if lines:
        warnings.warn("\n".join(lines), stacklevel=3)
