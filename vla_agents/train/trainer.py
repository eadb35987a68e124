"""The Trainer takes gradient steps. Which batches come is the strategy's affair; where the weights lie, the engine's; how
well it acts, a callable tells; what else shall happen, callbacks do.

One optimiser step sees `accumulation` micro-batches on each process. Every micro-batch's mean loss is weighed by its
share of all the entries that this loss counts (`vla_agents.train.shares`), so the step equals that of one large batch. A
run folder:

    run.yaml  metrics.jsonl  tensorboard/
    checkpoints/step_000500/    a policy checkpoint, and training/ beside it (optimisers, schedules, RNG, strategy)
    best -> checkpoints/...     last -> checkpoints/...     links, moved only when what they name is complete
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_agents.cpu import MIB, keep_freed_memory, no_denormals
from vla_agents.errors import TrainingError
from vla_agents.policies.checkpoint import save_policy
from vla_agents.train.callbacks import Callback, StepReport
from vla_agents.train.checkpoints import load_training_state, newest_checkpoint, save_checkpoint
from vla_agents.train.config import RunConfig
from vla_agents.train.ema import MovingAverage
from vla_agents.train.engines import make_engine, processes
from vla_agents.train.failures import describe_rows, name_bad_samples, nothing_lost
from vla_agents.train.keep import Keep, point, prune
from vla_agents.train.reporting import Reporter
from vla_agents.train.shares import Shares
from vla_agents.train.signals import stop_on_signals
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
        interrupted: Stopped by Ctrl-C, a signal or a callback; `last` is where to go on.
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
        callbacks: What else shall happen.

    Attributes:
        step: Finished steps.
        metrics: Of the last validation.
        best_score: Of the best validation so far.
        saved_step: That of the newest checkpoint; 0 where there is none.
        spoilt: The weights are not to be saved: half a step was taken, or they give no finite loss.
    """

    def __init__(
        self,
        policy: nn.Module,
        strategy: Strategy,
        config: RunConfig,
        evaluate: Evaluate | None = None,
        title: str = "training",
        save: Save = save_policy,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.strategy, self.evaluate, self.save = config, strategy, evaluate, save
        self.out = Path(config.out)
        self.keep = Keep.parse(config.keep)
        self.policy = policy
        wrap = getattr(strategy, "learner", None)
        # Gives the losses; the weights are the policy's.
        self.learner: nn.Module = policy if wrap is None else wrap(policy)
        self.engine = make_engine(policy, config, self.learner)
        if self.engine.device.type == "cpu":
            keep_freed_memory(kept=1024 * MIB, largest=256 * MIB)
        self.ema = MovingAverage(policy, config.ema) if config.ema else None
        self.callbacks: list[Callback] = [Reporter(title), *callbacks]
        self.step = 0
        self.best_score = -math.inf
        self.metrics: dict[str, float] = {}
        self.stopping = False
        self._asked = False  # on this process
        self.saved_step, self.spoilt = 0, False

    def stop(self) -> None:
        """End the run, with a checkpoint: after this step; of several processes, after the next one, when all know."""
        self._asked = True
        self.stopping = self.engine.world == 1

    def fit(self) -> TrainResult:
        """Train to `config.steps`, or until Ctrl-C or SIGTERM (which save)."""
        started = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        if self.config.resume:
            self._resume()
        error: BaseException | None = None
        try:
            with stop_on_signals(self.stop):
                self._tell("on_start")
                self._loop()
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._tell("on_end", error)
        last = self.out / "last"
        best = self.out / "best" if (self.out / "best").exists() else last
        return TrainResult(
            self.step, best.resolve(), last.resolve(), self.metrics, time.monotonic() - started, self.stopping
        )

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    def _loop(self) -> None:
        config = self.config
        while self.step < config.steps and not self.stopping:
            with nothing_lost(self):
                report = self._train_step()
            self.step += 1
            self._tell("on_step", report)
            at_end = self.step == config.steps or self.stopping
            validated = at_end or self.step % config.validate_every == 0
            if validated:
                with nothing_lost(self):
                    self._validate()
            if at_end or validated or (config.save_every and self.step % config.save_every == 0):
                self.save_state(validated)

    # ---- one step -----------------------------------------------------------------------------------------
    def _train_step(self) -> StepReport:
        engine, started = self.engine, time.monotonic()
        where = engine.rank, engine.world
        drawn = self.strategy.batches(self.step, self.config.accumulation, *where)
        waited = time.monotonic() - started
        batches = with_seeds(drawn, (self.config.seed, self.step), *where)
        self._check_batches(batches)
        with no_denormals():
            losses = self._gradient(batches)
            norm = engine.clip(self.config.optimizer.clip)
            self._check_finite(losses, norm, batches)
            self.spoilt = True  # from here on the weights are neither the old nor the new ones
            engine.step()
            self.spoilt = False
        if self.ema is not None:
            self.ema.update(self.step)
        samples = self.config.batch_size * self.config.accumulation * engine.world
        return StepReport(losses, norm, samples, time.monotonic() - started, waited)

    def _gradient(self, batches: Sequence[TrainingBatch]) -> dict[str, float]:
        """That of the mean over all batches of all processes; returns the losses."""
        engine = self.engine
        shares = Shares(self.learner, batches, engine)
        engine.model.train()
        sums = {name: torch.zeros((), device=engine.device) for name in shares.names}
        for index, batch in enumerate(batches):
            with engine.accumulating(last=index == len(batches) - 1):
                with engine.autocast():
                    losses = engine.model(batch.to(engine.device))
                parts = shares.weigh(index, losses)
                engine.backward(torch.stack(list(parts.values())).sum())
            for name, part in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=engine.device)) + part.detach()
        asked = torch.tensor(float(self._asked), device=engine.device)  # all processes stop at the same step
        *values, stops = engine.sum(torch.stack([*sums.values(), asked])).tolist()
        self.stopping = self.stopping or stops > 0
        return dict(zip(sums, values, strict=True))

    def _check_batches(self, batches: Sequence[TrainingBatch]) -> None:
        for batch in batches:
            problem = batch.find_nonfinite()
            if problem:
                whose = describe_rows(batch, self.strategy)
                raise TrainingError(
                    f"step {self.step}: {problem}{whose}", "mend that episode or leave it out"
                )

    def _check_finite(self, losses: dict[str, float], norm: float, batches: Sequence[TrainingBatch]) -> None:
        """Stop before the step is taken: what the weights were until here is good, and saved, unless all samples say no."""
        if all(math.isfinite(value) for value in (*losses.values(), norm)):
            return
        what, advice = (
            f"losses {losses}, norm of the gradient {norm:g}",
            "look at these episodes, or use a smaller learning rate",
        )
        if self.engine.world == 1:
            who, self.spoilt = name_bad_samples(self.learner, batches, self.strategy, self.engine.device)
            what += f"\n  not finite: {who}"
        if self.spoilt:
            newest = f"the newest checkpoint is of step {self.saved_step}"
            advice = f"use a smaller learning rate; these weights were not saved, {newest}"
        elif self.engine.can_undo:
            self.save_state()
            advice += f"; {self.out / 'last'} is the last good state"
        raise TrainingError(f"step {self.step}: not finite: {what}", advice)

    # ---- validation and checkpoints -----------------------------------------------------------------------
    @property
    def averages(self) -> dict[str, Tensor] | None:
        """The averaged weights, where they are kept: what is validated and saved."""
        return None if self.ema is None else self.ema.values

    def _validate(self) -> None:
        self.policy.eval()
        metrics: dict[str, float] = {}
        with self.engine.averaged(self.averages):
            metrics |= self._validation_losses()
        if self.evaluate is not None:
            with self.engine.complete_policy(self.averages) as policy:
                if policy is not None:
                    metrics |= {k: float(v) for k, v in self.evaluate(policy, self.step).items()}
        self.metrics = processes.from_main(metrics, self.engine.device)
        self.strategy.observe(self.step, self.metrics)
        self._tell("on_validated", self.metrics)

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
            with self.engine.autocast():
                losses = self.engine.evaluate(batch.to(self.engine.device))
            total += sum(float(part) for part in shares.weigh(index, losses).values())
        return total

    def _score(self) -> float:
        if "success" in self.metrics:
            return self.metrics["success"]
        return -self.metrics.get("val_loss", math.inf)

    def save_state(self, validated: bool = False) -> None:
        """A checkpoint of the present step; `validated` says that `metrics` are its own. All processes must call it."""
        better = validated and self._score() >= self.best_score
        if better:
            self.best_score = self._score()
        folder = save_checkpoint(self)
        self.saved_step = self.step
        if folder is None:  # not the main process
            return
        point(self.out / "last", folder)
        if better or not (self.out / "best").exists():
            point(self.out / "best", folder)
        prune(self.out, self.keep)
        self._tell("on_saved", folder)

    def _resume(self) -> None:
        folder = newest_checkpoint(self.out)
        if folder is None:
            raise TrainingError(
                f"{self.out}: nothing to resume from", "leave out --resume to start a new run"
            )
        load_training_state(self, folder)
        self.saved_step = self.step
