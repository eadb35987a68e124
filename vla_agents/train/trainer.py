"""The Trainer takes gradient steps. Which batches come is the strategy's affair; how well it acts, a callable tells.

One optimiser step sees `accumulation` micro-batches on each process. Every micro-batch's mean loss is weighed by its
share of all the entries that this loss counts (`vla_agents.train.shares`), so the step equals that of one large batch. A
run folder:

    run.yaml  metrics.jsonl  tensorboard/
    checkpoints/step_000500/    a policy checkpoint, and training/ beside it (optimisers, schedules, RNG, strategy)
    best -> checkpoints/...     last -> checkpoints/...     links, moved only when what they name is complete
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from vla_agents.errors import TrainingError
from vla_agents.policies.checkpoint import save_policy
from vla_agents.train.checkpoints import load_training_state, newest_checkpoint, point, prune, save_checkpoint
from vla_agents.train.config import RunConfig
from vla_agents.train.metrics import MetricsLog, TrainingBar, truncate_after
from vla_agents.train.optimizers import make_optimizers, make_schedules
from vla_agents.train.shares import Shares
from vla_agents.train.strategy import Strategy, TrainingBatch, with_seeds

# Given the model (in eval mode) and the step; returns metrics, of which "success" decides what is best.
Evaluate = Callable[[Any, int], dict[str, float]]
# Writes a checkpoint folder: (model, folder, extra=facts, attach=folders to move in).
Save = Callable[..., Path]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        step: Optimiser steps taken.
        best: Checkpoint folder of the best validation (or closed-loop success).
        last: Checkpoint folder of the last step.
        metrics: The last validation's metrics.
        seconds: Wall time of this call.
        interrupted: Stopped by Ctrl-C; `last` is where to go on.
    """

    step: int
    best: Path
    last: Path
    metrics: dict[str, float]
    seconds: float
    interrupted: bool


class Trainer:
    """Trains a policy, or any module that maps a batch to named losses.

    Args:
        policy: The module.
        strategy: What to train on.
        config: Steps, optimiser, run folder, ...
        evaluate: Closed-loop evaluation at every validation; None validates on the loss alone.
        title: For the progress bar.
        save: How the module is written into a checkpoint folder.
    """

    def __init__(
        self,
        policy: nn.Module,
        strategy: Strategy,
        config: RunConfig,
        evaluate: Evaluate | None = None,
        title: str = "training",
        save: Save = save_policy,
    ) -> None:
        self.config, self.strategy, self.evaluate, self.title = config, strategy, evaluate, title
        self.save = save
        self.out = Path(config.out)
        cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=config.mixed_precision)
        self.policy = policy
        wrap = getattr(strategy, "learner", None)
        self.learner: nn.Module = (
            policy if wrap is None else wrap(policy)
        )  # gives the losses; weights are the policy's
        raw_optimizers = make_optimizers(policy, config.optimizer)
        self.schedules = make_schedules(raw_optimizers, config.optimizer, config.steps)
        self.model: Any = self.accelerator.prepare(self.learner)
        self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in raw_optimizers]
        self.ema = {n: p.detach().clone() for n, p in policy.named_parameters()} if config.ema else {}
        self.step = 0
        self.best_score = -math.inf
        self.metrics: dict[str, float] = {}
        self._stop = False

    def fit(self) -> TrainResult:
        """Train to `config.steps`, or until Ctrl-C (which saves)."""
        started = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        if self.config.resume:
            self._resume()
        main = self.accelerator.is_main_process
        log = MetricsLog(self.out, tensorboard=self.config.tensorboard) if main else None
        try:
            with self._ctrl_c(), TrainingBar(self.config.steps, self.title, show=main) as bar:
                self._loop(bar, log)
        finally:
            if log is not None:
                log.close()
        last = self.out / "last"
        best = self.out / "best" if (self.out / "best").exists() else last
        return TrainResult(
            self.step, best.resolve(), last.resolve(), self.metrics, time.monotonic() - started, self._stop
        )

    def _loop(self, bar: TrainingBar, log: MetricsLog | None) -> None:
        config = self.config
        average, samples, clock = 0.0, 0, time.monotonic()
        while self.step < config.steps and not self._stop:
            losses, norm = self._train_step()
            self.step += 1
            total = sum(losses.values())
            average = total if self.step == 1 else 0.95 * average + 0.05 * total
            samples += config.batch_size * config.accumulation * self.accelerator.num_processes
            if self.step % config.log_every == 0 or self.step == config.steps:
                rate = samples / max(1e-9, time.monotonic() - clock)
                samples, clock = 0, time.monotonic()
                bar.update(self.step, loss=average, **{"samples/s": f"{rate:.0f}"}, **self._shown())
                if log is not None:
                    lr = float(self.schedules[-1].get_last_lr()[0])
                    parts = losses if len(losses) > 1 else {}
                    log.write(self.step, loss=total, **parts, grad_norm=norm, lr=lr, samples_per_second=rate)
            at_end = self.step == config.steps or self._stop
            validated = at_end or self.step % config.validate_every == 0
            if validated:
                self._validate(log)
                clock = time.monotonic()
            if at_end or validated or (config.save_every and self.step % config.save_every == 0):
                self._save(validated)
        if self._stop:
            bar.message(f"Stopped at step {self.step}; saved in {self.out / 'last'}. Go on with --resume.")

    # ---- one step -----------------------------------------------------------------------------------------
    def _train_step(self) -> tuple[dict[str, float], float]:
        accelerator = self.accelerator
        where = accelerator.process_index, accelerator.num_processes
        drawn = self.strategy.batches(self.step, self.config.accumulation, *where)
        batches = with_seeds(drawn, (self.config.seed, self.step), *where)
        self._check_batches(batches)
        shares = Shares(self.learner, batches, accelerator)
        batches = [batch.to(accelerator.device) for batch in batches]
        self.model.train()
        sums = {name: torch.zeros((), device=accelerator.device) for name in shares.names}
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    losses = self.model(batch)
                parts = shares.weigh(index, losses)
                # Processes average their gradients, where they should add up.
                accelerator.backward(torch.stack(list(parts.values())).sum() * accelerator.num_processes)
            for name, part in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=accelerator.device)) + part.detach()
        values = {name: float(accelerator.reduce(value, "sum")) for name, value in sums.items()}
        self._check_finite(values)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        self._update_ema()
        return values, float(norm)

    def _check_batches(self, batches: Sequence[TrainingBatch]) -> None:
        for batch in batches:
            problem = batch.find_nonfinite()
            if problem:
                raise TrainingError(f"step {self.step}: {problem}", "mend that episode or leave it out")

    def _check_finite(self, losses: dict[str, float]) -> None:
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingError(
                f"step {self.step}: the loss is not finite: {losses}",
                f"use a smaller learning rate; the last good checkpoint is {self.out / 'last'}",
            )

    def _update_ema(self) -> None:
        if not self.ema:
            return
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))  # short memory at first
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                self.ema[name].lerp_(parameter.detach(), 1 - decay)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights (where an average is kept)."""
        if not self.ema:
            yield
            return
        raw = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        self._set_weights(self.ema)
        try:
            yield
        finally:
            self._set_weights(raw)

    def _set_weights(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(values[name])

    # ---- validation and checkpoints -----------------------------------------------------------------------
    def _validate(self, log: MetricsLog | None) -> None:
        self.policy.eval()
        metrics: dict[str, float] = {}
        with self._averaged():
            metrics |= self._validation_losses()
            if self.evaluate is not None and self.accelerator.is_main_process:
                metrics |= {k: float(v) for k, v in self.evaluate(self.policy, self.step).items()}
        # What a strategy decides by them must be the same on every process.
        (metrics,) = broadcast_object_list([metrics])
        self.metrics = metrics
        self.strategy.observe(self.step, metrics)
        if log is not None and metrics:
            log.write(self.step, **metrics)

    def _validation_losses(self) -> dict[str, float]:
        """`val_loss`; of a strategy with several groups (tasks, stages) that of each, and their mean."""
        found = self.strategy.validation()
        if not isinstance(found, Mapping):
            return {"val_loss": self._validation_loss(with_seeds(found, (0,)))} if found else {}
        losses = {name: self._validation_loss(with_seeds(group, (0,))) for name, group in found.items()}
        mean = {"val_loss": sum(losses.values()) / len(losses)} if losses else {}
        return mean | {f"val_loss/{name}": loss for name, loss in losses.items()}

    @torch.no_grad()
    def _validation_loss(self, batches: Sequence[TrainingBatch]) -> float:
        """That of one batch of all samples; the named losses are added up, as in training."""
        shares, total = Shares(self.learner, batches), 0.0
        for index, batch in enumerate(batches):
            with self.accelerator.autocast():
                losses = self.learner(batch.to(self.accelerator.device))
            total += sum(float(part) for part in shares.weigh(index, losses).values())
        return total

    def _score(self) -> float:
        if "success" in self.metrics:
            return self.metrics["success"]
        return -self.metrics.get("val_loss", math.inf)

    def _shown(self) -> dict[str, float]:
        return {key: self.metrics[key] for key in ("val_loss", "success") if key in self.metrics}

    def _save(self, validated: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        better = validated and self._score() >= self.best_score
        if better:
            self.best_score = self._score()
        raw = {n: p.detach().clone() for n, p in self.policy.named_parameters()} if self.ema else None
        with self._averaged():
            folder = save_checkpoint(self, raw)
        point(self.out / "last", folder)
        if better or not (self.out / "best").exists():
            point(self.out / "best", folder)
        prune(self.out)

    def _resume(self) -> None:
        folder = newest_checkpoint(self.out)
        if folder is None:
            raise TrainingError(
                f"{self.out}: nothing to resume from", "leave out --resume to start a new run"
            )
        load_training_state(self, folder)
        truncate_after(self.out / "metrics.jsonl", self.step)

    @contextlib.contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C finishes the step and saves; the second one is the usual KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT)

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, ask_to_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
