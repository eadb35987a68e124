"""Optional services that show runs (`--track wandb` or `trackio`); whatever happens there, training goes on."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from vla_agents.config import to_dict
from vla_agents.train.callbacks import Callback, StepReport

if TYPE_CHECKING:
    from vla_agents.train.trainer import Trainer

_log = logging.getLogger(__name__)


class Tracker(Callback):
    """Sends what the log gets. The first failure is told, and then nothing more is sent.

    Args:
        name: `wandb` or `trackio`, which have the same calls.
        project: Under which name runs are collected.
    """

    def __init__(self, name: str, project: str) -> None:
        self._name, self._project = name, project
        self._service: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Begin a run."""
        if not trainer.engine.is_main:
            return

        def begin() -> None:
            service = importlib.import_module(self._name)
            service.init(project=self._project, name=trainer.out.name, config=to_dict(trainer.config))
            self._service = service

        self._try(begin)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Send the losses as often as they are logged."""
        if trainer.step % trainer.config.log_every == 0:
            self._send(trainer.step, {"loss": report.loss, "grad_norm": report.norm, **report.losses})

    def on_validated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Send the metrics."""
        self._send(trainer.step, metrics)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """End the run there."""
        if self._service is not None:
            self._try(self._service.finish)

    def _send(self, step: int, values: dict[str, float]) -> None:
        if self._service is not None and values:
            self._try(lambda: self._service.log(values, step=step))

    def _try(self, action: Any) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:  # a foreign service: nothing it does may end a training run
            self._service = None
            _log.warning(
                "%s does not work and is left out from now on: %s: %s",
                self._name,
                type(error).__name__,
                error,
            )
