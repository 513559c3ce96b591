"""What ``evaluate.py`` scores: networks, official pairs of files, or predictions as files; and pictures of it all."""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from dataset.files import check_writable
from dataset.folders import Sample
from dataset.labels import IGNORE, ClassTable, class_table, id_lookup, look_like_train_ids
from dataset.messages import DataError, few
from dataset.progress import Progress
from dataset.reading import prediction_kind, read_image, read_label, read_raw_label, train_ids
from utils import distributed
from utils.builders.data import evaluation_loader, first_shape_remark, test_samples
from utils.builders.network import load_network
from utils.config.declare import ConfigError
from utils.config.schema import Config
from utils.metrics import ConfusionMatrix
from utils.run_folder.checkpoint import pair_up
from utils.run_folder.manifest import RunData, start_facts
from utils.run_folder.records import plain_json
from utils.scoring.evaluation import comparison, evaluate, per_class, scores
from utils.scoring.pictures import (
    LABEL_IDS,
    Background,
    colour_map,
    confusion_picture,
    label_id_map,
    panel,
    save_pictures,
)

WORST = 10  # images shown apart
NO_CLASS = 0.01  # share of the predicted pixels above which ids of no class are worth a word


class Gallery:
    """Pictures of one network below ``folder``: colour/, label_ids/, panels/, worst/ and confusion.png."""

    def __init__(self, folder: Path, table: ClassTable) -> None:
        self.folder, self.table = folder, table
        self.scores: list[tuple[float, str]] = []

    def add(self, name: str, image: Path, label: Tensor, prediction: Tensor) -> None:
        """Write the pictures of one image; label and prediction are (H, W). Threads may do it at the same time."""
        picture, ids, classes = read_image(image), label.numpy(), prediction.numpy()
        pictures = {
            "colour": colour_map(classes, self.table),
            LABEL_IDS: label_id_map(classes, self.table),
            "panels": panel(picture, ids, classes, self.table),
        }
        save_pictures(self.folder, name, pictures)
        matrix = ConfusionMatrix(self.table.num_classes)
        matrix.update(label, prediction)
        self.scores.append((100 * matrix.miou(), name))

    def finish(self, matrix: ConfusionMatrix) -> None:
        """Write what is about all images: the confusion matrix, and the panels of the worst ones again, by rank."""
        labelled = [score for score in distributed.gather(self.scores) if not np.isnan(score[0])]
        if not distributed.is_main():
            return
        confusion_picture(matrix.counts.numpy(), self.table).save(self.folder / "confusion.png")
        worst = self.folder / "worst"
        shutil.rmtree(worst, ignore_errors=True)
        worst.mkdir()
        for rank, (miou, name) in enumerate(sorted(labelled)[:WORST], start=1):
            flat = name.replace("/", "_")
            shutil.copy(self.folder / "panels" / f"{name}.png", worst / f"{rank:02d}_{miou:.1f}_{flat}.png")


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
        distributed.compare(lambda: RunData(config, {"test": samples}).facts())
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

        loader = evaluation_loader(config, samples, config.test)
        matrix = evaluate(config, model, loader, device, on_image=save, tta=config.tta)
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


def score_files(folder: Path, samples: Sequence[Sample], dataset: str, num_classes: int) -> ConfusionMatrix:
    """Confusion matrix of label-id PNGs below ``folder``, one a sample, see ``find_predictions``.

    Raises:
        DataError: a sample has no prediction or several, one of another size than its label, an id that is not defined,
            or all of them hold train ids.
    """
    matrix = ConfusionMatrix(num_classes)
    kind = prediction_kind(dataset)
    counts = np.zeros(len(id_lookup(kind)), np.int64)  # labelled pixels that are given each raw id
    files = find_predictions(folder, samples)
    for sample in Progress(samples, "predictions", enabled=distributed.is_main()):
        path = files[sample.name]
        raw, label = read_raw_label(path, kind), read_label(sample.label_file, dataset)
        prediction = train_ids(raw, path, kind)
        if label.shape != prediction.shape:
            sizes = " and ".join(f"{shape[1]}x{shape[0]}" for shape in (prediction.shape, label.shape))
            raise DataError(f"prediction {path} and label {sample.label} differ in size (W x H): {sizes}")
        counts += np.bincount(raw[label != IGNORE], minlength=len(counts))
        matrix.update(torch.from_numpy(label), torch.from_numpy(prediction))
    _judge_ids(counts, folder, kind)
    return matrix


def _judge_ids(counts: np.ndarray, folder: Path, kind: str) -> None:
    """Refuse predictions of train ids; say it where much of others is no class."""
    found = np.flatnonzero(counts).tolist()
    if look_like_train_ids(found, kind):
        examples = few(class_table(kind).export_ids[: class_table(kind).num_classes].tolist())
        raise DataError(
            f"the predictions below {folder} hold {found}, which look like train ids: write label ids ({examples}, ...)"
        )
    share = counts[id_lookup(kind) == IGNORE].sum() / max(counts.sum(), 1)
    if share > NO_CLASS and distributed.is_main():
        print(f"{share:.1%} of the labelled pixels are predicted as ids that are no class, which counts as wrong")


def find_predictions(folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """The PNG below ``folder`` that belongs to each sample, by the sample's name.

    It ends in NAME.png or, where there is none, in NAME_*.png, sub-folders of NAME included; a file whose name begins
    with those of several samples belongs to the longest one. Linked folders are searched; of a folder that ``--save``
    wrote, its ``label_ids``.

    Raises:
        DataError: a sample has no file or several.
    """
    names = {sample.name: PurePath(sample.name) for sample in samples}
    last_parts = {name.name for name in names.values()}
    files: dict[str, list[Path]] = defaultdict(list)
    for path in _pngs(folder):
        words = path.stem.split("_")
        beginnings = ("_".join(words[:count]) for count in range(len(words), 0, -1))
        files[next((start for start in beginnings if start in last_parts), "")].append(path)
    found = {}
    for sample, name in names.items():
        own = [path for path in files[name.name] if path.parts[-len(name.parts) : -1] == name.parts[:-1]]
        own = [path for path in own if path.stem == name.name] or own
        if len(own) != 1:
            which = f" ({few(own)})" if own else ""
            raise DataError(
                f"{len(own)} predictions for {sample} below {folder}{which}: exactly one {name}.png or {name}_*.png is "
                "needed"
            )
        found[sample] = own[0]
    return found


def _pngs(folder: Path) -> Iterator[Path]:
    """PNGs below ``folder`` and linked folders, each once."""
    seen = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        if LABEL_IDS in folders:
            folders[:], names = [LABEL_IDS], []
        folders.sort()
        if os.path.realpath(at) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(at))
        yield from (Path(at, name) for name in sorted(names) if name.lower().endswith(".png"))
