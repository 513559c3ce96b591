"""What the network predicts on the target while it is trained, and warnings: nothing is labelled, self-training
collapses or loses a class."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from dataset.folders import Sample
from dataset.labels import IGNORE
from dataset.loader import eval_loader
from dataset.messages import DataError
from dataset.reading import read_label
from models.segmentor import Segmentor
from utils import distributed
from utils.builders.data import TARGET, Data
from utils.run_folder.log import RunLog
from utils.run_folder.records import PREDICTION, RECORDS, read_shares
from utils.scoring.predictor import Predictor
from utils.scoring.without_labels import evenly_spaced, is_lost, predictions_on

IMAGES = 16  # target training images, as the target phase sees them: crops of the training's size fit the memory
SOURCE_LABELS = 50  # that say what is common in the source
MAX_SHARE = 0.9  # of one class among the pseudo-labels
MIN_LABELLED = 0.01  # of the pixels or squares
PATIENCE, SHORTEST = 200, 5  # steps at most and at least
PART_OF_A_RUN = 10  # a short run is watched for this part of its steps

Values = Mapping[str, float | dict[str, float]]  # of one iteration, see ``trainer.Iteration``
Shares = dict[str, float]  # by class name


def patience(num_steps: int) -> int:
    """Steps after which a run of ``num_steps`` is warned of what does not change."""
    return max(SHORTEST, min(PATIENCE, num_steps // PART_OF_A_RUN))


def watched_images(data: Data) -> list[Sample]:
    """The target training images whose predictions are logged."""
    return evenly_spaced(data.target, IMAGES)


class TargetShares:
    """Logs the class shares of the predictions on a few target training images, always the same crops.

    Args:
        data: its source labels say which classes are common.
    """

    def __init__(self, data: Data, device: torch.device, log: RunLog) -> None:
        self.config, self.device, self.log = data.config, device, log
        self.labels = evenly_spaced([sample.label for sample in data.source if sample.label], SOURCE_LABELS)
        self.names = data.config.class_table.names
        # not cached: the cache may be of source only
        crops = data.dataset(TARGET, watched_images(data), cached=False)
        # without loader processes, which would be kept for the whole training
        self.loader = eval_loader(crops, num_workers=0, rank=distributed.rank(), world_size=distributed.world_size())

    def record(self, model: Segmentor, done: int) -> None:
        """Predict after step ``done``; the shares go into the log."""
        predictor = Predictor(model, self.config.class_table, self.device, self.config.test)
        shares = predictions_on([predictor], self.loader).shares[0].tolist()
        self.log.record(done, {PREDICTION: dict(zip(self.names, shares, strict=True))})

    def expected(self) -> Shares:
        """By class, its share in some source labels or in the run's first record, if there is one, the larger one."""
        found = [self._in_source()]
        path = self.log.folder / RECORDS
        found += [shares for _, shares in read_shares(path, PREDICTION, self.log.text)[:1]] if path.is_file() else []
        return {name: max(shares[name] for shares in found) for name in self.names}

    def _in_source(self) -> Shares:
        """0 for every class if a label cannot be read: the error is reported where the label is used."""
        kind, counts = self.config.source.label_kind, np.zeros(IGNORE + 1, np.int64)
        try:
            for path in self.labels:
                counts += np.bincount(read_label(path, kind).ravel(), minlength=len(counts))
        except DataError:
            return dict.fromkeys(self.names, 0.0)
        shares = counts[: len(self.names)] / max(counts[: len(self.names)].sum(), 1)
        return dict(zip(self.names, shares.tolist(), strict=True))


def share_histograms(values: Values) -> dict[str, Shares]:
    """The histograms among ``values``: of each layer of the pyramid, each class's share of the pseudo-labels."""
    return {name: value for name, value in values.items() if isinstance(value, dict)}


class CollapseWatch:
    """Warns once when hardly anything is labelled, or when nearly every label has been one class for many steps."""

    def __init__(self, patience: int = PATIENCE) -> None:
        self.patience = patience
        self.streaks: dict[str, int] = {}
        self.warned = False

    def update(self, values: Values) -> str | None:
        """Take one step's values; returns the warning, if this step is the one that causes it."""
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
            "and train.lr_decoder, a higher curriculum.lambda_balance against one class, a lower "
            "curriculum.conf_threshold against too few labels"
        )


class VanishingWatch:
    """Warns once of each class that was common and leaves the labels of all layers.

    A class is as common as ``expected`` says, or as it is in the labels of the first ``SHORTEST`` steps.

    Args:
        expected: gives each class's share, 0..1, by name; called at the first pseudo-labels.
        patience: steps over which a share is averaged, since a batch has few images.
    """

    def __init__(self, expected: Callable[[], Shares], patience: int = PATIENCE) -> None:
        self.find_expected, self.patience = expected, patience
        self.expected: Shares = {}
        self.means: Shares | None = None  # running means of the classes that are still there
        self.first: list[Shares] = []  # by class, the shares of the first steps

    def update(self, values: Values) -> str | None:
        """Take one step's values; returns the warning, if this step is the one that causes it."""
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
            self._take_first(step, self.means)
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
            f"WARNING: the pseudo-labels are losing classes ({found}). Unless the target has hardly any of them, the "
            "network is unlearning them: look at `sh run.sh compare CONFIG RUN...`, and try lower train.lr_encoder and "
            "train.lr_decoder, fewer train.num_steps or a lower curriculum.conf_threshold"
        )

    def _take_first(self, step: Shares, means: Shares) -> None:
        """Keep a first step's shares; the last of them raises what is expected to their mean."""
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
        """Take one step's values; returns the warning, if this step is the one that causes it."""
        self.streak = 0 if values.get("source/labelled", 1) else self.streak + 1
        if self.streak != self.patience:
            return None
        return (
            f"WARNING: no pixel of the source batches of {self.patience} steps is labelled, so nothing is learnt from "
            "them: `sh run.sh check CONFIG` counts the labels; a larger source.crop_size sees more of each image"
        )


class Watches:
    """All watches of a run.

    Args:
        num_steps: of the whole run.
        remaining: steps from here on.
        target_shares: say which classes are expected; None: a class that vanishes is not noticed.
    """

    def __init__(self, num_steps: int, remaining: int, target_shares: TargetShares | None) -> None:
        self.watches: list[CollapseWatch | UnlabelledWatch | VanishingWatch] = [
            CollapseWatch(patience(num_steps)),
            UnlabelledWatch(min(PATIENCE, max(remaining, 1))),
        ]
        if target_shares:
            self.watches.append(VanishingWatch(target_shares.expected, patience(num_steps)))

    def update(self, values: Values) -> list[str]:
        """Take one step's values; returns the warnings that it causes."""
        return [warning for watch in self.watches if (warning := watch.update(values))]
