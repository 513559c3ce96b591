"""A run from its start to its end: processes, run folder, data, and the phases that a training script builds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from utils.engine.start import check_start, check_starting_weights, report_data, warn_of_slow_amp
from utils.engine.trainer import Phase, Trainer
from utils.engine.validation import Validation
from utils.engine.watch import TargetShares
from utils.run_folder.checkpoint import CONFIG, CheckpointError, find_state
from utils.run_folder.folder import open_run_folder, set_aside
from utils.run_folder.log import RunLog
from utils.run_folder.manifest import Manifest, RunData, git_revision, start_facts
from utils.signals import StopSignals


@contextmanager
def start_run(config: Config, num_workers: int) -> Iterator[tuple[torch.device, RunLog]]:
    """Join the other processes, open and lock the run folder, open its logs; undo this at the end.

    Yields the device of this process and the logs.

    Args:
        num_workers: number of loader processes in the configuration.
    """
    signals = StopSignals(unwind=True)
    with signals, ExitStack() as stack:
        device = stack.enter_context(distributed.process_group(config.timeout_minutes, lambda: start_facts(config)))
        main = distributed.is_main()
        if main:
            stack.enter_context(open_run_folder(config.run_folder))
        log = stack.enter_context(RunLog(config.run_folder, enabled=main))
        processes = f"{distributed.world_size()} process(es) on {device.type}, {torch.get_num_threads()} thread(s)"
        workers = f"{loader_processes(num_workers)} loader process(es) a data set"
        log.text(f"run folder {config.run_folder}, {processes}, {workers}, code {git_revision()}")
        stack.enter_context(distributed.naming_lost_processes())  # inside the log, which then has the error
        try:
            yield device, log
        except SystemExit:
            if signals.received:
                log.text(NOTHING_SAVED.format(signals.received))
            raise
        finally:
            signals.unwind = False


@dataclass(frozen=True)
class Experiment:
    """The parts from which a training script builds its phases."""

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


MakePhases = Callable[[Experiment], Sequence[Phase]]  # the function ``phases`` of a training script


def train(config: Config, make_phases: MakePhases, method: str, *, self_trained: bool = False) -> Path:
    """Run a training script: one run in its own folder, on one process or many, which saves and stops at a signal.

    Args: see ``build_trainer``.

    Returns:
        the file of the result.

    Raises:
        SystemExit: stopped by a signal, with status ``program.STOPPED``; the same command resumes the run.
    """
    with start_run(config, config.train.num_workers) as (device, log):
        trainer = build_trainer(config, make_phases, method, self_trained=self_trained, device=device, log=log)
        with StopSignals() as signals:
            result = trainer.fit(signals)
        log.text(f"done: {result}; next: sh run.sh {_next_command(Data(config))}")
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
    """Build a training: data, network, optimiser, curriculum, phases and logs.

    It resumes from the checkpoint in the run folder, as ``config.resume`` says. It does not lock the folder, and it
    does not handle signals: ``train`` does both.

    Args:
        make_phases: the function ``phases`` of a training script, for example ``train_pycda.phases``.
        method: name of the script, saved in the checkpoints. A run is only resumed under the same name, so give your
            own phases their own.
        self_trained: the method learns from the network's own predictions, so it needs starting weights.
        device: None: this process's GPU, or the CPU.
        log: None: a new log in the run folder.

    Raises:
        UserError: configuration, data or weights do not fit together; raised before the first step.
    """
    device = device or distributed.device_and_backend()[0]
    log = log or RunLog(config.run_folder)
    _ = config.class_table  # raises if the data sets do not fit together; all later steps are slow
    data = Data(config, log.text)
    run_data = RunData(config, data.lists())
    distributed.check_agreement(run_data.facts)
    state = distributed.from_first(lambda: find_state(run_data, method, log.text))
    digests = distributed.from_first(lambda: run_data.digests)  # reads all labels
    if state is None:
        check_starting_weights(config.model, self_trained, log.text)
    report_data(data, anew=state is None)
    validation = _make_validation(data, device, log)
    model = network.build_model(config, log.text, device, pretrained=state is None)
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
    _prepare_folder(run_data, trainer, log)
    return trainer


def _next_command(data: Data) -> str:
    """Arguments of run.sh that score the finished run or, without a labelled test set, use it."""
    saved = data.config.run_folder / CONFIG
    return f"evaluate.py {saved}" if data.has_test_set else f"predict {saved} PICTURES --save FOLDER"


def _make_validation(data: Data, device: torch.device, log: RunLog) -> Validation | None:
    """None without held-out images: the last checkpoint is then the result."""
    if not data.held_out:
        log.text("no labelled held-out target images: no validation, the last checkpoint is the result")
        return None
    if remark := data.shape_remark(data.held_out):
        log.text(remark)
    return Validation(data, device, log)


def _prepare_folder(data: RunData, trainer: Trainer, log: RunLog) -> None:
    """Move aside an earlier run's results, remove records after the trainer's step, write configuration and lists."""
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
            if trainer.manifest is not None:
                trainer.manifest.begin(anew)
            write_text(folder / CONFIG, to_yaml(config))  # last: from now on, the folder stays
    except OSError as error:
        raise CheckpointError(
            f"cannot write into the run folder {folder}: {error}. Free some space or choose another snapshot_dir"
        ) from error
    log.document(start, "config", to_yaml(config))
    classes = [f"{c} to {c + 1}: {name}" for c, name in enumerate(config.class_table.names)]
    log.document(start, "classes of the share histograms", "\n".join(classes))
