"""The Callback that tells how a run goes: progress bar, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vla_agents.train.bar import TrainingBar
from vla_agents.train.callbacks import Callback, StepReport
from vla_agents.train.metrics import MetricsLog, memory

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer


class Reporter(Callback):
    """Reports every `log_every` steps, on the main process.

    Args:
        title: For the progress bar.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._log: MetricsLog | None = None
        self._bar: TrainingBar | None = None
        self._average = 0.0
        self._begin()

    def _begin(self) -> None:
        """A new stretch between two reports."""
        self._samples, self._waited, self._clock = 0, 0.0, time.monotonic()

    def on_start(self, trainer: Trainer) -> None:
        """Open the log and the bar."""
        main, config = trainer.engine.is_main, trainer.config
        self._bar = TrainingBar(config.steps, self._title, start=trainer.step, show=main)
        self._bar.__enter__()
        if main:
            self._log = MetricsLog(trainer.out, tensorboard=config.tensorboard, after=trainer.step)
        self._begin()

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Count, and report now and then."""
        first = self._average == 0.0
        self._average = report.loss if first else 0.95 * self._average + 0.05 * report.loss
        self._samples += report.samples
        self._waited += report.waited
        if trainer.step % trainer.config.log_every and trainer.step != trainer.config.steps:
            return
        seconds = max(1e-9, time.monotonic() - self._clock)
        rate, waited = self._samples / seconds, self._waited / seconds
        parts = report.losses if len(report.losses) > 1 else {}
        numbers: dict[str, float] = {
            "loss": report.loss,
            **parts,
            "grad_norm": report.norm,
            "lr": float(trainer.engine.schedules[-1].get_last_lr()[0]),
            "samples_per_second": rate,
            "data_wait": waited,
            "memory_gb": memory(trainer.engine.device),
        }
        if self._log is not None:
            self._log.write(trainer.step, **numbers)
        if self._bar is not None:
            shown: dict[str, float | str] = {
                "loss": self._average,
                **parts,
                "samples/s": f"{rate:.0f}",
                "data wait": f"{100 * waited:.0f} %",
                "memory": f"{numbers['memory_gb']:.1f} GB",
            }
            self._bar.update(trainer.step, shown)
        self._begin()

    def on_validated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Write the metrics; the time it took is not training time."""
        if self._log is not None and metrics:
            self._log.write(trainer.step, **metrics)
        if self._bar is not None:
            self._bar.validated(trainer.step, metrics)
        self._begin()

    def on_saved(self, trainer: Trainer, folder: Any) -> None:
        """Nor is that of saving."""
        self._begin()

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Close everything, and say how to go on."""
        if self._bar is not None:
            if trainer.stopping and error is None and trainer.step < trainer.config.steps:
                self._bar.message(
                    f"Stopped at step {trainer.step}; saved in {trainer.out / 'last'}. Go on with --resume."
                )
            self._bar.__exit__(None, None, None)
        if self._log is not None:
            self._log.close()
