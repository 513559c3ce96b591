"""A checkpoint without what only going on with its training needs, to pass on."""

from pathlib import Path

from models.weights import read_file
from utils.config.schema import Config
from utils.run_folder.checkpoint import CheckpointError, save_atomic
from utils.run_folder.classes import class_entry

KEPT = ("model", "bn_updates", "config", "classes", "git", "method")


def save_weights(path: Path, to: Path, config: Config) -> str:
    """Copy the checkpoint ``path`` to the file ``to`` without what only going on with its training needs.

    Args:
        config: of the same classes; it names them in place of an older checkpoint, which does not.

    Returns:
        what was written, for people.

    Raises:
        CheckpointError: no network in the file, or ``to`` is the checkpoint itself or cannot be written.
    """
    content = read_file(path)
    if "model" not in content or "config" not in content:
        raise CheckpointError(f"{path} is no checkpoint of this project")
    if to.resolve() == path.resolve():
        raise CheckpointError(f"{to} is the checkpoint itself: choose another file")
    kept = {name: content[name] for name in KEPT if name in content}
    if "classes" not in kept:
        kept["classes"] = class_entry(config.class_table)
    save_atomic(kept, to)
    sizes = " instead of ".join(f"{file.stat().st_size / 1e6:.1f}" for file in (to, path))
    return f"{to}: weights, classes and configuration of {path}, {sizes} MB"
