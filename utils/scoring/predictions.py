"""Scores and pictures of ``evaluate.py``: for networks, official pairs of weight files, or prediction files."""

import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.files import check_writable, write_text
from dataset.folders import Sample
from dataset.labels import IGNORE, ClassTable, class_table, id_lookup, look_like_train_ids
from dataset.messages import DataError, few
from dataset.progress import Progress
from dataset.reading import prediction_kind, read_image, read_label, read_raw_label, train_ids
from utils import distributed
from utils.builders.data import Data
from utils.config.schema import Config, ConfigError
from utils.metrics import ConfusionMatrix
from utils.run_folder.checkpoint import pair_up
from utils.run_folder.log import plain_json
from utils.run_folder.manifest import RunData, start_facts
from utils.scoring.evaluation import comparison, evaluate, per_class, scores
from utils.scoring.pictures import LABEL_IDS, Background, confusion_picture, panel, save_picture, save_prediction
from utils.scoring.predictor import Predictor, load_configured
from utils.scoring.segment import files_below

WORST = 10  # images with the lowest mIoU that get their own folder
NO_CLASS = 0.01  # share of the labelled pixels; predicted ids that are no class are reported above it


class Gallery:
    """Pictures of one network below ``folder``: colour/, label_ids/, panels/, worst/ and confusion.png."""

    def __init__(self, folder: Path, table: ClassTable) -> None:
        self.folder, self.table = folder, table
        self.scores: list[tuple[float, str]] = []

    def add(self, name: str, image: Path, label: Tensor, prediction: Tensor) -> None:
        """Write the pictures of one image; label and prediction are (H, W). Several threads may call this."""
        classes = prediction.numpy()
        panels = panel(read_image(image), label.numpy(), classes, self.table)
        save_prediction(self.folder, name, classes, self.table, panels=panels)
        matrix = ConfusionMatrix(self.table.num_classes)
        matrix.update(label, prediction)
        self.scores.append((100 * matrix.miou(), name))

    def finish(self, matrix: ConfusionMatrix) -> None:
        """Write confusion.png, and copy the panels of the images with the lowest mIoU to worst/, by rank."""
        labelled = [score for score in distributed.gather(self.scores) if not np.isnan(score[0])]
        if not distributed.is_main():
            return
        save_picture(self.folder / "confusion.png", confusion_picture(matrix.counts.numpy(), self.table))
        worst = self.folder / "worst"
        shutil.rmtree(worst, ignore_errors=True)
        for rank, (miou, name) in enumerate(sorted(labelled)[:WORST], start=1):
            flat = name.replace("/", "_")
            with Image.open(self.folder / "panels" / f"{name}.png") as panels:
                save_picture(worst / f"{rank:02d}_{miou:.1f}_{flat}.png", panels)


def score(
    config: Config, weights: Sequence[str] | None, predictions: Path | None, json_file: Path | None, save: Path | None
) -> None:
    """Print the scores on the test split, and write the files that are asked for.

    Args:
        weights: run folders or files, see ``pair_up``; None: the run of ``config``.
        predictions: score the label-id PNGs below this folder instead.
        json_file: file for the scores.
        save: folder for the pictures; each of several networks gets a sub-folder.

    Raises:
        UserError, OSError: something cannot be scored or written. Raised before the first image if possible.
    """
    with distributed.process_group(config.timeout_minutes, lambda: start_facts(config)) as device:
        if json_file:
            _check_json(json_file)
        data = Data(config)
        samples, table, classes = data.test(), config.class_table, config.test.eval_classes
        distributed.check_agreement(RunData(config, {"test": samples}).facts)
        if predictions:
            kind = config.test.label_kind
            matrices = {str(predictions): score_files(predictions, samples, kind, table.num_classes)}
        else:
            if remark := data.shape_remark(samples):
                _print_once(remark)
            networks = distributed.from_first(lambda: pair_up(weights or [str(config.run_folder)]))
            # load all networks first: a wrong file stops the command before the long scoring
            loaded = {name: load_configured(config, files, device, _print_once) for name, files in networks.items()}
            loader, matrices = data.evaluation_loader(samples, config.test), {}
            for name, predictor in loaded.items():
                folder = save if len(loaded) == 1 else save and save / name.replace("/", "_")
                matrices[name] = score_network(predictor, loader, samples, folder)
        _print_once(f"{len(samples)} images\n{comparison(matrices, table, classes)}")
        if json_file and distributed.is_main():
            write_json(json_file, matrices, table, classes, len(samples))


def _print_once(text: str) -> None:
    """Print on the first process only."""
    if distributed.is_main():
        print(text)


def score_network(
    predictor: Predictor, loader: DataLoader, samples: Sequence[Sample], save: Path | None
) -> ConfusionMatrix:
    """Confusion matrix over ``loader``, which loads ``samples``. Writes pictures below ``save``."""
    images = {sample.name: sample.image for sample in samples}
    gallery = Gallery(save, predictor.table) if save else None
    started = time.monotonic()
    with Background() as writer:

        def draw(name: str, label: Tensor, prediction: Tensor) -> None:
            if gallery:
                writer.call(gallery.add, name, images[name], label, prediction)

        matrix = evaluate(predictor, loader, on_image=draw)
    if gallery:
        gallery.finish(matrix)
    _print_once(f"{len(samples) / (time.monotonic() - started):.2f} pictures per second")
    return matrix


def _check_json(path: Path) -> None:
    """Raises ConfigError if the file cannot be written; called before the long scoring."""
    try:
        check_writable(path.parent)
        if path.exists():
            path.open("a").close()
    except OSError as error:
        raise ConfigError(f"--json: cannot write {path}: {error.strerror}") from error


def write_json(
    path: Path,
    matrices: Mapping[str, ConfusionMatrix],
    table: ClassTable,
    eval_classes: Sequence[str] | None,
    images: int,
) -> None:
    """Write one object for one network, a list of objects for several."""
    results = [
        {
            "name": name,
            "images": images,
            **scores(matrix, table, eval_classes),
            "iou": per_class(matrix, table, eval_classes),
            "confusion_matrix": matrix.counts.tolist(),
        }
        for name, matrix in matrices.items()
    ]
    write_text(path, plain_json(results[0] if len(results) == 1 else results))


def score_files(folder: Path, samples: Sequence[Sample], dataset: str, num_classes: int) -> ConfusionMatrix:
    """Confusion matrix of label-id PNGs below ``folder``, one per sample, see ``find_predictions``.

    Raises:
        DataError: a sample has no prediction or several, its prediction and label differ in size, an id is undefined,
            or the predictions hold train ids.
    """
    matrix = ConfusionMatrix(num_classes)
    kind = prediction_kind(dataset)
    counts = np.zeros(len(id_lookup(kind)), np.int64)  # labelled pixels by predicted raw id
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
    _check_ids(counts, folder, kind)
    return matrix


def _check_ids(counts: np.ndarray, folder: Path, kind: str) -> None:
    """Raises DataError for train ids; prints the share of ids that are no class if it is large."""
    found = np.flatnonzero(counts).tolist()
    if look_like_train_ids(found, kind):
        examples = few(class_table(kind).export_ids[: class_table(kind).num_classes].tolist())
        raise DataError(
            f"the predictions below {folder} hold {found}, which look like train ids: write label ids ({examples})"
        )
    share = counts[id_lookup(kind) == IGNORE].sum() / max(counts.sum(), 1)
    if share > NO_CLASS:
        _print_once(f"{share:.1%} of the labelled pixels are predicted as ids that are no class: they count as wrong")


def find_predictions(folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """The PNG of each sample below ``folder``, by the sample's name.

    Its path ends in NAME.png or, if that is missing, in NAME_*.png; NAME includes sub-folders. If a file name begins
    with the names of several samples, the longest one counts. Linked folders are searched. In a folder that ``--save``
    wrote, only ``label_ids`` is searched.

    Raises:
        DataError: a sample has no file or several.
    """
    names = {sample.name: PurePath(sample.name) for sample in samples}
    last_parts = {name.name for name in names.values()}
    files: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(folder, set(), alone=LABEL_IDS):
        words = path.stem.split("_")
        beginnings = ("_".join(words[:count]) for count in range(len(words), 0, -1))
        if path.suffix.lower() == ".png":
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
