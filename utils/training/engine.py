"""The one training loop. A method is a list of ``Step``s; everything else is the same for all of them."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.folders import DataError, Sample, read_image
from models.batchnorm import set_bn_updates
from models.segmentor import Segmentor
from utils import build, distributed
from utils.training.partwise import PartwiseForward
from utils.run_folder.checkpoint import BEST, LAST, PREVIOUS, model_state, save_atomic
from utils.scoring.evaluation import evaluate, iou_table, scores
from utils.run_folder.log import RunLog
from utils.config.schema import Config
from utils.training.signals import STOPPED, StopSignals
from utils.training.losses import Batch, Losses
from utils.scoring.pictures import panel
from utils.training.label_watch import SHARE, CollapseWatch

AUTOCAST = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN = 5  # names in an error message
PANELS = 4  # held-out images in TensorBoard


@dataclass(frozen=True)
class Step:
    """One forward pass of an iteration on one domain; with ``backward`` an optimiser step follows."""

    name: str
    loader: DataLoader
    losses: Losses
    backward: bool = True


def learning_rate_factor(config: Config, step: int) -> float:
    """Factor on the initial learning rates at ``step`` (from 0): poly decay, or constant and then a tenth."""
    t = config.train
    if t.schedule == "poly":
        return (1 - step / t.num_steps) ** t.lr_pow
    return 0.1 if step >= t.decrease_lr else 1.0


class Trainer:
    """Runs ``steps`` in turn up to iteration ``train.num_steps``; validates, logs and saves on the way.

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
        self.start, self.best_miou, self.skipped = 0, -1.0, 0
        self.watch = CollapseWatch()
        self.validation = None
        if held_out:
            self.validation = build.evaluation_loader(config, held_out, config.target)
            seen = held_out[:: distributed.world_size()]  # by the first process, which alone can draw
            self.pictured = {sample.name: sample.image for sample in seen[:: math.ceil(len(seen) / PANELS)]}  # spread over the cities
        else:
            log.text("no labelled held-out target images: no validation, the last checkpoint is the result")

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
        batches = [iter(step.loader) for step in self.steps]
        steps = range(self.start, t.num_steps)
        options = {"initial": self.start, "total": t.num_steps, "mininterval": 1, "disable": not distributed.is_main()}
        with StopSignals() as signals, tqdm(steps, desc=self.config.exp_name, **options) as bar:
            for index in bar:
                losses, data_time, step_time = self._iterate(index, batches)
                totals = ", ".join(f"{k.split('/')[0]} {v:.3f}" for k, v in losses.items() if k.endswith("/total"))
                bar.set_postfix_str(f"{totals}, data {data_time:.2f}s of {step_time:.2f}s")
                done = index + 1
                if done % t.print_freq == 0:
                    self._log_losses(done, losses, data_time, step_time)
                saved = done % self.config.val.every == 0 or done == t.num_steps
                if saved:
                    self._validate_and_save(done)
                self._stop_if_asked(signals, done, saved)
        return result

    def _iterate(self, index: int, batches: Sequence[Iterator[Batch]]) -> tuple[dict[str, float], float, float]:
        """One iteration: every step once. Returns the losses, the seconds spent waiting for data and the seconds in all."""
        self._seed(index)
        self._set_learning_rate(index)
        started = time.perf_counter()
        data_time, losses = 0.0, {}
        for step, iterator in zip(self.steps, batches, strict=True):
            waiting = time.perf_counter()
            batch = self._next(iterator)
            data_time += time.perf_counter() - waiting
            losses |= {f"{step.name}/{term}": value for term, value in self._run(step, batch).items()}
        warning = self.watch.update(losses)
        if warning:
            self.log.text(warning)
        return losses, data_time, time.perf_counter() - started

    def _next(self, batches: Iterator[Batch]) -> Batch:
        batch = next(batches)
        self._tolerate([message for message in batch.pop("skipped") if message])
        batch = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
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
            raise DataError(f"{self.skipped} images could not be read, train.skip_bad_samples allows {limit}; see the log")

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

    def _run(self, step: Step, batch: Batch) -> dict[str, float]:
        """One forward pass, and the optimiser step where ``step`` has one. Returns the losses as numbers."""
        parts = self.config.train.iter_size
        partwise = PartwiseForward(self.model, self._forward, parts) if parts > 1 else None
        losses = step.losses(partwise or self._forward, batch)
        values = dict(zip(losses, torch.stack([v.detach().float() for v in losses.values()]).tolist())) if losses else {}
        self._check_finite(step.name, values)
        if step.backward:
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(losses["total"]).backward()
            if partwise:
                partwise.backward()
            distributed.all_reduce_gradients(self.model)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return values

    def _check_finite(self, name: str, values: dict[str, float]) -> None:
        if all(math.isfinite(v) for v in values.values()):
            return
        terms = ", ".join(f"{term}={value}" for term, value in values.items() if SHARE not in term)
        raise FloatingPointError(
            f"non-finite loss in the {name} step: {terms}. {self._advice()}"
        )

    def _advice(self) -> str:
        return f"The last good checkpoint is kept in {self.folder}. Lower train.lr_encoder / train.lr_decoder, or set train.amp=off"

    def _log_losses(self, done: int, losses: dict[str, float], data_time: float, step_time: float) -> None:
        factor = learning_rate_factor(self.config, done - 1)
        self.log.record(done, losses | {"lr_factor": factor})
        terms = "  ".join(f"{name} {value:.4f}" for name, value in losses.items() if f"/{SHARE}/" not in name)
        self.log.text(f"step {done}  {terms}  data {data_time:.3f}s of {step_time:.3f}s")

    def _validate_and_save(self, done: int) -> None:
        best = False
        if self.validation is not None:
            draw = partial(self._draw_panel, done)
            matrix = evaluate(self.model, self.validation, self.config.num_classes, self.device, on_image=draw, title="validate")
            result = scores(matrix, self.table, self.config.test.eval_classes)
            best = result["miou"] > self.best_miou
            self.best_miou = max(result["miou"], self.best_miou)
            self.log.record(done, {f"val/{name}": value for name, value in result.items()})
            table = iou_table(matrix, self.table, self.config.test.eval_classes)
            self.log.text(f"validation at step {done} (best so far {self.best_miou:.2f})\n{table}")
        self._save(done, best)

    def _draw_panel(self, done: int, name: str, label: Tensor, prediction: Tensor) -> None:
        if name in self.pictured:
            picture = panel(read_image(self.pictured[name]), label.numpy(), prediction.numpy(), self.table)
            self.log.picture(done, f"panels/{name}", picture)

    def _save(self, done: int, best: bool = False) -> None:
        bad = [name for name, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]
        if bad:
            raise FloatingPointError(f"after step {done} the network has non-finite weights: {', '.join(bad[:SHOWN])}. {self._advice()}")
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
        self.log.text(f"stopped by a signal after step {done}, saved {self.folder / LAST}: the same command goes on from there")
        raise SystemExit(STOPPED)
