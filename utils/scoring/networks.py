"""Scores of what ``evaluate.py`` is asked for: networks, official pairs of files, or predictions as files."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dataset.files import check_writable
from dataset.folders import Sample
from utils import distributed
from utils.build.data import first_shape_remark, test_samples
from utils.build.network import load_network
from utils.config.declare import ConfigError
from utils.config.schema import Config
from utils.metrics import ConfusionMatrix
from utils.run_folder.agreement import data_facts, start_facts
from utils.run_folder.checkpoint import pair_up
from utils.run_folder.identity import data_contents
from utils.run_folder.records import plain_json
from utils.scoring.evaluation import comparison, evaluate_test_split, per_class, scores
from utils.scoring.pictures import Background
from utils.scoring.predictions import Gallery, score_files


def score(
    config: Config, weights: Sequence[str] | None, predictions: Path | None, json_file: Path | None, save: Path | None
) -> None:
    """Print the scores on the test split, and write them down.

    Args:
        weights: run folders or files, see ``pair_up``; None: the run of ``config``.
        predictions: score the label-id PNGs below this folder instead.
        json_file: gets the scores too.
        save: folder of the pictures.

    Raises:
        UserError, OSError: what cannot be scored or written, before the first image wherever that can be known.
    """
    with distributed.process_group(config.timeout_minutes, lambda: start_facts(config)) as device:
        if json_file:
            _check_json(json_file)
        samples, table = test_samples(config), config.class_table
        distributed.compare(lambda: data_facts(data_contents(config, {"test": samples})))
        if predictions:
            matrices = {str(predictions): score_files(predictions, samples, config.test.label_kind, config.num_classes)}
        else:
            remark = first_shape_remark(config, samples)
            if remark and distributed.is_main():
                print(remark)
            networks = distributed.from_first(lambda: pair_up(weights or [str(config.run_folder)]))
            matrices = _score_networks(config, networks, samples, device, save)
        if distributed.is_main():
            print(f"{len(samples)} images\n{comparison(matrices, table, config.test.eval_classes)}")
            if json_file:
                write_json(json_file, config, matrices, len(samples))


def _score_networks(
    config: Config,
    networks: Mapping[str, Sequence[str]],
    samples: Sequence[Sample],
    device: torch.device,
    save: Path | None,
) -> dict[str, ConfusionMatrix]:
    """By name; with pictures below ``save``, of several networks in a folder each."""
    if len(networks) > 1:  # a file that does not fit is said before the first network is scored, which takes long
        for files in networks.values():
            load_network(config, files, device)
    matrices = {}
    for name, files in networks.items():
        folder = save if len(networks) == 1 else save and save / name.replace("/", "_")
        gallery = Gallery(folder, config.class_table) if folder else None
        matrices[name] = score_network(config, files, samples, device, gallery)
    return matrices


def score_network(
    config: Config, files: Sequence[str], samples: Sequence[Sample], device: torch.device, gallery: Gallery | None
) -> ConfusionMatrix:
    """Confusion matrix of one checkpoint, or of an official (encoder, decoder) pair, with pictures in ``gallery``."""
    model, report = load_network(config, files, device)
    if distributed.is_main():
        print(report)
    images = {sample.name: sample.image for sample in samples}
    started = time.monotonic()
    with Background() as writer:

        def save(name: str, label: Tensor, prediction: Tensor) -> None:
            if gallery:
                writer.call(gallery.add, name, images[name], label, prediction)

        matrix = evaluate_test_split(config, model, samples, device, on_image=save)
    if gallery:
        gallery.finish(matrix)
    if distributed.is_main():
        print(f"{len(samples) / (time.monotonic() - started):.2f} pictures a second")
    return matrix


def _check_json(path: Path) -> None:
    """Raises ConfigError where the file of the scores cannot be written: said before they are computed."""
    try:
        check_writable(path.parent)
        if path.exists():
            path.open("a").close()
    except OSError as error:
        raise ConfigError(f"--json: cannot write {path}: {error.strerror}") from error


def write_json(path: Path, config: Config, matrices: dict[str, ConfusionMatrix], images: int) -> None:
    """One object for one network, a list of them for several."""
    table, classes = config.class_table, config.test.eval_classes
    results = []
    for name, matrix in matrices.items():
        result = {
            "name": name,
            "images": images,
            **scores(matrix, table, classes),
            "iou": per_class(matrix, table, classes),
        }
        results.append(result | {"confusion_matrix": matrix.counts.tolist()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(plain_json(results[0] if len(results) == 1 else results))
