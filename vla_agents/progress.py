"""A progress bar for rollouts: episodes, steps, successes, time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import rich
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from vla_agents.rollout import EpisodeResult, Listener, StepEvent

_REFRESH = 0.5  # seconds


class ProgressBar(Listener):
    """Shows how a rollout gets on; a context manager.

    Args:
        title: What is under way, e.g. `"collecting"`.
        total: Number of episodes.
        done: How many of them were there before.
        count: The number of episodes that count so far; None: every episode that ended counts.
        console: Where to draw; None takes rich's default (nothing moves where it is not a terminal).
        visible: False draws nothing.
        note: What else to show, asked for a few times a second (rich markup).
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        count: Callable[[], int] | None = None,
        console: Console | None = None,
        visible: bool = True,
        note: Callable[[], str] | None = None,
    ) -> None:
        console = console or rich.get_console()
        self._wide = console.width >= 110
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40 if self._wide else 6),
            MofNCompleteColumn(table_column=Column(min_width=2 * len(str(total)) + 1)),  # never cut off
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[success]}"),
            TextColumn("{task.fields[note]}"),
            *([TimeElapsedColumn()] if self._wide else []),
            TimeRemainingColumn(),
            console=console,
            disable=not visible,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", success="", note="")
        self._before, self._count, self._note = done, count, note
        self._ended = self._judged = self._succeeded = self._steps = 0
        self._shown = time.monotonic()
        self._shown_steps, self._speed = 0, ""
        self._visible = visible

    def on_step(self, slot: int, step: StepEvent) -> None:
        """Count, and look at the meters now and then."""
        self._steps += 1
        now = time.monotonic()
        if now - self._shown < _REFRESH or not self._visible:
            return
        self._speed = f"{(self._steps - self._shown_steps) / (now - self._shown):.1f} steps/s"
        self._shown, self._shown_steps = now, self._steps
        self._show()

    def on_end(self, slot: int, result: EpisodeResult) -> None:
        """Move on."""
        self._ended += 1
        self._judged += result.judged
        self._succeeded += result.success
        self._show()

    def _show(self) -> None:
        completed = self._before + self._ended if self._count is None else self._count()
        elapsed = self._progress.tasks[0].elapsed or 0.0
        often = self._ended / elapsed if elapsed > 0 else 0.0
        rates = (
            [f"{often:.1f} episodes/s" if often >= 0.5 else f"{60 * often:.1f} episodes/min"] if often else []
        )
        if self._speed and (self._wide or often < 0.5):  # a narrow terminal has room for one
            rates = [*rates, self._speed] if self._wide else [self._speed]
        rate = ", ".join(rates)
        success = f"success {100 * self._succeeded / self._judged:.1f} %" if self._judged else ""
        note = "" if self._note is None else self._note()
        self._progress.update(self._task, completed=completed, rate=rate, success=success, note=note)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
