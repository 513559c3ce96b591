"""An experiment: its processes, its folder, its data, and the phases that a training script makes of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset.folders import Sample
from utils import distributed
from utils.build import data, network
from utils.config.read import to_yaml
from utils.config.schema import Config
from utils.run_folder.checkpoint import find_state, git_revision, make_run_folder, remove_results
from utils.run_folder.log import RunLog
from utils.training.engine import Phase, Trainer
from utils.training.losses import LossFunction, supervised
from utils.training.validation import Validation


@contextmanager
def start_run(config: Config) -> Iterator[tuple[torch.device, RunLog]]:
    """Join the other processes, open the run folder's logs; undo it at the end."""
    device = distributed.setup()
    folder = config.run_folder
    try:
        if distributed.is_main():
            make_run_folder(folder)
        with RunLog(folder, enabled=distributed.is_main()) as log:
            processes = f"{distributed.world_size()} process(es) on {device.type}"
            log.text(f"run folder {folder}, {processes}, code {git_revision()}")
            yield device, log
    finally:
        distributed.shutdown()


@dataclass(frozen=True)
class Experiment:
    """What a training script builds its phases from."""

    config: Config
    source: Sequence[Sample]
    target: Sequence[Sample]  # without labels, and without the held-out images
    device: torch.device
    log: RunLog
    start: int = 0  # first iteration, above 0 in a resumed run

    def source_phase(self) -> Phase:
        """The supervised phase, the same in all four recipes."""
        loader = data.domain_loader(self.config, data.SOURCE, self.source, self.start)
        return Phase("source", loader, supervised(self.config.train.lambda_seg))

    def target_phase(self, losses: LossFunction, backward: bool = True) -> Phase:
        loader = data.domain_loader(self.config, data.TARGET, self.target, self.start)
        return Phase("target", loader, losses, backward)


def train(config: Config, make_phases: Callable[[Experiment], Sequence[Phase]]) -> Path:
    """Train the phases that ``make_phases`` gives for the experiment's parts. Returns the file of the result.

    Raises:
        SystemExit: stopped by a signal, with status ``signals.STOPPED``; the same command goes on.
    """
    with start_run(config) as (device, log):
        table = config.class_table  # before anything slow: do the data sets go together?
        state = find_state(config, config.run_folder, log.text)
        start = state["step"] if state else 0
        prepare_folder(config, table.names, log, start)
        source = data.source_samples(config)
        target, held_out = data.target_samples(config, log.text)
        data.write_lists(config, source=source, target=target, held_out=held_out)
        log.text(f"images: {len(source)} source, {len(target)} target, {len(held_out)} held out for model selection")
        model = network.build_model(config, log, device, pretrained=state is None)
        phases = make_phases(Experiment(config, source, target, device, log, start))
        validation = None
        if held_out:
            if remark := data.first_shape_remark(config, held_out):
                log.text(remark)
            loader = data.evaluation_loader(config, held_out, config.target)
            validation = Validation(config, held_out, loader, device, log)
        else:
            log.text("no labelled held-out target images: no validation, the last checkpoint is the result")
        trainer = Trainer(config, model, network.build_optimizer(config, model), phases, validation, device, log)
        if state:
            trainer.load_state(state)
        return trainer.fit()


def prepare_folder(config: Config, class_names: Sequence[str], log: RunLog, start: int) -> None:
    """Let the run folder hold what a run up to step ``start`` has written, and this configuration."""
    if not distributed.is_main():
        return
    log.restart(start)
    if start == 0:
        removed = remove_results(config.run_folder)
        if removed:
            log.text(f"starting anew, removed the earlier run's {', '.join(removed)}")
    (config.run_folder / "config.yaml").write_text(to_yaml(config))
    log.document(start, "config", to_yaml(config))
    classes = [f"{c} to {c + 1}: {name}" for c, name in enumerate(class_names)]
    log.document(start, "classes of the share histograms", "\n".join(classes))
