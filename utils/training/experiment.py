"""A run: its processes, its folder, its data, and the steps that a training script makes of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset.folders import Sample
from utils import build, distributed
from utils.run_folder.checkpoint import find_state, git_revision, make_run_folder, remove_results
from utils.config.read import to_yaml
from utils.training.engine import Step, Trainer
from utils.run_folder.log import RunLog
from utils.config.schema import Config
from utils.training.losses import Losses, supervised


@contextmanager
def start_run(config: Config) -> Iterator[tuple[torch.device, RunLog]]:
    """Join the other processes, open the run folder's logs; undo it at the end."""
    device = distributed.setup()
    folder = build.run_folder(config)
    try:
        if distributed.is_main():
            make_run_folder(folder)
        with RunLog(folder, enabled=distributed.is_main()) as log:
            processes = f"{distributed.world_size()} process(es) on {device.type}"
            log.text(f"run folder {folder}, {processes}, code {git_revision()}")
            yield device, log
    finally:
        distributed.shutdown()


def train(config: Config, make_steps: Callable[["Experiment"], Sequence[Step]]) -> Path:
    """Train the steps that ``make_steps`` gives for the experiment's parts. Returns the file of the result.

    Raises:
        SystemExit: stopped by a signal, with status ``signals.STOPPED``; the same command goes on.
    """
    with start_run(config) as (device, log):
        build.class_table(config)  # before anything slow: do the data sets go together?
        state = find_state(config, build.run_folder(config), log.text)
        start = state["step"] if state else 0
        prepare_folder(config, log, start)
        source = build.source_samples(config)
        target, held_out = build.target_samples(config)
        build.write_lists(config, source=source, target=target, held_out=held_out)
        log.text(f"images: {len(source)} source, {len(target)} target, {len(held_out)} held out for model selection")
        model = build.build_model(config, log, device, pretrained=state is None)
        steps = make_steps(Experiment(config, source, target, device, log, start))
        trainer = Trainer(config, model, steps, held_out, device, log)
        if state:
            trainer.load_state(state)
        return trainer.fit()


def prepare_folder(config: Config, log: RunLog, start: int) -> None:
    """Let the run folder hold what a run up to step ``start`` has written, and this configuration."""
    if not distributed.is_main():
        return
    log.restart(start)
    if start == 0:
        removed = remove_results(build.run_folder(config))
        if removed:
            log.text(f"starting anew, removed the earlier run's {', '.join(removed)}")
    (build.run_folder(config) / "config.yaml").write_text(to_yaml(config))
    log.document(start, "config", to_yaml(config))
    classes = [f"{c} to {c + 1}: {name}" for c, name in enumerate(build.class_table(config).names)]
    log.document(start, "classes of the share histograms", "\n".join(classes))


@dataclass(frozen=True)
class Experiment:
    """What a training script builds its steps from."""

    config: Config
    source: Sequence[Sample]
    target: Sequence[Sample]
    device: torch.device
    log: RunLog
    start: int = 0  # first iteration, above 0 in a resumed run

    def source_step(self) -> Step:
        """The supervised step, the same in all four recipes."""
        loader = build.domain_loader(self.config, build.SOURCE, self.source, self.start)
        return Step("source", loader, supervised(self.config.train.lambda_seg))

    def target_step(self, losses: Losses, backward: bool = True) -> Step:
        loader = build.domain_loader(self.config, build.TARGET, self.target, self.start)
        return Step("target", loader, losses, backward)
