"""An experiment: its processes, its folder, its data, and the phases that a training script makes of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dataset.files import write_text
from dataset.program import NOTHING_SAVED, loader_processes
from utils import distributed
from utils.builders import network
from utils.builders.data import SOURCE, TARGET, Data
from utils.config.read import to_yaml
from utils.config.schema import Config
from utils.engine.losses import LossFunction, supervised
from utils.engine.start import (
    check_start,
    check_starting_weights,
    report_missing_classes,
    report_resized_labels,
    warn_of_slow_amp,
)
from utils.engine.trainer import Phase, Trainer
from utils.engine.validation import Validation
from utils.engine.watch import TargetShares
from utils.run_folder.checkpoint import CheckpointError, find_state
from utils.run_folder.folder import RunFolder, open_run_folder, set_aside
from utils.run_folder.log import RunLog
from utils.run_folder.manifest import Manifest, RunData, git_revision, start_facts
from utils.signals import StopSignals, Unwinding


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
        stack.enter_context(distributed.naming_lost_processes())  # inside the log, which then has the error
        try:
            yield Run(device, log, folder)
        except SystemExit:
            if signals.received:
                log.text(NOTHING_SAVED.format(signals.received))
            raise
        finally:
            signals.over = True


@dataclass(frozen=True)
class Experiment:
    """What a training script builds its phases from."""

    data: Data
    device: torch.device
    log: RunLog

    def source_phase(self) -> Phase:
        """The supervised phase, the same in all four recipes."""
        t = self.data.config.train
        return Phase("source", self.data.training_loader(SOURCE), supervised(t.lambda_seg, t.lambda_source))

    def target_phase(
        self, losses: LossFunction, *, backward: bool = True, curriculum: nn.Module | None = None
    ) -> Phase:
        """A phase on the target; the state of its ``curriculum`` is part of the checkpoints."""
        return Phase("target", self.data.training_loader(TARGET), losses, backward, curriculum)


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
        run.log.text(f"done: {result}; next: sh run.sh {_next_command(Data(config))}")
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
    data = Data(config, log.text)
    run_data = RunData(config, data.lists())
    distributed.check_agreement(run_data.facts)
    state = distributed.from_first(lambda: find_state(run_data, method, log.text))
    digests = distributed.from_first(lambda: run_data.digests)  # reads all labels
    if state is None:
        check_starting_weights(config.model, self_trained, log.text)
        report_resized_labels(data)
    counts = f"{len(data.source)} source, {len(data.target)} target, {len(data.held_out)} held out for model selection"
    log.text(f"images: {counts}")
    report_missing_classes(data)
    validation = _make_validation(data, device, log)
    model = network.build_model(config, log, device, pretrained=state is None)
    warn_of_slow_amp(config.train.amp, device, log.text)
    if state is None:
        check_start(data, model, validation)
    manifest = None
    if distributed.is_main():
        manifest = Manifest(method, run_data, network.starting_files(config.model) if state is None else ())
    trainer = Trainer(
        config,
        model,
        network.build_optimizer(config.train, model),
        make_phases(Experiment(data, device, log)),
        validation,
        device,
        log,
        target_shares=TargetShares(data, device, log),
        origin={"method": method, "data": digests},
        manifest=manifest,
    )
    if state:
        trainer.load_state(state)
    _prepare_folder(data, trainer, log)
    return trainer


def _next_command(data: Data) -> str:
    """How the finished run is scored or, without a labelled test set, used."""
    saved = data.config.run_folder / "config.yaml"
    return f"evaluate.py {saved}" if data.has_test_set else f"predict {saved} PICTURES --save FOLDER"


def _make_validation(data: Data, device: torch.device, log: RunLog) -> Validation | None:
    """None where there are no held-out images: the last checkpoint is the result."""
    if not data.held_out:
        log.text("no labelled held-out target images: no validation, the last checkpoint is the result")
        return None
    if remark := data.shape_remark(data.held_out):
        log.text(remark)
    return Validation(data, device, log)


def _prepare_folder(data: Data, trainer: Trainer, log: RunLog) -> None:
    """Let the run folder hold what a run up to the trainer's step has written, its configuration and its lists."""
    config, start = data.config, trainer.state.step
    folder = config.run_folder
    elsewhere = config.resume not in ("auto", "off") and Path(config.resume).resolve().parent != folder.resolve()
    anew = start == 0 or elsewhere
    try:
        if distributed.is_main() and anew:
            moved = set_aside(folder)
            if moved:
                log.text(f"the earlier run's results are now in {moved}; delete them there if nobody needs them")
        distributed.wait_for_first()
        log.restart(start, validated=not trainer.validation_missing())
        if distributed.is_main():
            data.write_lists()
            write_text(folder / "config.yaml", to_yaml(config))
            if trainer.manifest is not None:
                trainer.manifest.begin(anew)
    except OSError as error:
        raise CheckpointError(
            f"cannot write into the run folder {folder}: {error}. Make room or choose another"
        ) from error
    log.document(start, "config", to_yaml(config))
    classes = [f"{c} to {c + 1}: {name}" for c, name in enumerate(config.class_table.names)]
    log.document(start, "classes of the share histograms", "\n".join(classes))
