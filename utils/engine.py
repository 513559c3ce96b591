"""The one training loop. A method is a list of ``Step``s; everything else is the same for all of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.folders import Sample
from models.batchnorm import bn_updates
from models.segmentor import Segmentor
from utils import build, distributed
from utils.checkpoint import BEST, LAST, git_revision, save_atomic
from utils.config import to_yaml
from utils.evaluation import evaluate, iou_table, scores
from utils.log import RunLog
from utils.schema import Config
from utils.steps import Batch, Losses, supervised

AUTOCAST = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Step:
    """One forward pass of an iteration on one domain; with ``backward`` an optimiser step follows."""

    name: str
    loader: DataLoader
    losses: Losses
    backward: bool = True


@contextmanager
def start_run(config: Config, config_file: str = "config.yaml") -> Iterator[tuple[torch.device, RunLog]]:
    """Join the other processes, open the run folder's logs, write the effective configuration; undo it at the end."""
    device = distributed.setup()
    folder = build.run_folder(config)
    try:
        with RunLog(folder, enabled=distributed.is_main()) as log:
            if distributed.is_main():
                (folder / config_file).write_text(to_yaml(config))
            processes = f"{distributed.world_size()} process(es) on {device.type}"
            log.text(f"run folder {folder}, {processes}, code {git_revision()}")
            yield device, log
    finally:
        distributed.shutdown()


def train(config: Config, make_steps: Callable[["Experiment"], Sequence[Step]]) -> Path:
    """Train the steps that ``make_steps`` gives for the experiment's parts. Returns the file of the result."""
    with start_run(config) as (device, log):
        source = build.source_samples(config)
        target, held_out = build.target_samples(config)
        build.write_lists(config, source=source, target=target, held_out=held_out)
        log.text(f"images: {len(source)} source, {len(target)} target, {len(held_out)} held out for model selection")
        model = build.build_model(config, log, device)
        steps = make_steps(Experiment(config, source, target, device, log))
        return Trainer(config, model, steps, held_out, device, log).fit()


@dataclass(frozen=True)
class Experiment:
    """What a training script builds its steps from."""

    config: Config
    source: Sequence[Sample]
    target: Sequence[Sample]
    device: torch.device
    log: RunLog

    def source_step(self) -> Step:
        """The supervised step, the same in all four recipes."""
        loader = build.domain_loader(self.config, build.SOURCE, self.source)
        return Step("source", loader, supervised(self.config.train.lambda_seg))

    def target_step(self, losses: Losses, backward: bool = True) -> Step:
        loader = build.domain_loader(self.config, build.TARGET, self.target)
        return Step("target", loader, losses, backward)


def model_state(config: Config, model: Segmentor) -> dict[str, Any]:
    """What a checkpoint says of the network and of where it comes from."""
    return {
        "model": model.state_dict(),
        "bn_updates": bn_updates(model),
        "config": to_yaml(config),
        "git": git_revision(),
    }


def learning_rate_factor(config: Config, step: int) -> float:
    """Factor on the initial learning rates at ``step`` (from 0): poly decay, or constant and then a tenth."""
    t = config.train
    if t.schedule == "poly":
        return (1 - step / t.num_steps) ** t.lr_pow
    return 0.1 if step >= t.decrease_lr else 1.0


class Trainer:
    """Runs ``steps`` in turn for ``train.num_steps`` iterations; validates, logs and saves on the way.

    Args:
        held_out: labelled target images for model selection; empty: no validation, the last checkpoint is the result.
    """

    def __init__(
        self, config: Config, model: Segmentor, steps: Sequence[Step], held_out: Sequence[Sample], device: torch.device, log: RunLog
    ) -> None:
        self.config, self.model, self.steps, self.device, self.log = config, model, steps, device, log
        self.folder = build.run_folder(config)
        self.table = build.class_table(config)
        self.optimizer = build.build_optimizer(config, model)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        self.best_miou = -1.0
        self.validation = None
        if held_out:
            self.validation = build.evaluation_loader(config, held_out, config.target.dataset)
        else:
            log.text("no labelled held-out target images: no validation, the last checkpoint is the result")

    def fit(self) -> Path:
        """Train; returns the file of the result (best.pth with validation, else last.pth)."""
        t = self.config.train
        self.model.train()
        batches = [iter(step.loader) for step in self.steps]
        bar = tqdm(range(t.num_steps), desc=self.config.exp_name, disable=not distributed.is_main(), mininterval=1)
        for index in bar:
            self._seed(index)
            self._set_learning_rate(index)
            started = time.perf_counter()
            data_time, losses = 0.0, {}
            for step, iterator in zip(self.steps, batches):
                waiting = time.perf_counter()
                batch = self._next(iterator)
                data_time += time.perf_counter() - waiting
                losses |= {f"{step.name}/{term}": value for term, value in self._run(step, batch).items()}
            totals = ", ".join(f"{k.split('/')[0]} {v:.3f}" for k, v in losses.items() if k.endswith("/total"))
            bar.set_postfix_str(f"{totals}, data {data_time:.2f}s of {time.perf_counter() - started:.2f}s")
            done = index + 1
            if done % t.print_freq == 0:
                self._log_losses(done, losses, data_time, time.perf_counter() - started)
            if done % self.config.val.every == 0 or done == t.num_steps:
                self._validate_and_save(done)
        return self.folder / (BEST if self.validation is not None else LAST)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in next(batches).items()}

    def _seed(self, step: int) -> None:
        """Dropout is a function of (seed, step, rank), so that a run can go on from any step without RNG states."""
        state = np.random.SeedSequence([self.config.seed, step, distributed.rank()]).generate_state(1)
        torch.manual_seed(int(state[0]))

    def _set_learning_rate(self, step: int) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = lr * learning_rate_factor(self.config, step)

    def _forward(self, images: Tensor, **options: bool) -> dict[str, Tensor]:
        amp = self.config.train.amp
        with torch.autocast(self.device.type, AUTOCAST[amp], enabled=amp != "off"):
            return self.model(images, **options)

    def _run(self, step: Step, batch: Batch) -> dict[str, float]:
        """One forward pass, and the optimiser step where ``step`` has one. Returns the losses as numbers."""
        losses = step.losses(self._forward, batch)
        values = {term: loss.item() for term, loss in losses.items()}
        self._check_finite(step.name, values)
        if step.backward:
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(losses["total"]).backward()
            distributed.all_reduce_gradients(self.model)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return values

    def _check_finite(self, name: str, values: dict[str, float]) -> None:
        if all(abs(v) < float("inf") for v in values.values()):
            return
        terms = ", ".join(f"{term}={value}" for term, value in values.items())
        raise FloatingPointError(
            f"non-finite loss in the {name} step: {terms}. Nothing was updated; the last good checkpoint is kept in "
            f"{self.folder}. Lower train.lr_encoder / train.lr_decoder, or set train.amp=off"
        )

    def _log_losses(self, done: int, losses: dict[str, float], data_time: float, step_time: float) -> None:
        factor = learning_rate_factor(self.config, done - 1)
        self.log.record(done, losses | {"lr_factor": factor})
        terms = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self.log.text(f"step {done}  {terms}  data {data_time:.3f}s of {step_time:.3f}s")

    def _validate_and_save(self, done: int) -> None:
        best = False
        if self.validation is not None:
            matrix = evaluate(self.model, self.validation, self.config.num_classes, self.device, title="validate")
            result = scores(matrix, self.table, self.config.test.eval_classes)
            best = result["miou"] > self.best_miou
            self.best_miou = max(result["miou"], self.best_miou)
            self.log.record(done, {f"val/{name}": value for name, value in result.items()})
            table = iou_table(matrix, self.table, self.config.test.eval_classes)
            self.log.text(f"validation at step {done} (best so far {self.best_miou:.2f})\n{table}")
        if distributed.is_main():
            self._save(done, best)
        distributed.barrier()

    def _save(self, done: int, best: bool) -> None:
        state = model_state(self.config, self.model) | {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": done,
            "best_miou": self.best_miou,
        }
        save_atomic(state, self.folder / LAST)
        if best:
            save_atomic(state, self.folder / BEST)
