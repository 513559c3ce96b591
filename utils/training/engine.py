"""The one training loop. A method is a list of ``Phase``s; everything else is the same for all of them."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset.folders import DataError
from dataset.messages import few
from models.batchnorm import set_bn_updates
from models.segmentor import Segmentor
from utils import distributed
from utils.config.schema import Config
from utils.run_folder.checkpoint import BEST, LAST, PREVIOUS, model_state, save_atomic
from utils.run_folder.log import SHARE, RunLog
from utils.training.label_watch import CollapseWatch, LayerShares, layer_shares
from utils.training.losses import Batch, LossFunction, Outcome, on_device
from utils.training.partwise import PartwiseForward
from utils.training.signals import STOPPED, StopSignals
from utils.training.validation import Validation

AUTOCAST = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Phase:
    """One forward pass of an iteration on one domain; with ``backward`` an optimiser step follows."""

    name: str
    loader: Iterable[Batch]
    losses: LossFunction
    backward: bool = True


@dataclass
class Iteration:
    """What one iteration gave, all phases together."""

    losses: dict[str, float] = field(default_factory=dict)  # PHASE/TERM
    shares: dict[str, LayerShares] = field(default_factory=dict)  # PHASE/LAYER, of the pseudo-labels
    data_time: float = 0.0  # seconds spent waiting for data
    step_time: float = 0.0  # seconds in all

    def values(self) -> dict[str, float]:
        """Scalars for the logs: the losses, and PHASE/labelled/LAYER."""
        return self.losses | {_within(name, "labelled"): shares.labelled for name, shares in self.shares.items()}

    def histograms(self) -> dict[str, dict[str, float]]:
        """PHASE/share/LAYER: the share of each class among the labels."""
        return {_within(name, SHARE): shares.classes for name, shares in self.shares.items()}


def _within(name: str, what: str) -> str:
    """PHASE/LAYER -> PHASE/WHAT/LAYER"""
    phase, layer = name.split("/")
    return f"{phase}/{what}/{layer}"


def learning_rate_factor(config: Config, step: int) -> float:
    """Factor on the initial learning rates at ``step`` (from 0): poly decay, or constant and then a tenth."""
    t = config.train
    if t.schedule == "poly":
        return (1 - step / t.num_steps) ** t.lr_pow
    return 0.1 if step >= t.decrease_lr else 1.0


class Trainer:
    """Runs ``phases`` in turn up to iteration ``train.num_steps``; validates, logs and saves on the way.

    Args:
        optimizer: with the initial learning rates, see ``utils.build.network.build_optimizer``.
        validation: None: the last checkpoint is the result.
    """

    def __init__(
        self,
        config: Config,
        model: Segmentor,
        optimizer: torch.optim.Optimizer,
        phases: Sequence[Phase],
        validation: Validation | None,
        device: torch.device,
        log: RunLog,
    ) -> None:
        self.config, self.model, self.optimizer, self.phases = config, model, optimizer, phases
        self.validation, self.device, self.log = validation, device, log
        self.folder, self.class_names = config.run_folder, config.class_table.names
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        self.start, self.best_miou, self.skipped = 0, -1.0, 0
        self.watch = CollapseWatch()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint as if the run had never stopped."""
        self.model.load_state_dict(state["model"])
        set_bn_updates(self.model, state["bn_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.start, self.best_miou, self.skipped = state["step"], state["best_miou"], state["skipped"]

    def fit(self) -> Path:
        """Train; returns the file of the result (best.pth with validation, else last.pth)."""
        result = self.folder / (BEST if self.validation is not None else LAST)
        t = self.config.train
        if self.start >= t.num_steps:
            self.log.text(f"already trained for {self.start} steps; resume=off trains anew")
            return result
        self.model.train()
        batches = [iter(phase.loader) for phase in self.phases]
        indices = range(self.start, t.num_steps)
        options: dict[str, Any] = {"initial": self.start, "total": t.num_steps, "mininterval": 1}
        options["disable"] = not distributed.is_main()
        with StopSignals() as signals, tqdm(indices, desc=self.config.exp_name, **options) as bar:
            for index in bar:
                iteration = self._iterate(index, batches)
                losses = {k.split("/")[0]: v for k, v in iteration.losses.items() if k.endswith("/total")}
                totals = ", ".join(f"{phase} {v:.3f}" for phase, v in losses.items())
                bar.set_postfix_str(f"{totals}, data {iteration.data_time:.2f}s of {iteration.step_time:.2f}s")
                done = index + 1
                if done % t.print_freq == 0:
                    self._log_iteration(done, iteration)
                saved = done % self.config.val.every == 0 or done == t.num_steps
                if saved:
                    self._validate_and_save(done)
                self._stop_if_asked(signals, done, saved)
        return result

    def _iterate(self, index: int, batches: Sequence[Iterator[Batch]]) -> Iteration:
        """One iteration: every phase once."""
        self._seed(index)
        self._set_learning_rate(index)
        started = time.perf_counter()
        iteration = Iteration()
        for phase, iterator in zip(self.phases, batches, strict=True):
            waiting = time.perf_counter()
            batch = self._next(iterator)
            iteration.data_time += time.perf_counter() - waiting
            self._run(phase, batch, iteration)
        warning = self.watch.update(iteration.shares)
        if warning:
            self.log.text(warning)
        iteration.step_time = time.perf_counter() - started
        return iteration

    def _next(self, batches: Iterator[Batch]) -> Batch:
        batch = next(batches)
        self._tolerate([message for message in batch["skipped"] if message])
        batch = on_device(batch, self.device)
        if self.config.train.channels_last:
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        return batch

    def _tolerate(self, messages: Sequence[str]) -> None:
        """Count the images that could not be read; the data set has put others in their place."""
        limit = self.config.train.skip_bad_samples
        if limit == 0:
            return
        self.skipped += round(distributed.sum_over_ranks(len(messages), self.device))
        for message in messages:
            self.log.text(f"skipped ({self.skipped} of at most {limit}): {message}")
        if self.skipped > limit:
            raise DataError(
                f"{self.skipped} images could not be read, train.skip_bad_samples allows {limit}; see the log"
            )

    def _seed(self, step: int) -> None:
        """Dropout is a function of (seed, step, rank), so that a run can go on from any step without RNG states."""
        state = np.random.SeedSequence([self.config.seed, step, distributed.rank()]).generate_state(1)
        torch.manual_seed(int(state[0]))

    def _set_learning_rate(self, step: int) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * learning_rate_factor(self.config, step)

    def _forward(self, images: Tensor, **options: bool) -> dict[str, Tensor]:
        amp = self.config.train.amp
        with torch.autocast(self.device.type, AUTOCAST[amp], enabled=amp != "off"):
            return self.model(images, **options)

    def _run(self, phase: Phase, batch: Batch, iteration: Iteration) -> None:
        """One forward pass, and the optimiser step where ``phase`` has one; numbers go into ``iteration``."""
        parts = self.config.train.iter_size
        partwise = PartwiseForward(self.model, self._forward, parts) if parts > 1 else None
        outcome = phase.losses(partwise or self._forward, batch)
        losses, shares = self._numbers(outcome)
        self._check_finite(phase.name, losses)
        iteration.losses |= {f"{phase.name}/{term}": value for term, value in losses.items()}
        iteration.shares |= {f"{phase.name}/{layer}": value for layer, value in shares.items()}
        if phase.backward:
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(outcome.losses["total"]).backward()
            if partwise:
                partwise.backward()
            distributed.all_reduce_gradients(self.model)
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _numbers(self, outcome: Outcome) -> tuple[dict[str, float], dict[str, LayerShares]]:
        """Tensors as numbers, in one transfer from the device."""
        tensors = [loss.detach().double().view(1) for loss in outcome.losses.values()]
        tensors += outcome.label_counts.values()
        values = torch.cat(tensors).tolist() if tensors else []
        losses, counts = values[: len(outcome.losses)], values[len(outcome.losses) :]
        size = len(self.class_names) + 1
        shares = {
            layer: layer_shares(counts[i * size : (i + 1) * size], self.class_names)
            for i, layer in enumerate(outcome.label_counts)
        }
        return dict(zip(outcome.losses, losses, strict=True)), shares

    def _check_finite(self, name: str, values: dict[str, float]) -> None:
        if all(math.isfinite(v) for v in values.values()):
            return
        terms = ", ".join(f"{term}={value}" for term, value in values.items())
        raise FloatingPointError(f"non-finite loss in the {name} step: {terms}. {self._advice()}")

    def _advice(self) -> str:
        remedy = "Lower train.lr_encoder / train.lr_decoder, or set train.amp=off"
        return f"The last good checkpoint is kept in {self.folder}. {remedy}"

    def _log_iteration(self, done: int, iteration: Iteration) -> None:
        values = iteration.values()
        factor = learning_rate_factor(self.config, done - 1)
        self.log.record(done, values | {"lr_factor": factor}, iteration.histograms())
        terms = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.log.text(f"step {done}  {terms}  data {iteration.data_time:.3f}s of {iteration.step_time:.3f}s")

    def _validate_and_save(self, done: int) -> None:
        best = False
        if self.validation is not None:
            miou = self.validation(self.model, done, self.best_miou)
            best = miou > self.best_miou
            self.best_miou = max(miou, self.best_miou)
        self._save(done, best)

    def _save(self, done: int, best: bool = False) -> None:
        bad = [name for name, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"after step {done} the network has non-finite weights: {few(bad)}. {self._advice()}"
            )
        if distributed.is_main():
            state = model_state(self.config, self.model) | {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": done,
                "best_miou": self.best_miou,
                "skipped": self.skipped,
            }
            if best:  # first: a run that is killed in between goes on from before this validation, and finds it again
                save_atomic(state, self.folder / BEST)
            save_atomic(state, self.folder / LAST, previous=self.folder / PREVIOUS)
        distributed.barrier()

    def _stop_if_asked(self, signals: StopSignals, done: int, saved: bool) -> None:
        """Every process stops after the same step, whichever got the signal."""
        if not distributed.sum_over_ranks(signals.received, self.device):
            return
        if not saved:
            self._save(done)
        self.log.text(
            f"stopped by a signal after step {done}, saved {self.folder / LAST}: the same command goes on from there"
        )
        raise SystemExit(STOPPED)
