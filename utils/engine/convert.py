"""Conversion of a trained run's batch-norm statistics to the target (AdaBN, Li et al. 2016), for ``test_adabn.py``."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import DataLoader

from dataset.files import write_text
from dataset.messages import Report
from dataset.progress import Progress
from models.batchnorm import PooledStatistics
from models.segmentor import Segmentor
from models.weights import official_part
from utils import distributed
from utils.builders.data import SOURCE, TARGET, Data, are_labelled
from utils.builders.network import check_batch
from utils.config.read import to_yaml
from utils.config.schema import Config
from utils.engine.experiment import start_run
from utils.run_folder.checkpoint import (
    CONVERSION,
    CONVERTED,
    OFFICIAL_DECODER,
    OFFICIAL_ENCODER,
    model_state,
    resolve_weights,
    save_atomic,
)
from utils.run_folder.manifest import RunData
from utils.scoring.evaluation import evaluate, iou_table
from utils.scoring.predictor import load_configured

DOMAINS = {"source": SOURCE, "target": TARGET}


@torch.no_grad()
def convert_statistics(
    model: Segmentor,
    loaders: Sequence[DataLoader],
    mode: str,
    device: torch.device,
    *,
    score_every: int = 0,
    score: Callable[[int], None] | None = None,
) -> None:
    """Run train-mode forwards over ``loaders`` and keep the statistics; weights do not change.

    Args:
        loaders: finite loaders, one a domain, used in turn; two loaders give mixed statistics.
        mode: "cumulative": the exact mean and variance of all values, for any batch size (ours); "ema": continue the
            running average of the training from the checkpoint (released code).
        score_every: number of forwards between two calls of ``score``; 0: no calls.
        score: gets the number of forwards so far; the network then has the statistics so far.
    """
    training = model.training
    model.train()
    # batches of all loaders, interleaved in proportion to their lengths
    turns = sorted((turn / len(loader), number) for number, loader in enumerate(loaders) for turn in range(len(loader)))
    batches = [iter(loader) for loader in loaders]
    bar = Progress(turns, "statistics", enabled=distributed.is_main(), leave=False)
    with PooledStatistics(model) if mode == "cumulative" else nullcontext() as pooled:
        for done, (_, number) in enumerate(bar, start=1):
            model(next(batches[number])["image"].to(device, non_blocking=True))
            if score and score_every and done % score_every == 0:
                if pooled:
                    pooled.apply()
                score(done)
    if pooled:
        pooled.apply()
    model.train(training)


def files_to_convert(given: str | None, run: Path, pair: Sequence[str], report: Report) -> list[str]:
    """The checkpoint ``given``, or else the result of ``run``, or else the official ``pair``.

    Args:
        pair: an official encoder and decoder file, or empty.
        report: gets a line if there is a pair that is not used.

    Raises:
        FileNotFoundError: there is no checkpoint and no pair.
    """
    try:
        file = str(resolve_weights(given or run))
    except FileNotFoundError as error:
        if given is None and pair:
            return list(pair)
        raise FileNotFoundError(
            f"{error}, or set adabn.weights to a run, or model.weights_encoder and model.weights_decoder to an "
            "official pair"
        ) from error
    if given is None and pair:
        report(f"converting the trained run in {run}; to convert {' and '.join(pair)}, choose another exp_name")
    return [file]


def _save(config: Config, model: Segmentor, pair: bool) -> str:
    """Write the converted network into the run folder; if ``pair``, as official files too. Returns the files' paths."""
    files = {CONVERTED: model_state(config, model) | {"method": "test_adabn"}}
    if pair:
        files |= {OFFICIAL_ENCODER: official_part(model.encoder), OFFICIAL_DECODER: official_part(model.decoder)}
    if distributed.is_main():
        write_text(config.run_folder / CONVERSION, to_yaml(config))
        for name, state in files.items():
            save_atomic(state, config.run_folder / name)
    return ", ".join(str(config.run_folder / name) for name in files)


def convert_run(config: Config) -> None:
    """Convert ``files_to_convert`` and write adabn.pth into the run folder; an official pair also gives such a pair.

    Without test labels the same files are written, but nothing is scored.

    Raises:
        UserError: something cannot be converted or scored; if possible, raised before the first score.
    """
    a, m, table, classes = config.adabn, config.model, config.class_table, config.test.eval_classes
    pair = [m.weights_encoder, m.weights_decoder] if m.weights_encoder and m.weights_decoder else []
    with start_run(config, config.test.num_workers) as (device, log):
        weights = distributed.from_first(lambda: files_to_convert(a.weights, config.run_folder, pair, log.text))
        predictor = load_configured(config, weights, device, log.text)
        model, data = predictor.model, Data(config, log.text)
        tested = data.test("optional")
        samples = {}
        if a.domains != "target":
            samples["source"] = data.source
        if a.domains != "source":
            samples["target"] = data.target
        distributed.check_agreement(RunData(config, samples | {"test": tested}).facts)
        # before the first score, which takes long: errors show earlier
        loaders = [data.statistics_loader(DOMAINS[name], found) for name, found in samples.items()]
        for loader in loaders:
            check_batch(model, min(map(len, cast(Iterable[list], loader.batch_sampler))), "adabn.batch_size")
        labelled = are_labelled(tested)
        if not labelled:
            log.text("no labelled test images: the network is converted without scores")

        def score(title: str) -> None:
            if labelled:
                loader = data.evaluation_loader(tested, config.test)  # its processes end with the scores
                matrix = evaluate(predictor, loader, title=title)
                log.text(f"{title}\n{iou_table(matrix, table, classes)}")

        score("before conversion")
        convert_statistics(
            model,
            loaders,
            a.mode,
            device,
            score_every=a.score_every,
            score=lambda done: score(f"after {done} forward passes"),
        )
        log.text(f"saved as {_save(config, model, len(weights) == 2)} ({a})")
        score("after conversion")
