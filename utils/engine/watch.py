"""Predictions on the target during training, and warnings: no labels, self-training collapses or loses a class."""

from collections.abc import Callable

import numpy as np
import torch

from dataset.folders import Sample, evenly_spaced
from dataset.labels import IGNORE
from dataset.loader import eval_loader
from dataset.messages import DataError
from dataset.reading import read_label
from models.segmentor import Segmentor
from utils import distributed
from utils.builders.data import TARGET, Data
from utils.run_folder.log import PREDICTION, RECORDS, Histogram, RunLog, Values, read_shares
from utils.scoring.evaluation import is_lost, predictions_on
from utils.scoring.predictor import Predictor

IMAGES = 16  # target training images, cropped as in the target phase, so that they fit in the memory
SOURCE_LABELS = 50  # read to find the common classes of the source
MAX_SHARE = 0.9  # of one class among the pseudo-labels
MIN_LABELLED = 0.01  # of the pixels or squares
PATIENCE, SHORTEST = 200, 5  # steps: longest and shortest patience
PART_OF_A_RUN = 10  # the patience of a short run is 1/10 of its steps

Watch = Callable[[Values], str | None]  # gets the values of a step, returns a warning at the step that causes it


def patience(num_steps: int) -> int:
    """Number of steps for which a problem must last before a run of ``num_steps`` warns of it."""
    return max(SHORTEST, min(PATIENCE, num_steps // PART_OF_A_RUN))


def watched_images(data: Data) -> list[Sample]:
    """The target training images whose predictions are logged."""
    return evenly_spaced(data.target, IMAGES)


class TargetShares:
    """Logs the class shares of the predictions on a few target training images, always on the same crops.

    Args:
        data: its source labels give the common classes.
    """

    def __init__(self, data: Data, device: torch.device, log: RunLog) -> None:
        self.config, self.device, self.log = data.config, device, log
        self.labels = evenly_spaced([sample.label for sample in data.source if sample.label], SOURCE_LABELS)
        self.names = data.config.class_table.names
        # not cached: the cache may hold only the source
        crops = data.dataset(TARGET, watched_images(data), cached=False)
        # no loader processes: they would live as long as the training
        self.loader = eval_loader(crops, num_workers=0, rank=distributed.rank(), world_size=distributed.world_size())

    def record(self, model: Segmentor, done: int) -> None:
        """Predict after step ``done`` and log the shares."""
        predictor = Predictor(model, self.config.class_table, self.device, self.config.test)
        shares = predictions_on([predictor], self.loader).shares[0].tolist()
        self.log.record(done, {PREDICTION: dict(zip(self.names, shares, strict=True))})

    def expected(self) -> Histogram:
        """Share of each class: the larger one of a sample of source labels and of the run's first record, if any."""
        found = [self._in_source()]
        path = self.log.folder / RECORDS
        found += [shares for _, shares in read_shares(path, PREDICTION, self.log.text)[:1]] if path.is_file() else []
        return {name: max(shares[name] for shares in found) for name in self.names}

    def _in_source(self) -> Histogram:
        """Shares in source labels; 0 for all classes if a label cannot be read. The loader reports that error."""
        kind, counts = self.config.source.label_kind, np.zeros(IGNORE + 1, np.int64)
        try:
            for path in self.labels:
                counts += np.bincount(read_label(path, kind).ravel(), minlength=len(counts))
        except DataError:
            return dict.fromkeys(self.names, 0.0)
        shares = counts[: len(self.names)] / max(counts[: len(self.names)].sum(), 1)
        return dict(zip(self.names, shares.tolist(), strict=True))


def share_histograms(values: Values) -> dict[str, Histogram]:
    """The histograms in ``values``: for each layer of the pyramid, each class's share of the pseudo-labels."""
    return {name: value for name, value in values.items() if isinstance(value, dict)}


class CollapseWatch:
    """Warns once if hardly anything is labelled, or if nearly all labels have been of one class for many steps."""

    def __init__(self, patience: int = PATIENCE) -> None:
        self.patience = patience
        self.streaks: dict[str, int] = {}
        self.warned = False

    def update(self, values: Values) -> str | None:
        """Update with one step's values. Returns a warning at the step that causes it, otherwise None."""
        for layer, shares in share_histograms(values).items():
            for name, share in shares.items():
                key = f"{layer}/{name}"
                self.streaks[key] = self.streaks.get(key, 0) + 1 if share > MAX_SHARE else 0
        found = [
            f"{name} has been above {MAX_SHARE:.0%} for {self.patience} steps"
            for name, streak in self.streaks.items()
            if streak >= self.patience
        ]
        for name, value in values.items():
            if "/labelled/" in name and isinstance(value, float) and value < MIN_LABELLED:
                found.append(f"{name} is {value:.2%}")
        if self.warned or not found:
            return None
        self.warned = True
        return (
            f"WARNING: self-training has collapsed: {'; '.join(found)}. Try: weights that are better on the target "
            "(train source only longer, convert their batch-norm statistics by test_adabn.py), lower train.lr_encoder "
            "and train.lr_decoder, a higher curriculum.lambda_balance if one class dominates, a lower "
            "curriculum.conf_threshold if there are too few labels"
        )


class VanishingWatch:
    """Warns once for each common class that disappears from the labels of all layers.

    The expected share of a class is ``expected``, or its share in the labels of the first ``SHORTEST`` steps if larger.

    Args:
        expected: returns each class's share, 0..1, by name; called at the first pseudo-labels.
        patience: number of steps over which a share is averaged, because a batch has few images.
    """

    def __init__(self, expected: Callable[[], Histogram], patience: int = PATIENCE) -> None:
        self.find_expected, self.patience = expected, patience
        self.expected: Histogram = {}
        self.means: Histogram | None = None  # running means of the classes that are not lost
        self.first: list[Histogram] = []  # shares of the first steps

    def update(self, values: Values) -> str | None:
        """Update with one step's values. Returns a warning at the step that causes it, otherwise None."""
        layers = share_histograms(values).values()
        if not layers:
            return None
        if self.means is None:
            self.expected = self.find_expected()
            self.means = dict(self.expected)
        step = {name: max(shares[name] for shares in layers) for name in self.means}
        for name, mean in self.means.items():
            self.means[name] = mean + (step[name] - mean) / self.patience
        if len(self.first) < SHORTEST:
            self._store_first(step, self.means)
        lost = {name: mean for name, mean in self.means.items() if is_lost(self.expected[name], mean)}
        for name in lost:
            del self.means[name]
        if not lost:
            return None
        found = "; ".join(
            f"{name}: {self.expected[name]:.1%} of the source labels or of the first pseudo-labels, now {mean:.1%}"
            for name, mean in lost.items()
        )
        return (
            f"WARNING: the pseudo-labels are losing classes ({found}). Unless they are rare in the target, the network "
            "is forgetting them: run `sh run.sh compare CONFIG RUN...`, and try lower train.lr_encoder and "
            "train.lr_decoder, fewer train.num_steps or curriculum.threshold=class_balanced"
        )

    def _store_first(self, step: Histogram, means: Histogram) -> None:
        """Store the shares of one of the first steps. After the last one, their mean is expected if it is larger."""
        self.first.append(step)
        if len(self.first) < SHORTEST:
            return
        for name in means:
            share = sum(shares[name] for shares in self.first) / SHORTEST
            if share > self.expected[name]:
                self.expected[name] = means[name] = share


class UnlabelledWatch:
    """Warns once when no pixel of the source batches has been labelled for ``patience`` steps."""

    def __init__(self, patience: int) -> None:
        self.patience, self.streak = patience, 0

    def update(self, values: Values) -> str | None:
        """Update with one step's values. Returns a warning at the step that causes it, otherwise None."""
        self.streak = 0 if values.get("source/labelled", 1) else self.streak + 1
        if self.streak != self.patience:
            return None
        return (
            f"WARNING: no pixel of the source batches of {self.patience} steps is labelled, so nothing is learnt from "
            "them. `sh run.sh check CONFIG` counts the labels; a larger source.crop_size covers more of each image"
        )


def watches_of(num_steps: int, remaining: int, target_shares: TargetShares | None) -> list[Watch]:
    """The watches of a run.

    Args:
        num_steps: number of steps of the whole run.
        remaining: number of steps that are left.
        target_shares: give the expected classes; None: no warning for a lost class.
    """
    found: list[Watch] = [CollapseWatch(patience(num_steps)).update]
    found.append(UnlabelledWatch(min(PATIENCE, max(remaining, 1))).update)
    if target_shares:
        found.append(VanishingWatch(target_shares.expected, patience(num_steps)).update)
    return found
