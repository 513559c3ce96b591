"""The classes that travel in a checkpoint, so that it can be used without the id table it was trained with."""

from collections.abc import Mapping
from typing import Any

from dataset.labels import CITYSCAPES, ClassTable, is_id_table, table_of
from dataset.messages import DataError
from models.weights import WeightsError
from utils.config.schema import Config


def class_entry(table: ClassTable) -> dict[str, Any]:
    """Names, colours and export ids of the classes as plain values; belongs into a checkpoint."""
    return {
        "names": list(table.names),
        "palette": table.palette.tolist(),
        "export_ids": table.export_ids[: table.num_classes].tolist(),
    }


def class_table_of(content: Mapping[str, Any], config: Config, origin: str) -> ClassTable:
    """Classes of the checkpoint ``content``, which ``model_state`` wrote.

    Args:
        config: the checkpoint's own; it tells the classes of an older checkpoint, which does not name them.
        origin: the file, for an error message.

    Raises:
        WeightsError: damaged classes; an older checkpoint whose id table is not there.
    """
    if "classes" in content:
        try:
            entry = content["classes"]
            return table_of(entry["names"], entry["palette"], entry["export_ids"])
        except (DataError, LookupError, TypeError, ValueError) as error:
            raise WeightsError(f"{origin} is damaged in its classes: {error}. Get the file anew") from error
    kind = config.source.label_kind
    if not is_id_table(kind):
        return CITYSCAPES
    try:
        return config.class_table
    except ValueError as error:
        raise WeightsError(
            f"{origin} is older than this version and does not name its classes, and {error}: start from the folder "
            f"that has {kind}, or write a file that names them there, by sh run.sh export CONFIG --to FILE.pth"
        ) from error
