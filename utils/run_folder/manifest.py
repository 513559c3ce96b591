"""The method, configuration, data and code of a run; ``run.json`` in the run folder records them.

A resumed run compares them with its checkpoint, and the processes of a run compare them with each other.
"""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from dataset.files import sha256, write_text
from dataset.folders import Sample, write_list
from dataset.messages import DataError, few
from utils.config.read import read_keys, to_yaml
from utils.config.schema import SCRATCH, Config

MANIFEST = "run.json"
READERS = 16  # threads
# Beginnings of the keys that have no effect on the weights.
FREE = (
    "snapshot_dir",
    "exp_name",
    "resume",  # and resume_force
    "timeout_minutes",
    "model.fc_dim",  # only checks model.encoder
    "val.every",
    "test.",
    "tta.",
    "adabn.",
    "train.num_workers",
    "train.cache_dir",
    "train.skip_bad_samples",
    "train.print_freq",
)
# Endings of the keys that may differ between nodes: locations (only the first process has the run folder) ...
OF_A_NODE = ("snapshot_dir", "resume", ".data_dir", ".label_dir", ".cache_dir", ".num_workers")
# ... and files, which are compared by content.
FILES = (".data_list", ".label_list", ".class_prior", ".spatial_prior", ".id_table")


@cache
def git_revision() -> str:
    """Commit of the code when the program first asks for it, or "unknown" outside a git checkout or without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def config_changes(saved: str, config: Config) -> tuple[str, str]:
    """Differences between a checkpoint's configuration (YAML) and ``config``: keys with both values; "" without any.

    A key that is missing in the checkpoint counts as its default.

    Returns:
        the differences with an effect on the weights, and those without.
    """
    unset = Config()
    unset.follow_target()
    default, old, new = (read_keys(text) for text in (to_yaml(unset), saved, to_yaml(config)))
    old = {name: default[name] for name in default.keys() - old.keys()} | old
    old["model.weights"], new["model.weights"] = (keys["model.weights"] or SCRATCH for keys in (old, new))
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    changes = {name: f"{name}: {old.get(name)} -> {new.get(name)}" for name in differing}
    refused = ", ".join(text for name, text in changes.items() if not name.startswith(FREE))
    free = ", ".join(text for name, text in changes.items() if name.startswith(FREE))
    return refused, free


def start_facts(config: Config) -> dict[str, str]:
    """Configuration and code by name, which must be equal in all processes of a run."""
    keys = read_keys(to_yaml(config))
    shared = {name: str(value) for name, value in keys.items() if not name.endswith(OF_A_NODE + FILES)}
    return shared | {"code": git_revision()}


def file_facts(files: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the content of each file, by path."""
    return {path: sha256(path) for path in files}


class RunData:
    """The data on which a run is trained, selected or scored.

    Args:
        lists: samples by the name of their list: source, target, held_out, test.
    """

    def __init__(self, config: Config, lists: Mapping[str, Sequence[Sample]]) -> None:
        self.config, self.lists = config, lists
        c = config.curriculum
        files = {"source.id_table": config.source.id_table, "target.id_table": config.target.id_table}
        files |= {"curriculum.class_prior": c.class_prior, "curriculum.spatial_prior": c.spatial_prior}
        there = {key: path for key, path in files.items() if path is not None and Path(path).is_file()}
        digests = file_facts(there.values())
        self._files = {key: digests[path] for key, path in there.items()}

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each list with the content of its label files, and of each id table and prior file.

        This reads all labels: 7 s for 25,000 files of 40 KB in the system's file cache (2 cores).
        """
        return {name: _list_sha256(samples) for name, samples in self.lists.items()} | self._files

    def facts(self) -> dict[str, str]:
        """Facts that must be equal in all processes of a run; of label files, names and sizes only."""
        facts = dict(self._files)
        for name, samples in self.lists.items():
            digest = _list_sha256(samples, contents=False)[:12]
            facts[f"the list of {name.replace('_', ' ')} images"] = f"{len(samples)} images (digest {digest})"
        return facts

    def write_lists(self) -> None:
        """Write the lists of images into the run folder."""
        for name, samples in self.lists.items():
            write_list(samples, self._list_file(name, self.config.run_folder), self._root(name))

    def _root(self, name: str) -> str:
        return self.config.source.data_dir if name == "source" else self.config.target.data_dir

    @staticmethod
    def _list_file(name: str, folder: Path) -> Path:
        return folder / "lists" / f"{name}.txt"

    def changes(self, saved: Mapping[str, str], folder: Path) -> str:
        """Differences from the data of a checkpoint, as text; "" without any.

        Args:
            saved: the checkpoint's ``digests``.
            folder: the checkpoint's folder, which has the lists of its images.
        """
        current = self.digests
        changed = sorted(name for name in saved.keys() | current.keys() if saved.get(name) != current.get(name))
        listed = {name: f": {self._list_changes(name, folder)}" for name in changed if name in self.lists}
        return "; ".join(name + listed.get(name, "") for name in changed)

    def _list_changes(self, name: str, folder: Path) -> str:
        """Differences between a list and the list of the same name in ``folder``."""
        path = self._list_file(name, folder)
        if not path.is_file():
            return f"the change is unknown because {path} is missing"
        old = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        new = [os.path.relpath(sample.image, self._root(name)) for sample in self.lists[name]]
        removed, added = Counter(old) - Counter(new), Counter(new) - Counter(old)
        changes = [
            f"{images.total()} image(s) {what} ({few(images.elements())})"
            for images, what in ((removed, "removed"), (added, "added"))
            if images
        ]
        same = "the same names, but other labels or image sizes" if old == new else "the same images in another order"
        return ", ".join(changes) or same


def _list_sha256(samples: Sequence[Sample], contents: bool = True) -> str:
    """SHA-256 of the names and byte sizes of images and label files and, with ``contents``, of the labels' content.

    Images are not read because they are many times larger. Times are ignored because copies lose them.
    """
    with ThreadPoolExecutor(READERS) as pool:  # threads, because files may be on a network
        lines = pool.map(lambda sample: _sample_line(sample, contents), samples)
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _sample_line(sample: Sample, contents: bool) -> str:
    words = [f"{sample.name}{sample.image.suffix}"]
    for path in filter(None, (sample.image, sample.label)):
        words.append(f"{path.name} {path.stat().st_size}")
    if sample.label is not None and contents:
        with suppress(OSError):  # the loader reports or replaces the file
            words.append(sha256(sample.label))
    return " ".join(words)


class Manifest:
    """``run.json`` of a run folder, rewritten at the start and at every save.

    It contains the method, the starting weights with their SHA-256, the time of the first start, the seconds of all
    starts together without pauses, the number of images and the digest of each list, and the versions of code, torch
    and Python.
    """

    def __init__(self, method: str, data: RunData, starting_files: Iterable[str]) -> None:
        m = data.config.model
        self._path, self._clock = data.config.run_folder / MANIFEST, time.monotonic()
        self._content: dict[str, Any] = {
            "method": method,
            "start": m.whole_network or m.weights_encoder,
            "start_sha256": file_facts(starting_files),
            "started": None,
            "seconds": None,
            "images": {name: len(samples) for name, samples in data.lists.items()},
            "digests": data.digests,
            "versions": {"code": git_revision(), "torch": torch.__version__, "python": platform.python_version()},
        }

    def begin(self, anew: bool) -> None:
        """Write the file and start counting the seconds.

        Args:
            anew: False keeps start and seconds of the file; without a file they are null, that is, unknown.

        Raises:
            DataError: the file is damaged.
            OSError: the file cannot be written.
        """
        now: dict[str, Any] = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": 0.0}
        if not anew:
            before = read_manifest(self._path.parent)
            now = {name: before.get(name) for name in (*now, "start_sha256")}  # the weights may be deleted by now
        self._content |= now
        self._clock = time.monotonic()
        self._write()

    def count_time(self) -> None:
        """Add the seconds since ``begin`` or the last call. Raises OSError if the file cannot be written."""
        now = time.monotonic()
        if self._content["seconds"] is not None:
            self._content["seconds"] += now - self._clock
        self._clock = now
        self._write()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._content, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of ``run.json`` in ``folder``; empty if no training, or an older version, wrote the folder.

    Raises:
        DataError: a damaged file.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and isinstance(content.get("seconds"), (float, int, type(None))):
            return content
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise DataError(f"{path} is damaged: delete it. Start and duration of the run are then unknown")
