"""What a run is: its method, configuration and data. A resumed run and the processes of one run compare them."""

import hashlib
import json
import os
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dataset.files import file_version
from dataset.folders import Sample
from dataset.labels import IGNORE, id_lookup, is_id_table
from dataset.messages import few
from utils.config.read import flatten, to_yaml
from utils.config.schema import SCRATCH, Config

# Beginnings of the keys that change neither the weights nor how they are scored in training.
FREE_KEYS = (
    "snapshot_dir",
    "exp_name",
    "resume",  # and resume_force
    "timeout_minutes",
    "model.fc_dim",  # only checks model.encoder
    "val.every",  # the best before is compared with those after, which are scored as it was
    "test.",
    "tta.",
    "train.num_workers",
    "train.cache_dir",
    "train.skip_bad_samples",
    "train.print_freq",
    "adabn.",
)
SCORING = ("test.input_size", "test.upsampling", "test.eval_classes")  # of a validation too, if there is one
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
Entry = list[Any]  # image; with a label also its path, time of the last change in ns, size in bytes


def git_revision() -> str:
    """Commit of the code, or "unknown" outside a git checkout and where there is no git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def config_changes(saved: str, config: Config) -> str:
    """The keys in which a checkpoint's configuration (YAML) differs from ``config``, with both values; "" if in none.

    A key that the checkpoint's version of the code did not have yet counts as its default.
    """
    unset = Config()
    unset.follow_target()
    default, old, new = (flatten(yaml.safe_load(text)) for text in (to_yaml(unset), saved, to_yaml(config)))
    old = {name: default[name] for name in default.keys() - old.keys()} | old
    old["model.weights"], new["model.weights"] = (keys["model.weights"] or SCRATCH for keys in (old, new))
    scored = SCORING if config.val.held_out or config.val.data_list else ()
    kept = {k for k in old.keys() | new.keys() if k in scored or not k.startswith(FREE_KEYS)}
    differing = sorted(k for k in kept if old.get(k) != new.get(k))
    return ", ".join(f"{name}: {old.get(name)} -> {new.get(name)}" for name in differing)


def data_identity(
    config: Config, source: Sequence[Sample], target: Sequence[Sample], held_out: Sequence[Sample]
) -> dict[str, Any]:
    """What a run is trained and selected on, for its checkpoints and for ``data_changes``.

    Returns:
        digest: of the lists of images and labels, the labels' times and sizes, the id tables and the prior files.
        content: uint8 tensor, all of that packed, so that a change can be named.
    """
    text = json.dumps(data_contents(config, {"source": source, "target": target, "held out": held_out}))
    packed = zlib.compress(text.encode())
    return {
        "digest": hashlib.sha256(text.encode()).hexdigest(),
        "content": torch.from_numpy(np.frombuffer(packed, np.uint8).copy()),
    }


def data_contents(config: Config, lists: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """What the ``lists`` (source, target, held out, test) and the files that the configuration names say.

    Returns:
        lists: by name, of each sample its image and, with a label, that one's path, time in ns and size in bytes.
        files: text by key.
    """
    target, v, t = config.target.data_dir, config.val, config.test
    roots: dict[str, list[str | None]] = {
        "source": [config.source.data_dir],
        "target": [target],
        "held out": [v.data_dir or target, v.label_dir],
        "test": [t.data_dir or target, t.label_dir],
    }
    entries = {name: _entries(samples, roots[name]) for name, samples in lists.items()}
    return {"lists": entries, "files": _files(config)}


def _entries(samples: Sequence[Sample], roots: Sequence[str | None]) -> list[Entry]:
    """Files are named as seen from the data set's folders, which may be mounted elsewhere the next time."""
    bases = [Path(root).resolve() for root in roots if root is not None]

    def name(path: Path) -> str:
        resolved = path.resolve()
        base = next((base for base in bases if resolved.is_relative_to(base)), None)
        return str(resolved) if base is None else os.path.relpath(resolved, base)

    return [
        [name(sample.image)]
        + ([] if sample.label is None else [name(sample.label), *(file_version(sample.label) or (0, 0))])
        for sample in samples
    ]


def _files(config: Config) -> dict[str, str]:
    """What the configured files say that are no lists, by key."""
    found = {}
    for name, options in (("source.id_table", config.source), ("target.id_table", config.target)):
        if is_id_table(options.label_kind):
            lookup = id_lookup(options.label_kind)
            ids = {c: np.flatnonzero(lookup == c).tolist() for c in np.unique(lookup[lookup != IGNORE]).tolist()}
            names = config.class_table.names
            found[name] = ", ".join(f"{names[c]} {raw}" for c, raw in ids.items())
    c = config.curriculum
    for name, path in (("curriculum.class_prior", c.class_prior), ("curriculum.spatial_prior", c.spatial_prior)):
        if path is not None and Path(path).is_file():
            found[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    return found


def data_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """What differs between the ``data_identity`` of a checkpoint and that of now, in words; "" if nothing does."""
    if saved["digest"] == current["digest"]:
        return ""
    old, new = contents_of(saved), contents_of(current)
    changes = [
        f"{name}: {text}" for name in old["lists"] if (text := _list_changes(old["lists"][name], new["lists"][name]))
    ]
    for name in sorted(old["files"].keys() | new["files"].keys()):
        before, now = old["files"].get(name), new["files"].get(name)
        if before != now:
            changes.append(f"{name}: {before} -> {now}")
    return "; ".join(changes)


def contents_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The ``data_contents`` in a ``data_identity``."""
    return json.loads(zlib.decompress(identity["content"].numpy().tobytes()))


def _list_changes(old: Sequence[Entry], new: Sequence[Entry]) -> str:
    if old == new:
        return ""
    before, now = (Counter(image for image, *_ in entries) for entries in (old, new))
    labels = {image: label for image, *label in old}
    edited = [image for image, *label in new if image in labels and label != labels[image]]
    texts = [
        _counted((before - now).elements(), "removed"),
        _counted((now - before).elements(), "added"),
        _counted(edited, "with another label file"),
    ]
    return ", ".join(filter(None, texts)) or "the same images in another order"


def _counted(images: Iterable[str], what: str) -> str:
    names = list(images)
    return f"{len(names)} image(s) {what} ({few(names)})" if names else ""


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
