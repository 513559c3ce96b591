"""The training loop. A method is a list of ``Phase``s; everything else is the same for all methods."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dataset.messages import DataError, few
from dataset.program import STOPPED
from dataset.progress import Progress
from models.segmentor import Segmentor
from utils import distributed
from utils.builders.data import start_at
from utils.config.schema import Config, Train
from utils.engine.losses import Batch, LossFunction, PartwiseForward, on_device
from utils.engine.validation import Validation
from utils.engine.watch import TargetShares, watches_of
from utils.run_folder.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    TrainState,
    load_training_state,
    model_state,
    save_atomic,
)
from utils.run_folder.log import RunLog, Values
from utils.run_folder.manifest import Manifest
from utils.scoring.evaluation import EvaluationStopped
from utils.signals import StopSignals

AUTOCAST = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by train.amp


@dataclass(frozen=True)
class Phase:
    """One forward pass of an iteration on one domain; with ``backward`` an optimiser step follows."""

    name: str
    loader: Iterable[Batch]
    losses: LossFunction
    backward: bool = True
    curriculum: nn.Module | None = None  # computes the losses; its state is part of the checkpoints


class Iteration(NamedTuple):
    """Results of one iteration, of all phases together, on the host."""

    values: Values  # by PHASE/TERM as in log.jsonl
    data_time: float  # seconds spent waiting for data
    step_time: float  # seconds in all


def learning_rate_factor(options: Train, step: int) -> float:
    """Factor on the initial learning rates at ``step`` (from 0): poly decay, or constant and then a tenth.

    The released code sets the rate after an iteration from the index of that iteration. The first two iterations
    therefore have the initial rate.
    """
    last = max(step - 1, 0)
    if options.schedule == "poly":
        return (1 - last / options.num_steps) ** options.lr_pow
    if options.schedule == "drop":
        return 0.1 if last >= options.decrease_lr else 1.0
    raise ValueError(f"train.schedule={options.schedule!r} has no formula here")


class Trainer:
    """Runs ``phases`` in turn up to iteration ``train.num_steps``; validates, logs and saves on the way.

    Args:
        optimizer: with the initial learning rates, see ``utils.builders.network.build_optimizer``.
        validation: None: the last checkpoint is the result.
        target_shares: None: predictions on the target are not logged, and there is no warning for a lost class.
        origin: entries about the method and the data for the checkpoints.
        manifest: its duration is updated at every save.
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
        self.origin = dict(origin or {})
        self.state = TrainState()
        self.target_shares, self.manifest = target_shares, manifest
        self._batches: list[Iterator[Batch]] | None = None

    def fit(self, signals: StopSignals | None = None) -> Path:
        """Train to the last iteration; returns the file of the result (best.pth with validation, else last.pth).

        Args:
            signals: stop after the step in which a signal arrives; None: signals are not handled.
        """
        t, state = self.config.train, self.state
        validation_missing = self.validation_missing()
        if state.step >= t.num_steps and not validation_missing:
            return self._already_trained()
        with self._progress() as bar:
            if validation_missing:
                self._repeat_validation(signals)
            target_shares = self.target_shares if self.log.enabled else None
            watches = watches_of(t.num_steps, t.num_steps - state.step, target_shares)
            for _ in bar:
                iteration = self.step()
                bar.set_postfix_str(self._summary(iteration), refresh=False)
                for warning in filter(None, [watch(iteration.values) for watch in watches]):
                    self.log.text(warning)
                if state.step % t.print_freq == 0:
                    self._log(iteration)
                saved = state.step % self.config.val.every == 0 or state.step == t.num_steps
                if saved:
                    self._save_and_validate(signals)
                self._stop_if_asked(signals, saved)
        return self._result()

    def step(self) -> Iteration:
        """The next iteration: every phase once. ``fit`` adds logs, checkpoints and validations."""
        if self._batches is None:
            self.model.train()
            self._batches = [iter(phase.loader) for phase in self.phases]
        self._seed()
        self.set_learning_rate(self.state.step)
        started, data_time = time.perf_counter(), 0.0
        tensors: dict[str, Tensor] = {}
        for phase, batches in zip(self.phases, self._batches, strict=True):
            waiting = time.perf_counter()
            batch = self._next(batches)
            data_time += time.perf_counter() - waiting
            tensors |= {f"{phase.name}/{name}": value for name, value in self._run(phase, batch).items()}
        values = self._transfer(tensors)
        self._check_finite(values)
        self.state.step += 1
        return Iteration(values, data_time, time.perf_counter() - started)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        batch = next(batches)
        self._count_skipped([message for message in batch["skipped"] if message])
        batch = on_device(batch, self.device)
        if self.config.train.channels_last:
            batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
        return batch

    def _run(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """One forward pass, and the optimiser step if ``phase`` has one. Nothing here waits for the device."""
        parts = self.config.train.iter_size
        partwise = PartwiseForward(self.model, self._forward, parts) if parts > 1 else None
        terms = phase.losses(partwise or self._forward, batch)
        if phase.backward:
            self.optimizer.zero_grad(set_to_none=True)
            with distributed.summed_gradients(self.model, parts):
                self.scaler.scale(terms["total"]).backward()
                if partwise:
                    partwise.backward()
            # here .grad is the sum over all processes; with fp16 it is scaled until the optimiser's step
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return {name: value.detach() for name, value in terms.items()}

    def _forward(self, images: Tensor, **options: bool) -> dict[str, Tensor]:
        amp = self.config.train.amp
        with torch.autocast(self.device.type, AUTOCAST[amp], enabled=amp != "off"):
            return self.model(images, **options)

    def _transfer(self, tensors: Mapping[str, Tensor]) -> Values:
        """Scalars as numbers, histograms (C,) as numbers by class: the only transfer from the device per iteration.

        A transfer waits until the device has done all its work. With one at the end, the device is not idle before.
        """
        flat = [tensor.double().flatten() for tensor in tensors.values()]
        numbers = iter(torch.cat(flat).tolist() if flat else [])
        return {
            name: {c: next(numbers) for c in self.class_names} if tensor.ndim else next(numbers)
            for name, tensor in tensors.items()
        }

    def _check_finite(self, values: Values) -> None:
        """Raises FloatingPointError for the first phase with a non-finite loss; the weights after it are not saved."""
        scalars = {name: value for name, value in values.items() if isinstance(value, float)}
        for phase in (phase.name for phase in self.phases):
            if not math.isfinite(scalars.get(f"{phase}/total", 0.0)):
                found = ", ".join(f"{n.split('/', 1)[1]}={v}" for n, v in scalars.items() if n.startswith(f"{phase}/"))
                raise FloatingPointError(f"non-finite loss in the {phase} step: {found}. {self._advice()}")

    def _log(self, iteration: Iteration) -> None:
        step, factor = self.state.step, learning_rate_factor(self.config.train, self.state.step - 1)
        self.log.record(step, {**iteration.values, "lr_factor": factor})
        terms = "  ".join(f"{name} {value:.4f}" for name, value in iteration.values.items() if isinstance(value, float))
        self.log.text(f"step {step}  {terms}  data {iteration.data_time:.3f}s of {iteration.step_time:.3f}s")

    def _seed(self) -> None:
        """Dropout is a function of (seed, step, rank): a run resumes from any step without RNG states."""
        entropy = [self.config.seed, self.state.step, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rates of iteration ``step`` (from 0)."""
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * learning_rate_factor(self.config.train, step)

    def _count_skipped(self, messages: Sequence[str]) -> None:
        """Count the images that could not be read; the data set has replaced them."""
        limit = self.config.train.skip_bad_samples
        if limit == 0:
            return
        state = self.state
        state.skipped += round(distributed.sum_over_ranks(len(messages), self.device))
        for message in messages:
            self.log.text(f"skipped ({state.skipped} of at most {limit}): {message}")
        if state.skipped > limit:
            raise DataError(
                f"{state.skipped} images could not be read, train.skip_bad_samples allows {limit}; see the log"
            )

    def _progress(self) -> Progress[int]:
        """A progress bar over the remaining steps; without a terminal, only the log shows the steps."""
        steps = range(self.state.step, self.config.train.num_steps)
        main, report = distributed.is_main(), self.log.text
        return Progress(steps, self.config.exp_name, start=self.state.step, enabled=main, lines=False, report=report)

    @staticmethod
    def _summary(iteration: Iteration) -> str:
        """One line for the progress bar."""
        totals = [f"{k.split('/')[0]} {v:.3f}" for k, v in iteration.values.items() if k.endswith("/total")]
        return f"{', '.join(totals)}, data {iteration.data_time:.2f}s of {iteration.step_time:.2f}s"

    def _advice(self) -> str:
        remedy = "Lower train.lr_encoder / train.lr_decoder, or set train.amp=off"
        return f"The last good checkpoint is kept in {self.folder}. {remedy}"

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint: everything that a training needs to resume."""
        curricula = {phase.name: phase.curriculum for phase in self.phases if phase.curriculum is not None}
        return {
            **model_state(self.config, self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **vars(self.state),
            **self.origin,
            "curricula": {name: curriculum.state_dict() for name, curriculum in curricula.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint as if the run had never stopped. Raises CheckpointError if it does not fit."""
        self.state = load_training_state(state, self.model, self.optimizer, self.scaler)
        for phase in self.phases:
            if phase.curriculum is not None and phase.name in state.get("curricula", {}):
                phase.curriculum.load_state_dict(state["curricula"][phase.name])
            start_at(phase.loader, self.state.step)
        self._batches = None

    def validation_missing(self) -> bool:
        """Whether the validation after the last step is missing: it was interrupted, or best.pth is missing."""
        state = self.state
        if self.validation is None or state.step == 0:
            return False
        expected = state.best_miou >= 0 or state.step >= self.config.train.num_steps
        return not state.validated or (expected and not distributed.from_first((self.folder / BEST).is_file))

    def _repeat_validation(self, signals: StopSignals | None) -> None:
        """Validate the loaded checkpoint: its validation was interrupted, or best.pth is missing."""
        if not distributed.from_first((self.folder / BEST).is_file):
            self.state.best_miou = -1.0
        self.state.validated = False
        self._validate(signals)
        self._stop_if_asked(signals, saved=True)

    def _already_trained(self) -> Path:
        self.log.text(f"already trained for {self.state.step} steps; resume=off trains anew")
        if not distributed.from_first((self.folder / LAST).is_file):
            self._save()  # the state came from a file elsewhere: this folder has no result yet
        return self._result()

    def _result(self) -> Path:
        best = self.folder / BEST
        return best if self.validation is not None and best.is_file() else self.folder / LAST

    def _save_and_validate(self, signals: StopSignals | None) -> None:
        """Save first: the validation may take long; if it is interrupted, the resumed run repeats it."""
        self.state.validated = self.validation is None
        if self.target_shares:  # before the checkpoint: a run that resumes from it keeps this record
            self.target_shares.record(self.model, self.state.step)
        self._save(previous=True)
        self._validate(signals)

    def _validate(self, signals: StopSignals | None) -> None:
        """Score the saved network if there are held-out images, and save it as the best one if it is."""
        state = self.state
        if self.validation is None:
            return
        try:
            miou = self.validation(self.model, state.step, state.best_miou, stop=lambda: self._asked_to_stop(signals))
        except EvaluationStopped:
            return
        best = miou > state.best_miou  # False for NaN
        state.best_miou, state.validated = miou if best else state.best_miou, True
        self._save(best=best)

    def _save(self, *, best: bool = False, previous: bool = False) -> None:
        """Write last.pth, and best.pth too if this is the ``best``; ``previous`` keeps the old last.pth."""
        bad = [name for name, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"after step {self.state.step} the network has non-finite weights: {few(bad)}. {self._advice()}"
            )
        if distributed.is_main():
            state = self.state_dict()
            if best:  # first: a run that is killed between the two saves repeats this validation
                save_atomic(state, self.folder / BEST)
            save_atomic(state, self.folder / LAST, previous=self.folder / PREVIOUS if previous else None)
            if self.manifest is not None:
                self.manifest.count_time()
        distributed.wait_for_first()

    def _asked_to_stop(self, signals: StopSignals | None) -> bool:
        """Whether a process got a signal or lost torchrun or its output's reader; the same result in all processes."""
        asked = signals and (signals.received or signals.orphaned or (self.log.reader_lost and signals.hangup_stops))
        return distributed.sum_over_ranks(bool(asked), self.device) > 0

    def _stop_if_asked(self, signals: StopSignals | None, saved: bool) -> None:
        """Save and stop all processes after the same step if one of them has to stop."""
        if signals is None or not self._asked_to_stop(signals):
            return
        if not saved:
            self._save(previous=True)
        cause = f"by signal {signals.received}"
        if not signals.received:
            cause = "because another process got a signal, nobody reads the output, or torchrun has ended"
        then = "" if self.state.validated else " and to repeat the validation"
        self.log.text(
            f"stopped after step {self.state.step} {cause}; saved {self.folder / LAST}. Run the same command to resume"
            f"{then}"
        )
        raise SystemExit(STOPPED)
