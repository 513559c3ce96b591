"""A trained run with the batch-norm statistics of the target (AdaBN, Li et al. 2016): what ``test_adabn.py`` does."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch.utils.data import DataLoader

from dataset.folders import Sample
from dataset.progress import Progress
from models.batchnorm import PooledStatistics
from models.segmentor import Segmentor
from models.weights import official_part
from utils import distributed
from utils.builders.data import SOURCE, TARGET, Data, are_labelled
from utils.builders.network import check_batch, load_network
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
from utils.run_folder.identity import data_contents, data_facts
from utils.scoring.evaluation import evaluate, iou_table

MODES = ("cumulative", "ema")
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
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    training = model.training
    model.train()
    with PooledStatistics(model) if mode == "cumulative" else nullcontext() as pooled:
        for done in _forwards(model, loaders, device):
            if score and score_every and done % score_every == 0:
                if pooled:
                    pooled.apply()
                score(done)
    if pooled:
        pooled.apply()
    model.train(training)


def _forwards(model: Segmentor, loaders: Sequence[DataLoader], device: torch.device) -> Iterator[int]:
    """Batches of all loaders, interleaved in proportion to their lengths; gives the number of forwards done."""
    turns = sorted((turn / len(loader), number) for number, loader in enumerate(loaders) for turn in range(len(loader)))
    batches = [iter(loader) for loader in loaders]
    bar = Progress(turns, "statistics", enabled=distributed.is_main(), leave=False)
    for done, (_, number) in enumerate(bar, start=1):
        model(next(batches[number])["image"].to(device, non_blocking=True))
        yield done


def statistics_samples(config: Config) -> dict[str, list[Sample]]:
    """The images of each domain that ``adabn.domains`` names."""
    domains, samples = config.adabn.domains, {}
    if domains in ("source", "both"):
        samples["source"] = Data(config).source
    if domains in ("target", "both"):
        samples["target"] = Data(config).target
    return samples


def _check_batches(model: Segmentor, loaders: Sequence[DataLoader]) -> None:
    """Raises ConfigError where a forward pass would have too few images for batch norm."""
    for loader in loaders:
        smallest = min(len(batch) for batch in cast(Iterable[list], loader.batch_sampler))
        check_batch(model, smallest, "adabn.batch_size")


def files_to_convert(config: Config, report: Callable[[str], None]) -> list[str]:
    """``adabn.weights``, or the run of ``config``, or where there is none the official pair of ``model.weights_*``.

    Args:
        report: told of a pair that is not taken.

    Raises:
        FileNotFoundError: neither is there.
    """
    m, given, folder = config.model, config.adabn.weights, config.run_folder
    pair = [file for file in (m.weights_encoder, m.weights_decoder) if file]
    try:
        run = str(resolve_weights(given or str(folder)))
        if given is None and len(pair) == 2:
            report(f"{folder} has a trained run, which is converted; another exp_name converts {' and '.join(pair)}")
        return [run]
    except FileNotFoundError as error:
        if given is None and len(pair) == 2:
            return pair
        raise FileNotFoundError(
            f"{error}, or name a run by adabn.weights, or an official pair by model.weights_encoder and "
            "model.weights_decoder"
        ) from error


def _save(config: Config, model: Segmentor, pair: bool) -> str:
    """Write the converted network into the run folder, with ``pair`` as official files too. Returns what is written."""
    files = {CONVERTED: model_state(config, model) | {"method": "test_adabn"}}
    if pair:
        files |= {OFFICIAL_ENCODER: official_part(model.encoder), OFFICIAL_DECODER: official_part(model.decoder)}
    if distributed.is_main():
        (config.run_folder / "config_adabn.yaml").write_text(to_yaml(config))
        for name, state in files.items():
            save_atomic(state, config.run_folder / name)
    return ", ".join(str(config.run_folder / name) for name in files)


def convert_run(config: Config) -> None:
    """Convert ``files_to_convert``; the result is adabn.pth in the run folder, of an official pair such a pair too.

    Without test labels there are no scores, and the same files.

    Raises:
        UserError: what cannot be converted or scored, before the first score wherever that can be known.
    """
    table, classes = config.class_table, config.test.eval_classes
    with start_run(config, config.test.num_workers) as run:
        device, log = run.device, run.log
        weights = distributed.from_first(lambda: files_to_convert(config, log.text))
        model, report = load_network(config, weights, device)
        log.text(report)
        of_domains, samples = statistics_samples(config), Data(config).test("optional")
        distributed.check_agreement(lambda: data_facts(data_contents(config, of_domains | {"test": samples})))
        # made before anything is scored, which takes long
        loaders = [Data(config, log.text).statistics_loader(DOMAINS[name], found) for name, found in of_domains.items()]
        _check_batches(model, loaders)
        if not are_labelled(samples):
            log.text("no labelled test images: the network is converted without scores")

        def score(title: str) -> None:
            if are_labelled(samples):
                loader = Data(config).evaluation_loader(samples, config.test)
                matrix = evaluate(config, model, loader, device, tta=config.tta, title=title)
                log.text(f"{title}\n{iou_table(matrix, table, classes)}")

        score("before conversion")
        run.begin()
        a = config.adabn
        convert_statistics(
            model,
            loaders,
            a.mode,
            device,
            score_every=a.score_every,
            score=lambda done: score(f"after {done} forward passes"),
        )
        log.text(f"saved as {_save(config, model, len(weights) == 2)} ({config.adabn})")
        score("after conversion")
