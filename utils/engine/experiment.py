"""An experiment: its processes, its folder, its data, and the phases that a training script makes of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dataset.cores import loader_processes
from dataset.folders import Sample
from dataset.messages import few
from dataset.priors import labelled_classes
from dataset.reading import OTHER_SIZES, resized_pairs
from utils import distributed
from utils.builders import data, network
from utils.config.read import ConfigError, to_yaml
from utils.config.schema import SCRATCH, Config
from utils.engine.losses import LossFunction, supervised
from utils.engine.signals import StopSignals, Unwinding
from utils.engine.start import check_start, warn_of_slow_amp
from utils.engine.target_shares import TargetShares
from utils.engine.trainer import Phase, Trainer
from utils.engine.validation import Validation
from utils.run_folder.checkpoint import CheckpointError, find_state
from utils.run_folder.folder import RunFolder, open_run_folder, set_aside
from utils.run_folder.log import RunLog
from utils.run_folder.manifest import Manifest, RunData, git_revision, start_facts

LOOKED_AT = 100  # source labels at the start of a training: a second or two


class Run(NamedTuple):
    """A run of this process: its device, its logs and, in the first process, its folder."""

    device: torch.device
    log: RunLog
    folder: RunFolder | None

    def begin(self) -> None:
        """From here on the run folder is kept; before, a start that fails leaves none."""
        if self.folder is not None:
            self.folder.kept = True


@contextmanager
def start_run(config: Config, num_workers: int) -> Iterator[Run]:
    """Join the other processes, open and lock the run folder, open its logs; undo it at the end.

    Args:
        num_workers: loader processes that the configuration asks for.
    """
    signals = Unwinding()
    with signals, ExitStack() as stack:
        device = stack.enter_context(distributed.process_group(config.timeout_minutes, lambda: start_facts(config)))
        main = distributed.is_main()
        folder = stack.enter_context(open_run_folder(config.run_folder)) if main else None
        log = stack.enter_context(RunLog(config.run_folder, enabled=main))
        processes = f"{distributed.world_size()} process(es) on {device.type}, {torch.get_num_threads()} thread(s)"
        workers = f"{loader_processes(num_workers)} loader process(es) a data set"
        log.text(f"run folder {config.run_folder}, {processes}, {workers}, code {git_revision()}")
        stack.enter_context(distributed.explained())  # so that the log has it
        try:
            yield Run(device, log, folder)
        except SystemExit:
            if signals.received:
                log.text(f"stopped by signal {signals.received} with nothing to save: the same command goes on")
            raise
        finally:
            signals.over = True


@dataclass(frozen=True)
class Experiment:
    """What a training script builds its phases from."""

    config: Config
    source: Sequence[Sample]
    target: Sequence[Sample]  # without labels, and without the held-out images
    device: torch.device
    log: RunLog

    def source_phase(self) -> Phase:
        """The supervised phase, the same in all four recipes."""
        loader = data.domain_loader(self.config, data.SOURCE, self.source)
        return Phase("source", loader, supervised(self.config.train.lambda_seg, self.config.train.lambda_source))

    def target_phase(
        self, losses: LossFunction, *, backward: bool = True, curriculum: nn.Module | None = None
    ) -> Phase:
        """A phase on the target; the state of its ``curriculum`` is part of the checkpoints."""
        return Phase("target", data.domain_loader(self.config, data.TARGET, self.target), losses, backward, curriculum)


MakePhases = Callable[[Experiment], Sequence[Phase]]  # a training script's


def train(config: Config, make_phases: MakePhases, method: str, *, self_trained: bool = False) -> Path:
    """What a training script does: one run in a folder of its own, on one process or many, that signals stop politely.

    Args: see ``build_trainer``.

    Returns:
        the file of the result.

    Raises:
        SystemExit: stopped by a signal, with status ``signals.STOPPED``; the same command goes on.
    """
    with start_run(config, config.train.num_workers) as run:
        trainer = build_trainer(config, make_phases, method, self_trained=self_trained, device=run.device, log=run.log)
        run.begin()
        with StopSignals() as signals:
            result = trainer.fit(signals)
        run.log.text(f"done: {result}; next: sh run.sh {_next_command(config)}")
        return result


def build_trainer(
    config: Config,
    make_phases: MakePhases,
    method: str,
    *,
    self_trained: bool = False,
    device: torch.device | None = None,
    log: RunLog | None = None,
) -> Trainer:
    """A training with all that it needs: data, network, optimiser, curriculum, phases and logs.

    It goes on from the checkpoint in the run folder, as ``config.resume`` says. Nothing keeps a second run out of the
    folder, and signals do what they do in the calling program: ``train`` adds both.

    Args:
        make_phases: the ``phases`` of a training script, as ``train_pycda.phases``.
        method: name of the script, which the checkpoints hold.
        self_trained: the method learns from the network's own predictions, so it needs weights to start from.
        device: None: this process's GPU, or the CPU.
        log: None: a new one in the run folder, which is made.

    Raises:
        UserError: what does not go together, before the first step.
    """
    device = device or distributed.device_and_backend()[0]
    if log is None:
        config.run_folder.mkdir(parents=True, exist_ok=True)
        log = RunLog(config.run_folder)
    _ = config.class_table  # before anything slow: do the data sets go together?
    source = data.source_samples(config)
    target, held_out = data.target_samples(config, log.text)
    lists: dict[str, Sequence[Sample]] = {"source": source, "target": target, "held_out": held_out}
    run_data = RunData(config, lists)
    distributed.compare(run_data.facts)
    state = distributed.from_first(lambda: find_state(config, method, run_data, log.text))
    if state is None:
        _check_starting_weights(config, self_trained, log)
        _say_resized_labels(config, source, log)
    log.text(f"images: {len(source)} source, {len(target)} target, {len(held_out)} held out for model selection")
    _say_missing_classes(config, source, log)
    validation = _make_validation(config, held_out, device, log)
    model = network.build_model(config, log, device, pretrained=state is None)
    warn_of_slow_amp(config.train.amp, device, log.text)
    if state is None:
        check_start(config, model, validation, held_out, log.text)
    trainer = Trainer(
        config,
        model,
        network.build_optimizer(config, model),
        make_phases(Experiment(config, source, target, device, log)),
        validation,
        device,
        log,
        target_shares=TargetShares(config, source, target, device, log),
        origin={"method": method, "data": run_data.digests()},
        manifest=Manifest(config, method, run_data),
    )
    if state:
        trainer.load_state(state)
    _prepare_folder(config, trainer, log, lists)
    return trainer


def _next_command(config: Config) -> str:
    """How the finished run is scored or, without a labelled test set, used."""
    saved = config.run_folder / "config.yaml"
    return f"evaluate.py {saved}" if data.has_test_set(config) else f"predict {saved} PICTURES --save FOLDER"


def _check_starting_weights(config: Config, self_trained: bool, log: RunLog) -> None:
    """Random weights are said, and refused where the network would be its own teacher.

    Raises:
        ConfigError: no weights for a method that needs them.
    """
    m = config.model
    whole = m.weights not in (None, SCRATCH) or (m.weights_encoder and m.weights_decoder)
    if self_trained and not whole and m.weights != SCRATCH:
        raise ConfigError(
            "model.weights is not set: PyCDA learns from the network's own predictions, which are noise before it was "
            "trained. Set model.weights to a source-only run (or model.weights_encoder and model.weights_decoder to a "
            f"released pair); model.weights={SCRATCH} starts from random weights all the same"
        )
    if not whole and not m.weights_encoder and m.weights != SCRATCH:
        log.text(
            "WARNING: training starts from random weights, as no model.weights* is set: model.weights_encoder takes "
            f"an ImageNet file, model.weights={SCRATCH} says that it is meant so"
        )


def _say_resized_labels(config: Config, source: Sequence[Sample], log: RunLog) -> None:
    """Say how many labels have another size than their image. Raises DataError where that cannot be trained on."""
    skip_bad = config.train.skip_bad_samples > 0
    found = distributed.from_first(
        lambda: [str(s.label) for s in resized_pairs(source, config.source.label_kind, skip_bad=skip_bad)]
    )
    if found:
        log.text(f"{len(found)} of {len(source)} source labels {OTHER_SIZES}: {few(found)}")


def _say_missing_classes(config: Config, source: Sequence[Sample], log: RunLog) -> None:
    """Name the classes that the source's labels lack, as far as a look at some of them can tell."""
    if not distributed.is_main():
        return
    seen = labelled_classes(source, config.source.label_kind, config.num_classes, LOOKED_AT)
    if seen is not None and not seen.all():
        missing = [name for name, found in zip(config.class_table.names, seen, strict=True) if not found]
        looked_at = f"{min(len(source), LOOKED_AT)} of {len(source)} source labels"
        log.text(f"not labelled in the {looked_at} that were looked at: {', '.join(missing)}")


def _make_validation(
    config: Config, held_out: Sequence[Sample], device: torch.device, log: RunLog
) -> Validation | None:
    """None where there are no held-out images: the last checkpoint is the result."""
    if not held_out:
        log.text("no labelled held-out target images: no validation, the last checkpoint is the result")
        return None
    if remark := data.first_shape_remark(config, held_out):
        log.text(remark)
    return Validation(config, held_out, data.evaluation_loader(config, held_out, config.target), device, log)


def _prepare_folder(config: Config, trainer: Trainer, log: RunLog, lists: dict[str, Sequence[Sample]]) -> None:
    """Let the run folder hold what a run up to the trainer's step has written, its configuration and its lists."""
    folder, start = config.run_folder, trainer.standing.step
    elsewhere = config.resume not in ("auto", "off") and Path(config.resume).resolve().parent != folder.resolve()
    anew = start == 0 or elsewhere
    try:
        if distributed.is_main() and anew:
            moved = set_aside(folder)
            if moved:
                log.text(f"the earlier run's results are now in {moved}; delete them there if nobody needs them")
        distributed.wait_for_first()
        log.restart(start, validated=not trainer.owes_validation())
        data.write_lists(config, **lists)
        if distributed.is_main():
            (folder / "config.yaml").write_text(to_yaml(config))
            if trainer.manifest is not None:
                trainer.manifest.begin(anew)
    except OSError as error:
        raise CheckpointError(
            f"cannot write into the run folder {folder}: {error}. Make room or choose another"
        ) from error
    log.document(start, "config", to_yaml(config))
    classes = [f"{c} to {c + 1}: {name}" for c, name in enumerate(config.class_table.names)]
    log.document(start, "classes of the share histograms", "\n".join(classes))
