"""The authors' YAML files: flat keys under ``common:``, translated to ours for the script that reads them.

Each released script fixed some of its recipe in code, whatever its YAML said (``SCRIPTS``). A key that acted in the
released code acts here; all others are named in one warning. Own keys beside ``common:`` override the translation.
"""

import warnings
from collections.abc import Collection, Sequence
from typing import Any

from dataset.labels import IGNORE

# Keys that are ours under another name.
RENAMED = {
    "exp_name": "exp_name",
    "snapshot_dir": "snapshot_dir",
    "num_classes": "num_classes",
    "arch_encoder": "model.encoder",
    "weights_encoder": "model.weights_encoder",
    "weights_decoder": "model.weights_decoder",
    "use_aux": "model.use_aux",
    "fc_dim": "model.fc_dim",
    "data_dir": "source.data_dir",
    "data_list": "source.data_list",
    "input_size": "source.input_size",
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
    "batch_size": "train.batch_size",
    "iter_size": "train.iter_size",
    "num_workers": "train.num_workers",
    "num_steps": "train.num_steps",
    "print_freq": "train.print_freq",
    "save_pred_every": "val.every",
    "lr_encoder": "train.lr_encoder",
    "lr_decoder": "train.lr_decoder",
    "lr_pow": "train.lr_pow",
    "beta1": "train.momentum",
    "weight_decay": "train.weight_decay",
    "lambda_seg": "train.lambda_seg",
    "lambda_trade_off": "train.lambda_source",
    "box_size": "curriculum.box_size",
    "conf_threshold": "curriculum.conf_threshold",
    "merge_1x1": "curriculum.merge_1x1",
    "lambda_pseudo": "curriculum.lambda_pseudo",
    "lambda_balance": "curriculum.lambda_balance",
    "lambda_eq": "curriculum.lambda_eq",
}
# Keys that are ours in another form; None: they have one legal value.
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
RANGES = (("scale_min", "scale_max"), ("rotate_min", "rotate_max"))  # two keys of theirs are one of ours
# Acted in the released code, but is decided elsewhere here.
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
_CURRICULUM = frozenset(name for name, own in RENAMED.items() if own.startswith("curriculum."))
_AUGMENTATION = frozenset({"scale_min", "scale_max", "rotate_min", "rotate_max"})
_OPTIMISER = frozenset({"beta1", "weight_decay"})
_CROPS = frozenset({"input_size_crop", "input_size_target_crop"})
# Script -> (what it fixes in code, keys that others read and it does not).
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


FROM_IMAGENET = ("train_source_only", "train_adabn")  # where empty weights mean ImageNet's


class OfficialKeyError(ValueError):
    """A key below ``common:`` that the released scripts never had, or a value that cannot be taken over."""


def translate(common: dict[str, Any], script: str, repeated: Sequence[str] = ()) -> dict[str, Any]:
    """Our dotted keys for the official keys of ``script``, one of ``SCRIPTS``; warns of keys without effect.

    Args:
        common: the official keys, without ``common.``.
        repeated: keys that the file has more than once; the last one wins, as it did.

    Raises:
        OfficialKeyError: a key that is none of the authors', another type, or another ignored label than 255.
    """
    if not isinstance(common, dict):
        raise OfficialKeyError(f"common: expected keys and values, got {type(common).__name__}")
    common = {str(name): value for name, value in common.items()}
    unknown = sorted(set(common) - {*RENAMED, *DERIVED, *ELSEWHERE, *DEAD})
    if unknown:
        raise OfficialKeyError(
            f"no key of the released scripts: {', '.join(unknown)}; our own keys stand beside common:"
        )
    fixed, unread = SCRIPTS[script]
    _warn(common, script, unread, repeated)
    live = {name: value for name, value in common.items() if name not in unread}
    keys = dict(fixed) | {RENAMED[name]: _value(name, value) for name, value in live.items() if name in RENAMED}
    return keys | _derived(live, script) | (_conversion(live) if script == "test_adabn" else {})


def left_open(present: Collection[str], given: Collection[str], script: str) -> dict[str, list[str]]:
    """Our keys that ``script`` takes from a released file, which none gives: each with the authors' names of it.

    The released scripts need all of these, and stop without one.

    Args:
        present: the authors' keys in the file.
        given: our keys that a file or the command line gives.
    """
    keys: dict[str, list[str]] = {}
    for name, own in (RENAMED | DERIVED).items():
        if own is not None and name not in SCRIPTS[script][1] and name not in present and own not in given:
            keys.setdefault(own, []).append(name)
    return keys


def _value(name: str, value: Any) -> Any:
    optional = name.startswith(("weights_", "data_dir_target_")) or "list" in name
    return None if value == "" and optional else value


def _conversion(live: dict[str, Any]) -> dict[str, Any]:
    """What the released conversion takes from the keys of a training."""
    own = {"batch_size": "adabn.batch_size", "num_steps": "adabn.num_steps"}
    keys = {name: live[official] for official, name in own.items() if official in live}
    if "scale_min" in live and "scale_max" in live:
        keys["adabn.scale"] = [live["scale_min"], live["scale_max"]]
    return keys


def _derived(live: dict[str, Any], script: str) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if "arch_decoder" in live:
        keys["model.decoder"] = str(live["arch_decoder"]).removesuffix("_deepsup")
    for low, high in RANGES:
        if (low in live) != (high in live):
            raise OfficialKeyError(f"common.{low} and common.{high} are one range: give both in the same file")
    if "decrease_lr" in live:
        if type(live["decrease_lr"]) is not int:
            raise OfficialKeyError(f"common.decrease_lr must be int, got {live['decrease_lr']!r}")
        if live["decrease_lr"] < 0 and "num_steps" not in live:
            raise OfficialKeyError("common.decrease_lr below 0 (never) needs common.num_steps in the same file")
        keys["train.decrease_lr"] = live["decrease_lr"] if live["decrease_lr"] >= 0 else live["num_steps"]
    if "scale_min" in live:
        keys["target.scale"] = keys["source.scale"] = [live["scale_min"], live["scale_max"]]
    if "rotate_min" in live:
        keys["source.rotate"] = [live["rotate_min"], live["rotate_max"]]
    for name in ("ignore_label", "ignore_index"):
        if live.get(name, IGNORE) != IGNORE:
            raise OfficialKeyError(f"common.{name} is {live[name]}, the ignored label is always {IGNORE}")
    return keys


def _warn(common: dict[str, Any], script: str, unread: frozenset[str], repeated: Sequence[str]) -> None:
    """One warning of all keys that do nothing, with the reason."""
    groups = {
        "dead in the released code too": sorted(DEAD & set(common)),
        f"not read by the released {script}": sorted(unread & set(common)),
        "decided elsewhere here": sorted(f"{name} ({why})" for name, why in ELSEWHERE.items() if name in common),
        "given twice, the last one counts": sorted(repeated),
    }
    lines = [f"  {reason}: {', '.join(names)}" for reason, names in groups.items() if names]
    if lines:
        warnings.warn("keys of common: without effect\n" + "\n".join(lines), stacklevel=2)
