"""A trained run with the batch-norm statistics of the target (AdaBN, Li et al. 2016): what ``test_adabn.py`` does."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import DataLoader

from dataset.files import write_text
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
        loaders: finite batches, one loader a domain, taken in turn; two loaders give mixed statistics.
        mode: "cumulative": mean and variance of all values seen, exactly, whatever the batch size (ours); "ema": the
            running average of the training goes on, from where the checkpoint left it (released code).
        score_every: call ``score`` with the number of forwards after every so many, the statistics so far in place.
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


def files_to_convert(given: str | None, run: Path, pair: Sequence[str], report: Callable[[str], None]) -> list[str]:
    """The checkpoint ``given`` or that of the ``run``, or where there is none the official ``pair``.

    Args:
        pair: an official encoder and decoder file, or none.
        report: gets a line where there is a pair that is not taken.

    Raises:
        FileNotFoundError: neither is there.
    """
    try:
        file = str(resolve_weights(given or str(run)))
    except FileNotFoundError as error:
        if given is None and pair:
            return list(pair)
        raise FileNotFoundError(
            f"{error}, or name a run by adabn.weights, or an official pair by model.weights_encoder and "
            "model.weights_decoder"
        ) from error
    if given is None and pair:
        report(f"{run} has a trained run, which is converted; another exp_name converts {' and '.join(pair)}")
    return [file]


def _save(config: Config, model: Segmentor, pair: bool) -> str:
    """Write the converted network into the run folder, with ``pair`` as official files too. Returns what is written."""
    files = {CONVERTED: model_state(config, model) | {"method": "test_adabn"}}
    if pair:
        files |= {OFFICIAL_ENCODER: official_part(model.encoder), OFFICIAL_DECODER: official_part(model.decoder)}
    if distributed.is_main():
        write_text(config.run_folder / "config_adabn.yaml", to_yaml(config))
        for name, state in files.items():
            save_atomic(state, config.run_folder / name)
    return ", ".join(str(config.run_folder / name) for name in files)


def convert_run(config: Config) -> None:
    """Convert ``files_to_convert``; the result is adabn.pth in the run folder, of an official pair such a pair too.

    Without test labels there are no scores, and the same files.

    Raises:
        UserError: what cannot be converted or scored, before the first score wherever that can be known.
    """
    a, m, table, classes = config.adabn, config.model, config.class_table, config.test.eval_classes
    pair = [m.weights_encoder, m.weights_decoder] if m.weights_encoder and m.weights_decoder else []
    with start_run(config, config.test.num_workers) as run:
        log = run.log
        weights = distributed.from_first(lambda: files_to_convert(a.weights, config.run_folder, pair, log.text))
        predictor = load_configured(config, weights, run.device, log.text)
        model, data = predictor.model, Data(config, log.text)
        tested = data.test("optional")
        samples = {}
        if a.domains != "target":
            samples["source"] = data.source
        if a.domains != "source":
            samples["target"] = data.target
        distributed.check_agreement(RunData(config, samples | {"test": tested}).facts)
        # made before anything is scored, which takes long
        loaders = [data.statistics_loader(DOMAINS[name], found) for name, found in samples.items()]
        for loader in loaders:
            check_batch(model, min(map(len, cast(Iterable[list], loader.batch_sampler))), "adabn.batch_size")
        labelled = are_labelled(tested)
        if not labelled:
            log.text("no labelled test images: the network is converted without scores")

        def score(title: str) -> None:
            if labelled:
                loader = data.evaluation_loader(tested, config.test)  # whose processes end with the scores
                matrix = evaluate(predictor, loader, title=title)
                log.text(f"{title}\n{iou_table(matrix, table, classes)}")

        score("before conversion")
        run.begin()
        convert_statistics(
            model,
            loaders,
            a.mode,
            run.device,
            score_every=a.score_every,
            score=lambda done: score(f"after {done} forward passes"),
        )
        log.text(f"saved as {_save(config, model, len(weights) == 2)} ({a})")
        score("after conversion")
