"""What all processes of a run must have been started with; nodes may differ in where things lie, and in loaders."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from utils.config.read import flatten, to_yaml
from utils.config.schema import Config
from utils.run_folder.identity import git_revision

# Keys in which nodes may differ: data may lie on a disk of their own, the first process alone has the run folder.
OF_A_NODE = (
    "snapshot_dir",
    "resume",
    "source.data_dir",
    "target.data_dir",
    "val.data_dir",
    "val.label_dir",
    "test.data_dir",
    "test.label_dir",
    "train.cache_dir",
    "train.num_workers",
    "test.num_workers",
)
LISTS = (".data_list", ".label_list", ".class_prior", ".spatial_prior", ".id_table")  # compared by what they say


def start_facts(config: Config) -> dict[str, str]:
    """The configuration and the code, by name."""
    keys = flatten(yaml.safe_load(to_yaml(config)))
    shared = {name: str(value) for name, value in keys.items() if name not in OF_A_NODE and not name.endswith(LISTS)}
    return shared | {"code": git_revision()}


def data_facts(contents: Mapping[str, Any]) -> dict[str, str]:
    """What ``identity.data_contents`` says, short, by name. Labels count by name and size: copies may lose times."""
    facts = dict(contents["files"])
    for name, entries in contents["lists"].items():
        lasting = [[image, *label[:1], *label[2:]] for image, *label in entries]
        digest = hashlib.sha256(json.dumps(lasting).encode()).hexdigest()[:12]
        facts[f"the list of {name} images"] = f"{len(entries)} images (digest {digest})"
    return facts


def file_facts(files: Iterable[str]) -> dict[str, str]:
    """A digest of what each file holds, by its path."""
    digests = {}
    for path in files:
        with open(path, "rb") as stream:
            digests[path] = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    return digests
