"""Did an adaptation help? Without target labels: class shares, agreement, and forgetting of the source.

The confidence of a network is not used: self-training makes wrong networks confident.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.folders import Sample, evenly_spaced, hold_out, read_list
from dataset.priors import class_prior
from models.weights import read_file
from utils import distributed
from utils.builders.data import Data
from utils.config.schema import Config
from utils.run_folder.checkpoint import pair_up, resolve_weights
from utils.run_folder.log import RECORDS, last_labels
from utils.run_folder.summary import distinct_names, run_keys, starting_run
from utils.scoring.evaluation import evaluate, is_lost, predictions_on, scores
from utils.scoring.predictor import Predictor, load_configured

SEED = 0  # for the choice of source images
CAVEAT = (
    "Confidence, entropy and agreement under mirroring are not shown: on small runs they ranked networks in the "
    "reverse order of their accuracy, because self-training makes wrong networks confident. No number here proves "
    "that the adaptation helped."
)
OF_LABELS = (
    "The pseudo-labels were made in train mode, on augmented crops, with the statistics of each batch. The "
    "predictions were made in eval mode, on whole images. This is one reason why their columns differ."
)
TAKEN, BACK, GONE = "taken away", "brought back", "gone before"
CHANGED = 2  # factor; a smaller change of a share does not count
SHOWN = 4  # classes, of those that the curriculum changed most
NAME_WIDTH, COLUMN, WIDTH = 20, 15, 100  # characters


@dataclass(frozen=True)
class Comparison:
    """Comparison of networks on the same target training images. Shares are 0..1."""

    classes: tuple[str, ...]
    networks: tuple[str, ...]
    starts: list[int]  # by network: the network that it started from, otherwise the first one
    controls: list[int | None]  # by network with a curriculum: the one without it, trained from the same weights
    images: int
    available: int
    source: list[float]  # share by class, in the source labels
    predicted: list[list[float]]  # share by network and class
    labels: list[float] | None  # share by class, in the last network's pseudo-labels; None: it had none
    agreement: list[list[float]]  # by network and network: share of the pixels with the same class
    source_miou: list[float]  # percent, by network, on some source images: shows forgetting
    source_images: int
    source_available: int
    trained_on: int | None  # how many of these source images any network was trained on; None: not known

    def fates(self, run: int, before: int) -> list[str]:
        """``fate`` of each class, from network ``before`` to network ``run``."""
        return [fate(*shares) for shares in zip(self.source, self.predicted[before], self.predicted[run], strict=True)]


def fate(source: float, before: float, after: float) -> str:
    """The effect of an adaptation on a class, by its shares in the source labels and in the predictions.

    ``TAKEN``: not lost before, lost now, and rarer than in the source. ``BACK``: lost before, compared with the source,
    not now. ``GONE``: lost before and not brought back. "": none of these.
    """
    if after < source and is_lost(before, after):
        return TAKEN
    if is_lost(source, before):
        return BACK if not is_lost(source, after) and after >= CHANGED * before else GONE
    return TAKEN if is_lost(source, after) and CHANGED * after < before else ""


def compare_runs(config: Config, runs: Sequence[str], images: int) -> Comparison:
    """Load the runs' networks and compare them, see ``compare_networks``."""
    given = list(runs) or [str(config.run_folder)]
    start = starting_run(Path(given[0])) if len(given) == 1 else None
    device = distributed.device_and_backend()[0]
    pairs = list(pair_up([start, *given] if start else given).values())
    files = [Path(paths[0]) for paths in pairs]  # for an official pair: the encoder's file
    predictors = [load_configured(config, paths, device) for paths in pairs]
    return compare_networks(Data(config), dict(zip(distinct_names(files), predictors, strict=True)), files, images)


def compare_networks(data: Data, networks: Mapping[str, Predictor], files: Sequence[Path], images: int) -> Comparison:
    """Compare networks on the unlabelled target training images of ``data``.

    Args:
        networks: by name; the first one is from before the adaptation.
        files: their weights, in run folders that also record their starts and training images.
        images: of each domain, at most, evenly spaced.
    """
    config, source, target = data.config, data.source, data.target
    seen = evenly_spaced(target, images)
    unique = list({sample.image: sample for sample in source}.values())  # a training list may repeat lines
    chosen = unique if len(unique) <= images else hold_out(unique, images, SEED)[1]
    on_target = data.evaluation_loader(seen, config.target)
    on_source = data.evaluation_loader(chosen, config.source)
    predictors, folders = list(networks.values()), [path.parent for path in files]
    records = folders[-1] / RECORDS
    found = predictions_on(predictors, on_target, "predictions on the target")
    prior = class_prior(
        source,
        config.source.label_kind,
        config.num_classes,
        cache_dir=folders[-1] / "priors",
        write_cache=False,
        num_workers=config.test.num_workers,
        skip_bad=config.train.skip_bad_samples,
    )
    labels = last_labels(records) if records.is_file() else None
    names, (starts, controls) = config.class_table.names, _origins(files)
    matrices = [evaluate(predictor, on_source, title="source") for predictor in predictors]
    miou = [scores(matrix, config.class_table, config.test.eval_classes)["miou"] for matrix in matrices]
    return Comparison(
        classes=names,
        networks=tuple(networks),
        starts=starts,
        controls=controls,
        images=len(seen),
        available=len(target),
        source=prior.tolist(),
        predicted=found.shares.tolist(),
        labels=None if labels is None else [labels[name] for name in names],
        agreement=found.agreement.tolist(),
        source_miou=miou,
        source_images=len(chosen),
        source_available=len(unique),
        trained_on=_trained_on(folders, chosen),
    )


def _origins(files: Sequence[Path]) -> tuple[list[int], list[int | None]]:
    """``Comparison.starts`` and ``controls`` of the networks in ``files``."""
    places = {path.resolve(): i for i, path in enumerate(files)}
    given = [starting_run(path) for path in files]
    found = [resolve_weights(start).resolve() if start else None for start in given]
    methods = [str(read_file(path).get("method")) for path in files]
    control = {found[i]: i for i, method in enumerate(methods) if method == "train_adabn" and found[i]}
    starts = [places.get(start, 0) if i and start else 0 for i, start in enumerate(found)]
    learnt = [method.startswith("train_pycda") for method in methods]
    return starts, [control.get(start) if learns else None for start, learns in zip(found, learnt, strict=True)]


def _trained_on(folders: Sequence[Path], samples: Sequence[Sample]) -> int | None:
    """How many of the source ``samples`` a run in any of ``folders`` was trained on; None: not known."""
    known, lists = set(), [folder for folder in folders if (folder / "lists/source.txt").is_file()]
    for folder in lists:
        root = Path(run_keys(folder)["source.data_dir"])
        known |= {(root / line).resolve() for line in read_list(folder / "lists/source.txt", repeats=True)}
    return sum(sample.image.resolve() in known for sample in samples) if lists else None


def _source_text(c: Comparison) -> str:
    """The source scores, and whether the networks were trained on these images."""
    found = ", ".join(f"{name} {miou:.1f}" for name, miou in zip(c.networks, c.source_miou, strict=True))
    scored = f"mIoU on {c.source_images} of {c.source_available} source images: {found}."
    part = "all" if c.trained_on == c.source_images else str(c.trained_on)
    known = {None: "It is not known whether they were trained on them.", 0: "They were trained on none of them."}
    forgotten = f"They were trained on {part} of them: a lower score shows forgetting. It is no score on new images."
    return f"{scored} {known.get(c.trained_on, forgotten)}"


def verdicts(c: Comparison, run: int) -> dict[str, str]:
    """A sentence for each fate of network ``run``'s classes; for "", that it took no common class away."""
    start = c.starts[run]
    own, before, fates = c.networks[run], c.networks[start], c.fates(run, start)
    shares = zip(c.classes, c.source, c.predicted[start], c.predicted[run], strict=True)
    words = [f"{name} (source {100 * s:.1f}, {100 * b:.1f} -> {100 * a:.1f} %)" for name, s, b, a in shares]
    listed = {f: ", ".join(word for word, own in zip(words, fates, strict=True) if own == f) for f in fates if f}
    sentences = {
        TAKEN: f"{own} took away classes that {before} had: {listed.get(TAKEN)}. This is a sign that it did not help.",
        BACK: f"{own} brought back classes of the source that {before} had lost: {listed.get(BACK)}.",
        GONE: f"Common in the source, but already gone in {before}: {listed.get(GONE)}.",
    }
    found = {f: sentence for f, sentence in sentences.items() if f in listed}
    return found if TAKEN in found or run == start else {"": f"{own} took no common class away from {before}."} | found


def _curriculum_text(c: Comparison, run: int, control: int) -> str:
    """The effect of the curriculum, relative to the ``control``: the same start and steps without it."""
    fates, shares = c.fates(run, control), zip(c.predicted[run], c.predicted[control], strict=True)
    added = [100 * (own - without) for own, without in shares]
    most = sorted(range(len(added)), key=lambda i: -abs(added[i]))[:SHOWN]
    by_class = ", ".join(f"{c.classes[i]} {added[i]:+.1f}{fates[i] and f' ({fates[i]})'}" for i in most)
    return (
        f"Effect of the curriculum of {c.networks[run]}, relative to the control {c.networks[control]}: "
        f"{100 * (1 - c.agreement[run][control]):.1f} % of the pixels get another class; largest changes of share, "
        f"in percent: {by_class}; {c.source_miou[run] - c.source_miou[control]:+.1f} mIoU on the source."
    )


def describe(c: Comparison) -> str:
    """The comparison as text."""
    columns = {"source labels": c.source} | dict(zip(c.networks, c.predicted, strict=True))
    columns |= {"pseudo-labels": c.labels} if c.labels is not None else {}
    heads = [name if len(name) < COLUMN else f"…{name[3 - COLUMN :]}" for name in columns]  # names differ at the end
    lines = [f"Share of each class in percent, on {c.images} of {c.available} unlabelled target training images:"]
    lines.append(" " * NAME_WIDTH + "".join(f"{head:>{COLUMN}}" for head in heads))
    judged = range(1, len(c.networks)) or [0]  # a network alone is its own start
    fates = {c.networks[run]: c.fates(run, c.starts[run]) for run in judged}
    for i, name in enumerate(c.classes):
        cells = "".join(f"{100 * shares[i]:>{COLUMN}.2f}" for shares in columns.values())
        marks = ", ".join(f"{run}: {found[i]}" for run, found in fates.items() if found[i])
        lines.append(f"{name:<{NAME_WIDTH}}{cells}{marks and f'  <- {marks}'}")
    sentences = [OF_LABELS] if c.labels is not None else []
    sentences += [
        f"{name} and {c.networks[-1]} give {100 * c.agreement[i][-1]:.1f} % of the pixels the same class."
        for i, name in enumerate(c.networks[:-1])
    ]
    sentences += [_source_text(c), *(text for run in judged for text in verdicts(c, run).values())]
    sentences += [_curriculum_text(c, run, control) for run, control in enumerate(c.controls) if control is not None]
    return "\n".join([*lines, "", *(textwrap.fill(text, WIDTH) for text in [*sentences, CAVEAT])])
