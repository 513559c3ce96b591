"""Which classes the network predicts on the target while it is trained, with or without labels, by any method."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dataset.folders import Sample
from dataset.labels import IGNORE
from dataset.loader import eval_loader
from dataset.messages import DataError
from dataset.reading import read_label
from models.segmentor import Segmentor
from utils import distributed
from utils.builders import data
from utils.config.schema import Config
from utils.run_folder.log import RunLog
from utils.run_folder.records import PREDICTION, RECORDS, read_shares
from utils.scoring.predictor import Predictor
from utils.scoring.without_labels import evenly_spaced, predictions_on

IMAGES = 16  # target training images, as the target phase sees them: crops of the training's size fit the memory
SOURCE_LABELS = 50  # that say what is common in the source


class TargetShares:
    """Records the class shares of the predictions on a few target training images, always the same crops.

    Args:
        source, target: the training images; the source's are labelled.
    """

    def __init__(
        self, config: Config, source: Sequence[Sample], target: Sequence[Sample], device: torch.device, log: RunLog
    ) -> None:
        self.config, self.device, self.log = config, device, log
        self.labels = evenly_spaced([sample.label for sample in source if sample.label], SOURCE_LABELS)
        self.names = config.class_table.names
        uncached = replace(config, train=replace(config.train, cache_dir=None))  # it may be of source only
        crops = data.domain_dataset(uncached, data.TARGET, evenly_spaced(target, IMAGES))
        # without loader processes, which would be kept for the whole training
        self.loader = eval_loader(crops, num_workers=0, rank=distributed.rank(), world_size=distributed.world_size())

    def record(self, model: Segmentor, done: int) -> None:
        """Predict after step ``done``; the shares go into the log."""
        predictor = Predictor(model, self.config.class_table, self.device, self.config.test)
        shares = predictions_on([predictor], self.loader).shares[0].tolist()
        self.log.record(done, {}, {PREDICTION: dict(zip(self.names, shares, strict=True))})

    def expected(self) -> dict[str, float]:
        """By class, its share in some source labels or in the run's first record, if there is one, the larger one."""
        found = [self._in_source()]
        path = self.log.folder / RECORDS
        found += [shares for _, shares in read_shares(path, PREDICTION, self.log.text)[:1]] if path.is_file() else []
        return {name: max(shares[name] for shares in found) for name in self.names}

    def _in_source(self) -> dict[str, float]:
        """0 everywhere where the labels cannot tell: what is wrong with them is said where they are used."""
        kind, counts = self.config.source.label_kind, np.zeros(IGNORE + 1, np.int64)
        try:
            for path in self.labels:
                counts += np.bincount(read_label(path, kind).ravel(), minlength=len(counts))
        except DataError:
            return dict.fromkeys(self.names, 0.0)
        shares = counts[: len(self.names)] / max(counts[: len(self.names)].sum(), 1)
        return dict(zip(self.names, shares.tolist(), strict=True))
