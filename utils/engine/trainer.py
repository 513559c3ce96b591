"""The one training loop. A method is a list of ``Phase``s; everything else is the same for all of them."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataset.folders import DataError
from dataset.messages import few
from dataset.progress import Progress
from models.segmentor import Segmentor
from utils import distributed
from utils.builders.data import start_at
from utils.config.schema import Config
from utils.engine.iteration import Iteration, numbers
from utils.engine.label_watch import Watches
from utils.engine.losses import Batch, LossFunction, Outcome, on_device
from utils.engine.partwise import PartwiseForward
from utils.engine.signals import STOPPED, StopSignals
from utils.engine.state import Standing, load_training_state, training_state
from utils.engine.target_shares import TargetShares
from utils.engine.validation import Validation
from utils.run_folder.checkpoint import BEST, LAST, PREVIOUS, CheckpointError, save_atomic
from utils.run_folder.log import RunLog
from utils.run_folder.manifest import Manifest
from utils.scoring.evaluation import EvaluationStopped

AUTOCAST = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by train.amp


@dataclass(frozen=True)
class Phase:
    """One forward pass of an iteration on one domain; with ``backward`` an optimiser step follows."""

    name: str
    loader: Iterable[Batch]
    losses: LossFunction
    backward: bool = True
    curriculum: nn.Module | None = None  # what the losses are made by, whose state is part of the checkpoints


def learning_rate_factor(config: Config, step: int) -> float:
    """Factor on the initial learning rates at ``step`` (from 0): poly decay, or constant and then a tenth.

    The rate is set after an iteration by the index of that iteration (released code), so that the first two iterations
    have the initial one.
    """
    t, last = config.train, max(step - 1, 0)
    if t.schedule == "poly":
        return (1 - last / t.num_steps) ** t.lr_pow
    return 0.1 if last >= t.decrease_lr else 1.0


class Trainer:
    """Runs ``phases`` in turn up to iteration ``train.num_steps``; validates, logs and saves on the way.

    Args:
        optimizer: with the initial learning rates, see ``utils.builders.network.build_optimizer``.
        validation: None: the last checkpoint is the result.
        target_shares: None: nothing is said of the predictions on the target, and a class that vanishes is not noticed.
        origin: what the checkpoints say of the method and the data.
        manifest: gets the time at every save.
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
        *,
        target_shares: TargetShares | None = None,
        origin: Mapping[str, Any] | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.config, self.model, self.optimizer, self.phases = config, model, optimizer, phases
        self.validation, self.device, self.log = validation, device, log
        self.folder, self.class_names = config.run_folder, config.class_table.names
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        phase_names = [phase.name if phase.backward else f"{phase.name}, forward only" for phase in phases]
        self.origin = {"phases": phase_names} | dict(origin or {})
        self.standing = Standing()
        self.target_shares, self.manifest = target_shares, manifest
        self._batches: list[Iterator[Batch]] | None = None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint as if the run had never stopped. Raises CheckpointError where it does not fit."""
        before = state.get("phases", self.origin["phases"])
        if before != self.origin["phases"]:
            raise CheckpointError(f"the checkpoint is of the phases {before}, this method has {self.origin['phases']}")
        self.standing = load_training_state(state, self.model, self.optimizer, self.scaler)
        for phase in self.phases:
            if phase.curriculum is not None and phase.name in state.get("curricula", {}):
                phase.curriculum.load_state_dict(state["curricula"][phase.name])
            start_at(phase.loader, self.standing.step)
        self._batches = None

    def owes_validation(self) -> bool:
        """Whether the validation after the last step is missing: it was broken off, or its best.pth is not there."""
        p = self.standing
        if self.validation is None or p.step == 0:
            return False
        lost = not (self.folder / BEST).is_file() and (p.best_miou >= 0 or p.step >= self.config.train.num_steps)
        owes = distributed.is_main() and (lost or not p.validated)
        return distributed.sum_over_ranks(owes, self.device) > 0

    def fit(self, signals: StopSignals | None = None) -> Path:
        """Train to the last iteration; returns the file of the result (best.pth with validation, else last.pth).

        Args:
            signals: stop after a step where they say so; None: whatever ends the program ends the training.
        """
        t, p = self.config.train, self.standing
        owes = self.owes_validation()
        if p.step >= t.num_steps and not owes:
            self.log.text(f"already trained for {p.step} steps; resume=off trains anew")
            if distributed.sum_over_ranks(distributed.is_main() and not (self.folder / LAST).is_file(), self.device):
                self._save()  # gone on from a file elsewhere: this folder has no result yet
            return self._result()
        indices = range(p.step, t.num_steps)
        main = distributed.is_main()
        bar = Progress(  # without lines, as the log has the steps
            indices, self.config.exp_name, start=p.step, enabled=main, lines=False, report=self.log.text
        )
        with bar:
            if owes:
                self._make_up_for_validation(signals)
            expected = self.target_shares.expected if self.target_shares and main else None  # main alone has the log
            watches = Watches(t.num_steps, len(indices), expected)
            for _ in bar:
                iteration = self.step()
                losses = {k.split("/")[0]: v for k, v in iteration.losses.items() if k.endswith("/total")}
                totals = ", ".join(f"{phase} {v:.3f}" for phase, v in losses.items())
                bar.note(f"{totals}, data {iteration.data_time:.2f}s of {iteration.step_time:.2f}s")
                for warning in watches.update(iteration.shares, iteration.labelled):
                    self.log.text(warning)
                if p.step % t.print_freq == 0:
                    self._log_iteration(p.step, iteration)
                saved = p.step % self.config.val.every == 0 or p.step == t.num_steps
                if saved:
                    self._save_and_validate(signals)
                self._stop_if_asked(signals, saved)
        return self._result()

    def _result(self) -> Path:
        best = self.folder / BEST
        return best if self.validation is not None and best.is_file() else self.folder / LAST

    def _make_up_for_validation(self, signals: StopSignals | None) -> None:
        """The validation that the checkpoint which the run goes on from has not had, or whose result is gone."""
        if distributed.sum_over_ranks(distributed.is_main() and not (self.folder / BEST).is_file(), self.device):
            self.standing.best_miou = -1.0
        self.standing.validated = False
        self._validate(signals)
        self._stop_if_asked(signals, saved=True)

    def step(self) -> Iteration:
        """The next iteration; without logs, checkpoints and validations, which ``fit`` adds."""
        if self._batches is None:
            self.model.train()
            self._batches = [iter(phase.loader) for phase in self.phases]
        iteration = self.iterate(self.standing.step, self._batches)
        self.standing.step += 1
        return iteration

    def iterate(self, index: int, batches: Sequence[Iterator[Batch]]) -> Iteration:
        """One iteration: every phase once."""
        self._seed(index)
        self.set_learning_rate(index)
        started = time.perf_counter()
        outcomes, data_time = {}, 0.0
        for phase, iterator in zip(self.phases, batches, strict=True):
            waiting = time.perf_counter()
            batch = self._next(iterator)
            data_time += time.perf_counter() - waiting
            outcomes[phase.name] = self._run(phase, batch)
        iteration = numbers(outcomes, self.class_names)
        self._check_finite(iteration.losses)
        iteration.data_time, iteration.step_time = data_time, time.perf_counter() - started
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
        p = self.standing
        p.skipped += round(distributed.sum_over_ranks(len(messages), self.device))
        for message in messages:
            self.log.text(f"skipped ({p.skipped} of at most {limit}): {message}")
        if p.skipped > limit:
            raise DataError(f"{p.skipped} images could not be read, train.skip_bad_samples allows {limit}; see the log")

    def _seed(self, step: int) -> None:
        """Dropout is a function of (seed, step, rank), so that a run can go on from any step without RNG states."""
        state = np.random.SeedSequence([self.config.seed, step, distributed.rank()]).generate_state(1)
        torch.manual_seed(int(state[0]))

    def set_learning_rate(self, step: int) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * learning_rate_factor(self.config, step)

    def _forward(self, images: Tensor, **options: bool) -> dict[str, Tensor]:
        amp = self.config.train.amp
        with torch.autocast(self.device.type, AUTOCAST[amp], enabled=amp != "off"):
            return self.model(images, **options)

    def _run(self, phase: Phase, batch: Batch) -> Outcome:
        """One forward pass, and the optimiser step where ``phase`` has one. Nothing here waits for the device."""
        parts = self.config.train.iter_size
        partwise = PartwiseForward(self.model, self._forward, parts) if parts > 1 else None
        outcome = phase.losses(partwise or self._forward, batch)
        if phase.backward:
            self.optimizer.zero_grad(set_to_none=True)
            with distributed.summed_gradients(self.model, parts):
                self.scaler.scale(outcome.losses["total"]).backward()
                if partwise:
                    partwise.backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return outcome._replace(losses={term: value.detach() for term, value in outcome.losses.items()})

    def _check_finite(self, losses: dict[str, float]) -> None:
        """Raises FloatingPointError for the first phase whose loss is not; what it did to the weights is not saved."""
        phase = next((name.split("/")[0] for name, value in losses.items() if not math.isfinite(value)), None)
        if phase is None:
            return
        terms = ", ".join(f"{n.split('/')[1]}={v}" for n, v in losses.items() if n.startswith(f"{phase}/"))
        raise FloatingPointError(f"non-finite loss in the {phase} step: {terms}. {self._advice()}")

    def _advice(self) -> str:
        remedy = "Lower train.lr_encoder / train.lr_decoder, or set train.amp=off"
        return f"The last good checkpoint is kept in {self.folder}. {remedy}"

    def _log_iteration(self, done: int, iteration: Iteration) -> None:
        values = iteration.values()
        factor = learning_rate_factor(self.config, done - 1)
        self.log.record(done, values | {"lr_factor": factor}, iteration.histograms())
        terms = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.log.text(f"step {done}  {terms}  data {iteration.data_time:.3f}s of {iteration.step_time:.3f}s")

    def _save_and_validate(self, signals: StopSignals | None) -> None:
        """The checkpoint first: what comes after, however long, may be broken off and is repeated."""
        self.standing.validated = self.validation is None
        if self.target_shares:  # before the checkpoint: a run that goes on from it has this record
            self.target_shares.record(self.model, self.standing.step)
        self._save(previous=True)
        self._validate(signals)

    def _validate(self, signals: StopSignals | None) -> None:
        """Score the network, whose checkpoint is saved, if anything is held out; it becomes the best one or not."""
        p = self.standing
        if self.validation is None:
            return
        try:
            miou = self.validation(self.model, p.step, p.best_miou, stop=lambda: self._asked_to_stop(signals))
        except EvaluationStopped:
            return
        best = miou > p.best_miou  # False for NaN
        p.best_miou, p.validated = miou if best else p.best_miou, True
        self._save(best=best)

    def _save(self, *, best: bool = False, previous: bool = False) -> None:
        """Write last.pth, and best.pth too if this is the ``best``; ``previous`` keeps the old last.pth."""
        bad = [name for name, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"after step {self.standing.step} the network has non-finite weights: {few(bad)}. {self._advice()}"
            )
        if distributed.is_main():
            state = training_state(self.config, self.model, self.optimizer, self.scaler, self.standing, self.origin)
            curricula = {phase.name: phase.curriculum for phase in self.phases if phase.curriculum is not None}
            state["curricula"] = {name: curriculum.state_dict() for name, curriculum in curricula.items()}
            if best:  # first: a run that is killed in between repeats this validation, and finds it again
                save_atomic(state, self.folder / BEST)
            save_atomic(state, self.folder / LAST, previous=self.folder / PREVIOUS if previous else None)
            if self.manifest is not None:
                self.manifest.count_time()
        distributed.wait_for_first()

    def _asked_to_stop(self, signals: StopSignals | None) -> bool:
        """Whether any process got a signal, or nobody reads the output any more; alike on all of them."""
        asked = signals and (signals.received or signals.orphaned or (self.log.reader_lost and signals.hangup_stops))
        return distributed.sum_over_ranks(bool(asked), self.device) > 0

    def _stop_if_asked(self, signals: StopSignals | None, saved: bool) -> None:
        """Every process stops after the same step, whichever got the signal."""
        if signals is None or not self._asked_to_stop(signals):
            return
        if not saved:
            self._save(previous=True)
        p = self.standing
        why = (
            f"signal {signals.received}"
            if signals.received
            else "a signal, or as nobody reads its output, or torchrun has ended"
        )
        left = "" if p.validated else ", and repeats the validation"
        self.log.text(
            f"stopped by {why} after step {p.step}, saved {self.folder / LAST}: the same command goes on from there"
            + left
        )
        raise SystemExit(STOPPED)
